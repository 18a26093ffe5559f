/**
 * Take ownership: how the owner gets, for an operator's key, a certificate of the cluster.
 *
 *     ashlarctl                                         curator
 *       compares the server's key with the console
 *       TLS handshake with the owner's key ───────────►  certificate is the one in the cluster's record
 *       TakeOwnership(operator's public key) ─────────►  check the key and the name
 *       ◄──────────────────── operator certificate, CA    issue; nothing is stored
 *       compares the recovery key         and the fingerprint of this node's recovery key
 */
import { createPublicKey, type KeyObject } from 'node:crypto';
import type { MessageInitShape } from '@bufbuild/protobuf';
import type { TakeOwnershipRequest, TakeOwnershipResponseSchema } from '../rpc/gen/ashlar/cluster/v1/cluster_pb.ts';
import { RpcError } from '../rpc/rpc-error.ts';
import { issueOperatorCertificate } from './certificates.ts';
import type { Cluster } from './cluster.ts';

export async function takeOwnership(
  cluster: Cluster,
  request: TakeOwnershipRequest,
): Promise<MessageInitShape<typeof TakeOwnershipResponseSchema>> {
  const name = checkOperatorName(request.operatorName);
  const publicKey = readPublicKey(request.publicKeyDer);
  const issued = issueOperatorCertificate(cluster.authority, name, publicKey, cluster.now());
  cluster.log.info(`the owner certified operator ${name}, valid until ${issued.validToDate.toISOString()}`);
  return {
    certificateDer: issued.der,
    caCertificateDer: cluster.authority.certificate.raw,
    clusterId: cluster.clusterId,
    recoveryKeyFingerprint: cluster.recoveryKeyFingerprint,
  };
}

function checkOperatorName(name: string): string {
  if (/^[a-z0-9][a-z0-9._-]{0,62}$/.test(name)) return name;
  throw new RpcError(
    'INVALID_ARGUMENT',
    `the operator's name ${JSON.stringify(name.slice(0, 80))} must be 1 to 63 of a-z 0-9 . _ -, not beginning with . _ -`,
  );
}

function readPublicKey(der: Uint8Array): KeyObject {
  const wanted = 'the public key must be an EC P-256 SubjectPublicKeyInfo';
  let key: KeyObject;
  try {
    key = createPublicKey({ key: Buffer.from(der), format: 'der', type: 'spki' });
  } catch (cause) {
    throw new RpcError('INVALID_ARGUMENT', wanted, { cause });
  }
  if (key.asymmetricKeyType !== 'ec' || key.asymmetricKeyDetails?.namedCurve !== 'prime256v1') {
    throw new RpcError('INVALID_ARGUMENT', `${wanted}; this one is ${key.asymmetricKeyType}`);
  }
  return key;
}
