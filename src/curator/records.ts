/**
 * What is where in etcd:
 *
 *     /ashlar/v1/cluster          ClusterRecord, written once
 *     /ashlar/v1/nodes/NODEID     NodeRecord
 */
import {
  create,
  type DescMessage,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from '@bufbuild/protobuf';
import {
  type ClusterRecord,
  ClusterRecordSchema,
  type NodeRecord,
  NodeRecordSchema,
} from '../rpc/gen/ashlar/curator/v1/records_pb.ts';
import { RpcError } from '../rpc/rpc-error.ts';
import type { EtcdClient, StoredValue } from './etcd-client.ts';

const CLUSTER_KEY = '/ashlar/v1/cluster';
const NODES_PREFIX = '/ashlar/v1/nodes/';
/** Losing this often in a row means more than two writers of one record, which no flow has. */
const ATTEMPTS = 5;

export async function readCluster(
  etcd: EtcdClient,
  options?: { signal: AbortSignal },
): Promise<ClusterRecord | undefined> {
  return decode(ClusterRecordSchema, await etcd.get(CLUSTER_KEY, options));
}

/** Stores the cluster unless there is one; gives the one that is stored then. */
export async function createCluster(
  etcd: EtcdClient,
  record: MessageInitShape<typeof ClusterRecordSchema>,
): Promise<ClusterRecord> {
  await etcd.replace(CLUSTER_KEY, encode(ClusterRecordSchema, record), 0n);
  const winner = await readCluster(etcd);
  if (winner === undefined) throw new Error(`cannot read ${CLUSTER_KEY} back: it is gone`);
  return winner;
}

export async function readNode(etcd: EtcdClient, nodeId: string): Promise<NodeRecord | undefined> {
  return decode(NodeRecordSchema, await etcd.get(NODES_PREFIX + nodeId));
}

export async function listNodes(etcd: EtcdClient): Promise<NodeRecord[]> {
  const values = await etcd.list(NODES_PREFIX);
  return values.map((value) => fromBinary(NodeRecordSchema, value.value));
}

/** Changes one node's record, or makes it: `change` gets what is there and may be called again after a lost race. */
export async function updateNode(
  etcd: EtcdClient,
  nodeId: string,
  change: (before: NodeRecord | undefined) => MessageInitShape<typeof NodeRecordSchema>,
): Promise<NodeRecord> {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    const stored = await etcd.get(NODES_PREFIX + nodeId);
    const after = create(NodeRecordSchema, change(decode(NodeRecordSchema, stored)));
    if (await etcd.replace(NODES_PREFIX + nodeId, encode(NodeRecordSchema, after), stored?.revision ?? 0n))
      return after;
  }
  throw new RpcError('ABORTED', `the record of ${nodeId} kept changing meanwhile; try again`);
}

function decode<S extends DescMessage>(schema: S, stored: StoredValue | undefined): MessageShape<S> | undefined {
  // Unknown fields are kept: what a newer curator wrote survives a rewrite by an older one.
  return stored === undefined ? undefined : fromBinary(schema, stored.value);
}

function encode<S extends DescMessage>(schema: S, record: MessageInitShape<S>): Uint8Array {
  return toBinary(schema, create(schema, record));
}
