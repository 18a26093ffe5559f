/**
 * Bootstrap: how a cluster begins. The first curator that finds an empty store makes the cluster's ID and its
 * certificate authority, and writes down who the owner is. One transaction decides, so that however often this runs,
 * and on however many machines at once, there is one cluster.
 */
import { randomBytes, X509Certificate } from 'node:crypto';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import type { ClusterRecord } from '../rpc/gen/ashlar/curator/v1/records_pb.ts';
import type { RpcLog } from '../rpc/rpc-error.ts';
import { certificateFingerprint } from '../rpc/tls-names.ts';
import { sleep, systemClock } from '../supervisor/clock.ts';
import { backoffMs } from '../supervisor/supervisor.ts';
import { createAuthority } from './certificates.ts';
import type { EtcdClient } from './etcd-client.ts';
import { createCluster, readCluster } from './records.ts';

export interface BootstrapOptions {
  readonly etcd: EtcdClient;
  readonly ownerCertificatePem: string;
  readonly now: () => Date;
  readonly log: RpcLog;
  readonly signal: AbortSignal;
}

/** Waits for etcd as long as it takes. Rejects when aborted, or when the owner's certificate is unusable. */
export async function bootstrapCluster(options: BootstrapOptions): Promise<ClusterRecord> {
  const { etcd, log, now } = options;
  const owner = readOwnerCertificate(options.ownerCertificatePem);
  const existing = await whenStoreAnswers(options);
  if (existing !== undefined) {
    const knownOwner = new X509Certificate(existing.ownerCertificateDer);
    if (knownOwner.fingerprint256 !== owner.fingerprint256) {
      // Node parameters are untrusted: whoever can change them must not become the owner of a cluster that exists.
      log.warning(
        `the node parameters name another owner (${certificateFingerprint(owner)}) than the cluster has (${certificateFingerprint(knownOwner)}): ignored`,
      );
    }
    log.info(`cluster ${existing.clusterId} found`);
    return existing;
  }

  const clusterId = `cluster-${randomBytes(8).toString('hex')}`;
  const authority = await createAuthority(clusterId, now());
  const cluster = await createCluster(etcd, {
    clusterId,
    createdAt: timestampFromDate(now()),
    caCertificateDer: authority.certificateDer,
    caPrivateKeyDer: authority.privateKeyDer,
    ownerCertificateDer: owner.raw,
  });
  log.info(
    cluster.clusterId === clusterId
      ? `cluster ${clusterId} created, owned by ${certificateFingerprint(owner)}`
      : `cluster ${cluster.clusterId} was created by another curator meanwhile`,
  );
  return cluster;
}

function readOwnerCertificate(pem: string): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch (cause) {
    throw new Error("cannot use the owner's certificate of the node parameters: it is not an X.509 certificate", {
      cause,
    });
  }
}

async function whenStoreAnswers({ etcd, log, signal }: BootstrapOptions): Promise<ClusterRecord | undefined> {
  for (let failures = 1; ; failures++) {
    try {
      return await readCluster(etcd, { signal });
    } catch (error) {
      signal.throwIfAborted();
      const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
      log.warning(`etcd does not answer yet: ${cause instanceof Error ? cause.message : String(cause)}`);
      await sleep(systemClock, Math.min(backoffMs(failures, Math.random()), 5_000), signal);
    }
  }
}
