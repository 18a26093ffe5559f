/**
 * Register and renew, the node's side (the curator's is src/curator/register-node.ts).
 *
 *     a member whose certificate is valid  → known by it, trusts the cluster's CA
 *     everyone else, and a member refused  → known by its self-signed certificate, trusts the pinned key of the curator
 */

import { isValidAt } from '../rpc/certificate-life.ts';
import { NodeRegistryService } from '../rpc/gen/ashlar/cluster/v1/cluster_pb.ts';
import { type ChannelOptions, openChannel } from '../rpc/grpc-client.ts';
import { pinnedServer } from '../rpc/pinned-server.ts';
import type { RpcLog } from '../rpc/rpc-error.ts';
import { CURATOR_SERVER_NAME } from '../rpc/tls-names.ts';
import type { AgentConfig, NodeKeys } from './config.ts';
import { type Membership, membershipOf } from './membership.ts';

export interface RegisterOptions {
  readonly config: AgentConfig;
  readonly keys: NodeKeys;
  readonly now: () => Date;
  readonly log: RpcLog;
  readonly signal: AbortSignal;
}

/** Tries once, in both ways where there are two. Rejects with what the last one said. */
export async function register(options: RegisterOptions, member: Membership | undefined): Promise<Membership> {
  const { config, keys, log, signal, now } = options;
  if (member !== undefined && isValidAt(member.certificate, now())) {
    try {
      return await registerThrough(memberChannel(config, keys, member), keys, signal);
    } catch (error) {
      signal.throwIfAborted();
      log.warning(`not recognised as a member of ${member.clusterId}: ${messageOf(error)}`);
    }
  }
  const pinned = await pinnedServer(config.curator, CURATOR_SERVER_NAME, config.curatorSpkiSha256, { signal });
  const firstContact: ChannelOptions = {
    address: config.curator,
    serverName: CURATOR_SERVER_NAME,
    trustedPem: [pinned],
    identity: keys,
  };
  return registerThrough(firstContact, keys, signal);
}

/** How a member reaches the curator. */
export function memberChannel(config: AgentConfig, keys: NodeKeys, member: Membership): ChannelOptions {
  return {
    address: config.curator,
    serverName: CURATOR_SERVER_NAME,
    trustedPem: [member.authorityPem],
    identity: { certificatePem: member.certificatePem, privateKeyPem: keys.privateKeyPem },
  };
}

async function registerThrough(options: ChannelOptions, keys: NodeKeys, signal: AbortSignal): Promise<Membership> {
  using channel = openChannel(options);
  return membershipOf(await channel.client(NodeRegistryService).registerNode({}, { signal }), keys);
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
