/** The cluster's store: etcd's key-value API over gRPC with mutual TLS. Reads are linearizable. */
import {
  Compare_CompareResult,
  Compare_CompareTarget,
  KV,
  Maintenance,
  type StatusResponse,
} from '../rpc/gen/etcd/etcdserverpb/rpc_pb.ts';
import type { KeyValue } from '../rpc/gen/etcd/mvccpb/kv_pb.ts';
import { type CallOptions, openChannel } from '../rpc/grpc-client.ts';
import { RpcCallError, RpcError } from '../rpc/rpc-error.ts';

export interface EtcdOptions {
  /** `HOST:PORT` */
  readonly address: string;
  readonly caPem: string;
  readonly certificatePem: string;
  readonly privateKeyPem: string;
  /** The name in etcd's certificate. @default 'localhost' */
  readonly serverName?: string;
}

export interface StoredValue {
  readonly key: string;
  readonly value: Uint8Array;
  /** Changes with each write; 0 in `replace` means: not there yet. */
  readonly revision: bigint;
}

/** Methods fail with `RpcError` UNAVAILABLE when etcd does not answer in time or has no quorum. */
export interface EtcdClient extends Disposable {
  get(key: string, options?: CallOptions): Promise<StoredValue | undefined>;
  /** All keys that begin with `prefix`, sorted. */
  list(prefix: string): Promise<StoredValue[]>;
  /** Writes if the key is as it was at `revision`; false when someone else was faster. */
  replace(key: string, value: Uint8Array, revision: bigint): Promise<boolean>;
  status(): Promise<StatusResponse>;
}

const CALL_TIMEOUT_MS = 5_000;

export function openEtcd(options: EtcdOptions): EtcdClient {
  const channel = openChannel({
    address: options.address,
    serverName: options.serverName ?? 'localhost',
    trustedPem: [options.caPem],
    identity: options,
  });
  const kv = channel.client(KV);
  const maintenance = channel.client(Maintenance);
  return {
    get: (key, callOptions) =>
      answered(async () => {
        const { kvs } = await kv.range({ key: encode(key) }, { timeoutMs: CALL_TIMEOUT_MS, ...callOptions });
        return kvs[0] && stored(kvs[0]);
      }),
    list: (prefix) =>
      answered(async () => {
        const { kvs } = await kv.range(
          { key: encode(prefix), rangeEnd: endOfPrefix(prefix) },
          { timeoutMs: CALL_TIMEOUT_MS },
        );
        return kvs.map(stored);
      }),
    replace: (key, value, revision) =>
      answered(async () => {
        const { succeeded } = await kv.txn(
          {
            compare: [
              {
                key: encode(key),
                target: Compare_CompareTarget.MOD,
                result: Compare_CompareResult.EQUAL,
                targetUnion: { case: 'modRevision', value: revision },
              },
            ],
            success: [{ request: { case: 'requestPut', value: { key: encode(key), value } } }],
          },
          { timeoutMs: CALL_TIMEOUT_MS },
        );
        return succeeded;
      }),
    status: () => answered(() => maintenance.status({}, { timeoutMs: CALL_TIMEOUT_MS })),
    [Symbol.dispose]: () => channel[Symbol.dispose](),
  };
}

/** That etcd is away is no fault of ours and no secret: the caller is told, and may try again. */
async function answered<T>(call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (cause) {
    if (cause instanceof RpcCallError && (cause.code === 'UNAVAILABLE' || cause.code === 'DEADLINE_EXCEEDED')) {
      throw new RpcError('UNAVAILABLE', "the cluster's store does not answer; try again in a while", { cause });
    }
    throw cause;
  }
}

function stored({ key, value, modRevision }: KeyValue): StoredValue {
  return { key: Buffer.from(key).toString('utf8'), value, revision: modRevision };
}

function encode(key: string): Uint8Array {
  return Buffer.from(key, 'utf8');
}

/** etcd's range ends before this key: the prefix with its last byte raised. Prefixes here end in "/". */
function endOfPrefix(prefix: string): Uint8Array {
  const end = Buffer.from(prefix, 'utf8');
  end.writeUInt8(end.readUInt8(end.length - 1) + 1, end.length - 1);
  return end;
}
