/** What every flow of the curator works on. */
import type { RpcLog } from '../rpc/rpc-error.ts';
import type { Authority } from './certificates.ts';
import type { EtcdClient } from './etcd-client.ts';
import type { Heartbeat } from './heartbeat.ts';

export interface Cluster {
  readonly clusterId: string;
  readonly createdAt: Date;
  /** The version of this curator. */
  readonly version: string;
  /** Of the data partition below: the owner compares it at take-ownership. */
  readonly recoveryKeyFingerprint: string;
  readonly etcd: EtcdClient;
  readonly authority: Authority;
  /** The last one of each node, by node ID. */
  readonly heartbeats: Map<string, Heartbeat>;
  readonly log: RpcLog;
  now(): Date;
  /** Milliseconds that never go back. */
  monotonicMs(): number;
}
