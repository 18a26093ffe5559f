/**
 * The cluster's control plane.
 *
 *     ashlarctl ─┐                        ┌─ ClusterService       take-ownership, cluster-status, node-status
 *     agents ────┴─ mTLS ─► permissions ──┼─ NodeRegistryService  register-node, heartbeat
 *                                         └─ health, reflection          │
 *                                                                      etcd (mTLS, loopback)
 *
 * It listens only once etcd answers and the cluster exists: a curator whose port is open can serve.
 */
import { X509Certificate } from 'node:crypto';
import { timestampDate } from '@bufbuild/protobuf/wkt';
import { encodePem } from '../formats/x509.ts';
import { isDueForRenewal } from '../rpc/certificate-life.ts';
import { ClusterService, NodeRegistryService } from '../rpc/gen/ashlar/cluster/v1/cluster_pb.ts';
import type { ClusterRecord } from '../rpc/gen/ashlar/curator/v1/records_pb.ts';
import { Health } from '../rpc/gen/grpc/health/v1/health_pb.ts';
import { type ServerTls, serveGrpc } from '../rpc/grpc-server.ts';
import { implement, type RegisteredService } from '../rpc/grpc-service.ts';
import { createHealth, type HealthReporter } from '../rpc/health-service.ts';
import { identify } from '../rpc/permissions.ts';
import { createReflection } from '../rpc/reflection-service.ts';
import type { RpcLog } from '../rpc/rpc-error.ts';
import { certificateFingerprint } from '../rpc/tls-names.ts';
import { sleep, systemClock } from '../supervisor/clock.ts';
import { bootstrapCluster } from './bootstrap.ts';
import { issueCuratorCertificate, openAuthority } from './certificates.ts';
import type { Cluster } from './cluster.ts';
import { clusterStatus } from './cluster-status.ts';
import type { CuratorConfig, CuratorKeys } from './config.ts';
import { openEtcd } from './etcd-client.ts';
import { heartbeat } from './heartbeat.ts';
import { allNodes, oneNode } from './node-status.ts';
import { readCluster } from './records.ts';
import { registerNode } from './register-node.ts';
import { takeOwnership } from './take-ownership.ts';

const HEALTH_INTERVAL_MS = 5_000;

export interface CuratorOptions {
  readonly config: CuratorConfig;
  readonly keys: CuratorKeys;
  readonly log: RpcLog;
  readonly signal: AbortSignal;
  /** @default the machine's clock */
  readonly now?: () => Date;
  /** Called when it listens. */
  readonly onServing?: (port: number) => void;
}

/** Runs until the signal aborts. Rejects when it cannot go on. */
export async function runCurator(options: CuratorOptions): Promise<void> {
  const { config, keys, log, signal } = options;
  const now = options.now ?? (() => new Date());
  using etcd = openEtcd({ address: config.etcd, ...keys.etcd });
  const record = await bootstrapCluster({ etcd, ownerCertificatePem: config.ownerCertificatePem, now, log, signal });
  const cluster: Cluster = {
    clusterId: record.clusterId,
    createdAt: record.createdAt === undefined ? now() : timestampDate(record.createdAt),
    version: config.version,
    recoveryKeyFingerprint: config.recoveryKeyFingerprint,
    etcd,
    authority: openAuthority(record),
    heartbeats: new Map(),
    log,
    now,
    monotonicMs: () => performance.now(),
  };

  const health = createHealth([ClusterService.typeName, NodeRegistryService.typeName]);
  let serving = issueCuratorCertificate(cluster.authority, keys.servingKeyPem, now());
  const trust = trustOf(record, config);
  const tls = (): ServerTls => ({
    certificatePem: serving.pem,
    privateKeyPem: keys.servingKeyPem,
    trustedPem: [trust.authority, trust.owner, trust.newNode].map(({ raw }) => encodePem('CERTIFICATE', raw)),
  });
  await using server = await serveGrpc({
    listen: config.listen,
    tls: tls(),
    services: servicesOf(cluster, health),
    identify: (certificate) => identify(certificate, trust, now()),
    log,
  });
  health.set(true);
  log.info(
    `serving ${cluster.clusterId} on port ${server.port} with key ${certificateFingerprint(new X509Certificate(serving.pem))}`,
  );
  options.onServing?.(server.port);

  while (!signal.aborted) {
    await pause(HEALTH_INTERVAL_MS, signal);
    if (signal.aborted) break;
    await reportHealth(cluster, health);
    // The certificate is for us alone and costs nothing: it is not stored, and replaced before anyone misses it.
    if (isDueForRenewal(serving, now())) {
      serving = issueCuratorCertificate(cluster.authority, keys.servingKeyPem, now());
      server.setTls(tls());
      log.info(`serving certificate renewed, valid until ${serving.validToDate.toISOString()}`);
    }
  }
  log.info('ending');
  await server.close();
}

function servicesOf(cluster: Cluster, health: HealthReporter): RegisteredService[] {
  return [
    implement(ClusterService, {
      takeOwnership: (request) => takeOwnership(cluster, request),
      getClusterStatus: () => clusterStatus(cluster),
      listNodes: async () => ({ nodes: await allNodes(cluster) }),
      getNode: async ({ nodeId }) => ({ node: await oneNode(cluster, nodeId) }),
    }),
    implement(NodeRegistryService, {
      registerNode: (_request, { principal }) => registerNode(cluster, principal),
      heartbeat: (request, { principal }) => heartbeat(cluster, principal, request),
    }),
    health.service,
    createReflection([ClusterService, NodeRegistryService, Health]),
  ];
}

function trustOf(record: ClusterRecord, config: CuratorConfig) {
  return {
    authority: new X509Certificate(record.caCertificateDer),
    owner: new X509Certificate(record.ownerCertificateDer),
    newNode: new X509Certificate(config.nodeCertificatePem),
  };
}

/** Serving means: a linearizable read comes back, so etcd has its quorum. */
async function reportHealth({ etcd, log }: Cluster, health: HealthReporter): Promise<void> {
  try {
    await readCluster(etcd);
    health.set(true);
  } catch (error) {
    log.warning(`not serving: ${error instanceof Error ? error.message : String(error)}`);
    health.set(false);
  }
}

async function pause(delayMs: number, signal: AbortSignal): Promise<void> {
  // The end of the curator is no error.
  await sleep(systemClock, delayMs, signal).catch(() => undefined);
}
