/**
 * Register: how a node becomes a member, and how a member renews its certificate.
 *
 *     node                                              curator
 *       TLS handshake with its own key ───────────────►  certificate is the one init wrote down for this machine, or
 *       RegisterNode ─────────────────────────────────►  one of the cluster: the node's ID follows from its key
 *                                                        record the node
 *       ◄─────────────── certificate for that key, CA     issue
 */

import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import type { RegisterNodeResponseSchema } from '../rpc/gen/ashlar/cluster/v1/cluster_pb.ts';
import type { Principal } from '../rpc/permissions.ts';
import { RpcError } from '../rpc/rpc-error.ts';
import { issueNodeCertificate } from './certificates.ts';
import type { Cluster } from './cluster.ts';
import { updateNode } from './records.ts';

export async function registerNode(
  cluster: Cluster,
  caller: Principal,
): Promise<MessageInitShape<typeof RegisterNodeResponseSchema>> {
  if (caller.kind !== 'node' && caller.kind !== 'new-node') {
    throw new RpcError('PERMISSION_DENIED', 'only a node registers itself');
  }
  const { nodeId, certificate: presented } = caller;
  const now = cluster.now();
  const issued = issueNodeCertificate(cluster.authority, nodeId, presented.publicKey, now);
  let isNew = false;
  await updateNode(cluster.etcd, nodeId, (before) => {
    isNew = before === undefined;
    return {
      registeredAt: timestampFromDate(now),
      ...before,
      nodeId,
      publicKeyDer: presented.publicKey.export({ type: 'spki', format: 'der' }),
      certificateNotAfter: timestampFromDate(issued.validToDate),
    };
  });
  cluster.log.info(
    `${nodeId} ${isNew ? 'registered' : 'renewed its certificate'}, valid until ${issued.validToDate.toISOString()}`,
  );
  return {
    certificateDer: issued.der,
    caCertificateDer: cluster.authority.certificate.raw,
    clusterId: cluster.clusterId,
  };
}
