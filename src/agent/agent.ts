/**
 * The node's only process that faces the network.
 *
 *     operators ── mTLS ─► NodeService ── init socket ─► init
 *                            │ certificate of the cluster, renewed at half its life
 *     curator ◄── RegisterNode, Heartbeat every 5 s
 *
 * It listens only once it has a certificate of the cluster; with one from an earlier boot, that is at once. It tries for
 * ever: a curator that is away, restarts or forgets is met again with backoff.
 */

import { isDueForRenewal, isValidAt } from '../rpc/certificate-life.ts';
import { NodeRegistryService } from '../rpc/gen/ashlar/cluster/v1/cluster_pb.ts';
import { NodeService } from '../rpc/gen/ashlar/node/v1/node_pb.ts';
import { Health } from '../rpc/gen/grpc/health/v1/health_pb.ts';
import { openChannel, type RpcChannel } from '../rpc/grpc-client.ts';
import type { ServerTls } from '../rpc/grpc-server.ts';
import { serveGrpc } from '../rpc/grpc-server.ts';
import { createHealth } from '../rpc/health-service.ts';
import { identify } from '../rpc/permissions.ts';
import { createReflection } from '../rpc/reflection-service.ts';
import { RpcCallError, type RpcLog } from '../rpc/rpc-error.ts';
import { withoutRepetition } from '../rpc/service-process.ts';
import { sleep, systemClock } from '../supervisor/clock.ts';
import { backoffMs } from '../supervisor/supervisor.ts';
import type { AgentConfig, NodeKeys } from './config.ts';
import { type InitConnection, openInitConnection } from './init-connection.ts';
import { type Membership, membershipPath, readMembership, storeMembership } from './membership.ts';
import { createNodeService } from './node-service.ts';
import { memberChannel, messageOf, register } from './register.ts';
import { nodeStatusMessage } from './status-message.ts';

const HEARTBEAT_INTERVAL_MS = 5_000;
const HEARTBEAT_TIMEOUT_MS = 4_000;
const BACKOFF_CAP_MS = 10_000;
/** So often the curator may refuse a heartbeat or end its handshake before the membership itself is doubted. */
const REFUSALS_BEFORE_REGISTERING = 3;

export interface AgentOptions {
  readonly config: AgentConfig;
  readonly keys: NodeKeys;
  /** `/data` */
  readonly dataDirectory: string;
  readonly log: RpcLog;
  readonly signal: AbortSignal;
  /** @default the machine's clock */
  readonly now?: () => Date;
  /** Called when it listens. */
  readonly onServing?: (port: number) => void;
}

/** Runs until the signal aborts. Rejects when it cannot go on. */
export async function runAgent(options: AgentOptions): Promise<void> {
  const { config, keys, log, signal } = options;
  const now = options.now ?? (() => new Date());
  const registration: RegistrationOptions = { ...options, now, log: withoutRepetition(log) };
  await using init = openInitConnection(config.initSocket);
  let member = await haveMembership(registration);

  const health = createHealth([NodeService.typeName]);
  const tls = (): ServerTls => ({
    certificatePem: member.certificatePem,
    privateKeyPem: keys.privateKeyPem,
    trustedPem: [member.authorityPem],
  });
  await using server = await serveGrpc({
    listen: config.listen,
    tls: tls(),
    services: [createNodeService(init, log), health.service, createReflection([NodeService, Health])],
    identify: (certificate) => identify(certificate, { authority: member.authority }, now()),
    log,
  });
  log.info(`serving ${config.nodeId} of ${member.clusterId} on port ${server.port}`);
  options.onServing?.(server.port);

  let channel = openChannel(memberChannel(config, keys, member));
  try {
    for (let failures = 0, refusals = 0; !signal.aborted; ) {
      if (isDueForRenewal(member.certificate, now()) || refusals >= REFUSALS_BEFORE_REGISTERING) {
        const renewed = await renew(registration, member);
        if (renewed !== undefined) {
          member = renewed;
          server.setTls(tls());
          channel[Symbol.dispose]();
          channel = openChannel(memberChannel(config, keys, member));
        }
      }
      try {
        await sendHeartbeat(init, channel, signal);
        if (failures > 0) log.info('the curator answers again');
        failures = refusals = 0;
        health.set(true);
      } catch (error) {
        if (signal.aborted) break;
        failures += 1;
        if (isRefusal(error)) refusals += 1;
        // Not the curator's absence but init's makes this API useless.
        health.set(error instanceof RpcCallError);
        registration.log.warning(`heartbeat failed: ${messageOf(error)}`);
      }
      await pause(failures === 0 ? HEARTBEAT_INTERVAL_MS : backoff(failures), signal);
    }
  } finally {
    channel[Symbol.dispose]();
  }
  log.info('ending');
  await server.close();
}

type RegistrationOptions = AgentOptions & { readonly now: () => Date };

/** The stored membership while it is valid, else a new one, however long that takes. */
async function haveMembership(options: RegistrationOptions): Promise<Membership> {
  const { config, dataDirectory, keys, log, now, signal } = options;
  const path = membershipPath(dataDirectory);
  const stored = await readMembership(path, keys).catch((error: unknown) => {
    log.warning(`${messageOf(error)}; asking for a new one`);
    return undefined;
  });
  if (stored !== undefined && isValidAt(stored.certificate, now())) return stored;
  for (let failures = 1; ; failures++) {
    try {
      return await registerAndStore(options, stored);
    } catch (error) {
      signal.throwIfAborted();
      log.warning(`cannot register with ${config.curator} yet: ${messageOf(error)}`);
      await sleep(systemClock, backoff(failures), signal);
    }
  }
}

/** One attempt; undefined when it failed, which is tried again with the next heartbeat. */
async function renew(options: RegistrationOptions, member: Membership): Promise<Membership | undefined> {
  try {
    return await registerAndStore(options, member);
  } catch (error) {
    if (!options.signal.aborted) options.log.warning(`cannot renew the node's certificate: ${messageOf(error)}`);
    return undefined;
  }
}

async function registerAndStore(options: RegistrationOptions, member: Membership | undefined): Promise<Membership> {
  const fresh = await register(options, member);
  await storeMembership(membershipPath(options.dataDirectory), fresh);
  options.log.info(`member of ${fresh.clusterId} until ${fresh.certificate.validToDate.toISOString()}`);
  return fresh;
}

async function sendHeartbeat(init: InitConnection, channel: RpcChannel, signal: AbortSignal): Promise<void> {
  const status = await init.run(async (client) =>
    nodeStatusMessage(...(await Promise.all([client.status(), client.services()]))),
  );
  await channel.client(NodeRegistryService).heartbeat({ status }, { signal, timeoutMs: HEARTBEAT_TIMEOUT_MS });
}

/** It may be that the curator does not know this node, or not any more; TLS tells a client no more than UNAVAILABLE. */
function isRefusal(error: unknown): boolean {
  return (
    error instanceof RpcCallError && ['UNAUTHENTICATED', 'FAILED_PRECONDITION', 'UNAVAILABLE'].includes(error.code)
  );
}

function backoff(failures: number): number {
  return Math.min(backoffMs(failures, Math.random()), BACKOFF_CAP_MS);
}

async function pause(delayMs: number, signal: AbortSignal): Promise<void> {
  // The end of the agent is no error.
  await sleep(systemClock, delayMs, signal).catch(() => undefined);
}
