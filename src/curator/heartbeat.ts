/**
 * Heartbeat: how the cluster knows that a node lives. When it last did is kept in memory: after a restart of the curator
 * a node is STALE until its next heartbeat, seconds later. What it says of itself is written to etcd only when a part
 * changed that lasts, so that an idle cluster writes nothing.
 */
import { clone, type MessageInitShape, toBinary } from '@bufbuild/protobuf';
import { durationFromMs } from '@bufbuild/protobuf/wkt';
import type { HeartbeatRequest, HeartbeatResponseSchema } from '../rpc/gen/ashlar/cluster/v1/cluster_pb.ts';
import { type NodeStatus, NodeStatusSchema } from '../rpc/gen/ashlar/node/v1/node_pb.ts';
import type { Principal } from '../rpc/permissions.ts';
import { RpcError } from '../rpc/rpc-error.ts';
import type { Cluster } from './cluster.ts';
import { readNode, updateNode } from './records.ts';

export const HEARTBEAT_INTERVAL_MS = 5_000;

/** What the curator remembers of a node between heartbeats. */
export interface Heartbeat {
  readonly at: Date;
  /** Milliseconds that never go back. */
  readonly atMs: number;
  readonly status: NodeStatus;
  /** The lasting part, as it is stored. */
  readonly stored: Uint8Array;
}

export async function heartbeat(
  cluster: Cluster,
  caller: Principal,
  { status }: HeartbeatRequest,
): Promise<MessageInitShape<typeof HeartbeatResponseSchema>> {
  if (caller.kind !== 'node') throw new RpcError('PERMISSION_DENIED', 'only a registered node has a heartbeat');
  const { nodeId } = caller;
  if (status === undefined || status.nodeId !== nodeId) {
    throw new RpcError(
      'FAILED_PRECONDITION',
      `the status is of ${status?.nodeId || 'no node'}, the caller is ${nodeId}`,
    );
  }
  const before = cluster.heartbeats.get(nodeId);
  const storedBefore = before?.stored ?? (await storedStatus(cluster, nodeId));
  const lasting = lastingPart(status);
  const stored = toBinary(NodeStatusSchema, lasting);
  if (Buffer.compare(storedBefore, stored) !== 0) {
    await updateNode(cluster.etcd, nodeId, (record) => {
      if (record === undefined) throw notRegistered(nodeId);
      return { ...record, status: lasting };
    });
  }
  if (before !== undefined && before.status.bootId !== status.bootId) cluster.log.info(`${nodeId} has rebooted`);
  cluster.heartbeats.set(nodeId, { at: cluster.now(), atMs: cluster.monotonicMs(), status, stored });
  return { next: durationFromMs(HEARTBEAT_INTERVAL_MS) };
}

async function storedStatus(cluster: Cluster, nodeId: string): Promise<Uint8Array> {
  const record = await readNode(cluster.etcd, nodeId);
  if (record === undefined) throw notRegistered(nodeId);
  return record.status === undefined ? new Uint8Array() : toBinary(NodeStatusSchema, record.status);
}

function notRegistered(nodeId: string): RpcError {
  return new RpcError('FAILED_PRECONDITION', `${nodeId} is not registered; call RegisterNode first`);
}

/** Without what is different at each heartbeat. */
function lastingPart(status: NodeStatus): NodeStatus {
  const lasting = clone(NodeStatusSchema, status);
  delete lasting.memory;
  lasting.pid1RssBytes = 0n;
  // The clock moves while it is being set, and the start of the kernel is computed from it.
  delete lasting.bootTime;
  for (const service of lasting.services) service.inStateMs = 0;
  return lasting;
}
