/** The cluster at a glance. */
import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import type { GetClusterStatusResponseSchema, NodeState } from '../rpc/gen/ashlar/cluster/v1/cluster_pb.ts';
import { certificateFingerprint } from '../rpc/tls-names.ts';
import type { Cluster } from './cluster.ts';
import { allNodes } from './node-status.ts';

export async function clusterStatus(
  cluster: Cluster,
): Promise<MessageInitShape<typeof GetClusterStatusResponseSchema>> {
  const [etcd, nodes] = await Promise.all([cluster.etcd.status(), allNodes(cluster)]);
  const counts = new Map<NodeState, number>();
  for (const { state } of nodes) counts.set(state, (counts.get(state) ?? 0) + 1);
  return {
    clusterId: cluster.clusterId,
    createdAt: timestampFromDate(cluster.createdAt),
    version: cluster.version,
    caFingerprint: certificateFingerprint(cluster.authority.certificate),
    caNotAfter: timestampFromDate(cluster.authority.certificate.validToDate),
    etcd: {
      version: etcd.version,
      databaseBytes: etcd.dbSize,
      leader: etcd.leader,
      raftTerm: etcd.raftTerm,
      raftIndex: etcd.raftIndex,
      errors: etcd.errors,
    },
    nodes: [...counts].map(([state, count]) => ({ state, count })),
  };
}
