/** From a context to a call: the cluster API, and the API of one node. */
import { X509Certificate } from 'node:crypto';
import type { DescService } from '@bufbuild/protobuf';
import { NODE_API_PORT } from '../../src/net/ports.ts';
import { ClusterService } from '../../src/rpc/gen/ashlar/cluster/v1/cluster_pb.ts';
import { NodeService } from '../../src/rpc/gen/ashlar/node/v1/node_pb.ts';
import { openChannel, type RpcChannel, type ServiceClient } from '../../src/rpc/grpc-client.ts';
import { splitAddress } from '../../src/rpc/pinned-server.ts';
import { CURATOR_SERVER_NAME, isNodeId, nodeServerName } from '../../src/rpc/tls-names.ts';
import { UsageError } from '../host/command-line.ts';
import { type AdviceContext, withAdvice } from './advice.ts';
import { asUsage } from './command-options.ts';
import { type Context, type ContextStore, operatorCertificate } from './contexts.ts';

/** A cluster as an operator reaches it. Every call through it fails with an error that says what to do. */
export interface ClusterConnection extends Disposable {
  readonly contextName: string;
  readonly context: Context;
  call<T>(use: (cluster: ServiceClient<typeof ClusterService>) => Promise<T>): Promise<T>;
  /** @param reference a node's ID or an unambiguous beginning of it, with or without `node-` */
  node(reference: string): Promise<NodeConnection>;
}

export interface NodeConnection {
  readonly nodeId: string;
  /** SubjectPublicKeyInfo (DER) of the one key that the node has shown in this connection's handshakes. */
  tlsSpki(): Uint8Array;
  call<T>(use: (node: ServiceClient<typeof NodeService>) => Promise<T>): Promise<T>;
}

export interface ConnectionOptions {
  readonly context?: string | undefined;
  /** `NODE=HOST:PORT` for this time only. */
  readonly overrides?: readonly string[];
  /** @default now */
  readonly now?: Date;
}

export async function connectCluster(store: ContextStore, options: ConnectionOptions): Promise<ClusterConnection> {
  const { name, context } = await store.get(options.context);
  const now = options.now ?? new Date();
  checkOperatorCertificate(name, context, now);
  const endpoints = { ...context.nodeEndpoints, ...parseOverrides(options.overrides ?? []) };
  const channels: RpcChannel[] = [];
  const connect = <S extends DescService>(
    service: S,
    server: string,
    address: string,
    serverName: string,
    onServerCertificate: (certificateDer: Uint8Array) => void = () => undefined,
  ) => {
    const channel = openChannel({
      address,
      serverName,
      trustedPem: [context.authorityPem],
      identity: context.operator,
      onServerCertificate,
    });
    channels.push(channel);
    const client = channel.client(service);
    const advice: AdviceContext = {
      server,
      address,
      now,
      credential: `the operator certificate of context ${name}`,
      wayOut: `if the cluster was made anew, run: ${takeOwnershipCommand(name, context)}`,
    };
    return async <T>(use: (client: ServiceClient<S>) => Promise<T>): Promise<T> => {
      try {
        return await use(client);
      } catch (error) {
        throw withAdvice(error, advice);
      }
    };
  };
  const call = connect(ClusterService, 'the cluster API', context.endpoint, CURATOR_SERVER_NAME);

  return {
    contextName: name,
    context,
    call,
    async node(reference) {
      // A node whose whole ID and endpoint are known can be asked while the control plane is down.
      const known = isNodeId(reference) ? (endpoints[reference] ?? endpoints['*']) : undefined;
      const { nodeId, address } =
        known === undefined ? await findNode(reference) : { nodeId: reference, address: known };
      const keys = new Map<string, Uint8Array>();
      const call = connect(NodeService, nodeId, address, nodeServerName(nodeId), (certificateDer) => {
        const spki = new X509Certificate(certificateDer).publicKey.export({ type: 'spki', format: 'der' });
        keys.set(spki.toString('base64'), spki);
      });
      return { nodeId, call, tlsSpki: () => onlyKey(nodeId, [...keys.values()]) };
    },
    [Symbol.dispose]() {
      for (const channel of channels) channel[Symbol.dispose]();
    },
  };

  async function findNode(reference: string): Promise<{ nodeId: string; address: string }> {
    const { nodes } = await call((cluster) => cluster.listNodes({}));
    const matches = nodes.filter(
      ({ nodeId }) => nodeId.startsWith(reference) || nodeId.startsWith(`node-${reference}`),
    );
    const [node] = matches;
    if (node === undefined || matches.length > 1) {
      const found = matches.length === 0 ? 'no node of that ID' : `${matches.length} nodes whose ID begins so`;
      throw new Error(
        `cannot tell which node ${JSON.stringify(reference)} is: there is ${found}; see: ashlarctl node list`,
      );
    }
    const override = endpoints[node.nodeId] ?? endpoints['*'];
    const own = node.status?.addresses[0]?.replace(/\/\d+$/, '');
    if (override === undefined && own === undefined) {
      throw new Error(
        `cannot reach ${node.nodeId}: it has not told its address yet; wait for its heartbeat, or give --endpoint-override ${node.nodeId}=HOST:PORT`,
      );
    }
    return { nodeId: node.nodeId, address: override ?? `${own?.includes(':') ? `[${own}]` : own}:${NODE_API_PORT}` };
  }
}

/** The `NODE=HOST:PORT` of `--endpoint-override` as a table. @throws UsageError that shows the form */
export function parseOverrides(entries: readonly string[]): Record<string, string> {
  return Object.fromEntries(
    entries.map((entry) => {
      const separator = entry.indexOf('=');
      const [node, address] = [entry.slice(0, separator), entry.slice(separator + 1)];
      if (separator === -1 || (node !== '*' && !isNodeId(node))) {
        throw new UsageError(
          `--endpoint-override: cannot use ${JSON.stringify(entry)}: give NODE=HOST:PORT with a whole node ID, or *=HOST:PORT for every node`,
        );
      }
      asUsage('--endpoint-override', () => splitAddress(address));
      return [node, address];
    }),
  );
}

export function takeOwnershipCommand(name: string, context: Context): string {
  return `ashlarctl cluster take-ownership --context ${name} --endpoint ${context.endpoint} --fingerprint SHA256:… --owner DIR`;
}

function onlyKey(nodeId: string, [key, ...others]: readonly Uint8Array[]): Uint8Array {
  if (key !== undefined && others.length === 0) return key;
  throw new Error(
    `cannot tell which TLS key ${nodeId} has: it showed ${key === undefined ? 'none' : `${others.length + 1} different ones`}; try again`,
  );
}

function checkOperatorCertificate(name: string, context: Context, now: Date): void {
  const { validFromDate, validToDate } = operatorCertificate(context);
  if (now > validToDate) {
    throw new Error(
      `cannot use context ${name}: its operator certificate expired at ${validToDate.toISOString()}; get a new one with: ${takeOwnershipCommand(name, context)}`,
    );
  }
  if (now < validFromDate) {
    throw new Error(
      `cannot use context ${name}: its operator certificate is valid from ${validFromDate.toISOString()} on, and this machine's clock says ${now.toISOString()}; set the clock`,
    );
  }
}
