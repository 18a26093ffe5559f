/** How the cluster sees its nodes: records from etcd, brought up to date with the heartbeats in memory. */
import type { MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromDate } from '@bufbuild/protobuf/wkt';
import { type NodeSchema, NodeState } from '../rpc/gen/ashlar/cluster/v1/cluster_pb.ts';
import type { NodeRecord } from '../rpc/gen/ashlar/curator/v1/records_pb.ts';
import { RpcError } from '../rpc/rpc-error.ts';
import type { Cluster } from './cluster.ts';
import type { Heartbeat } from './heartbeat.ts';
import { listNodes, readNode } from './records.ts';

/** Three heartbeats may be lost before a node counts as gone. */
export const STALE_AFTER_MS = 15_000;

type Node = MessageInitShape<typeof NodeSchema> & { state: NodeState };

export async function allNodes(cluster: Cluster): Promise<Node[]> {
  const records = await listNodes(cluster.etcd);
  return records.map((record) => nodeOf(record, cluster.heartbeats.get(record.nodeId), cluster.monotonicMs()));
}

export async function oneNode(cluster: Cluster, nodeId: string): Promise<Node> {
  const record = await readNode(cluster.etcd, nodeId);
  if (record === undefined) throw new RpcError('NOT_FOUND', `there is no node ${JSON.stringify(nodeId.slice(0, 80))}`);
  return nodeOf(record, cluster.heartbeats.get(record.nodeId), cluster.monotonicMs());
}

export function nodeOf(record: NodeRecord, heartbeat: Heartbeat | undefined, nowMs: number): Node {
  const status = heartbeat?.status ?? record.status;
  return {
    nodeId: record.nodeId,
    state: stateOf(record, heartbeat, nowMs),
    ...(record.registeredAt && { registeredAt: record.registeredAt }),
    ...(record.certificateNotAfter && { certificateNotAfter: record.certificateNotAfter }),
    ...(heartbeat && { lastHeartbeatAt: timestampFromDate(heartbeat.at) }),
    ...(status && { status }),
  };
}

function stateOf(record: NodeRecord, heartbeat: Heartbeat | undefined, nowMs: number): NodeState {
  if (heartbeat !== undefined && nowMs - heartbeat.atMs < STALE_AFTER_MS) return NodeState.UP;
  return heartbeat === undefined && record.status === undefined ? NodeState.NEW : NodeState.STALE;
}
