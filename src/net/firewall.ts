/**
 * The node's packet filter, as nft's JSON (libnftables-json(5)): what is not named here does not come in, and does not
 * go out. Services share the host's network and are told apart by the uid that made the socket (meta skuid).
 *
 * It is loaded before the first link goes up, replaces itself in one transaction, and never has a moment without rules.
 * JSON, because it cannot be misread through quoting.
 */
import { spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { CLUSTER_API_PORT, DHCP_CLIENT_PORT, DHCP_SERVER_PORT, NODE_API_PORT, NTP_PORT } from './ports.ts';

/** Of a service's manifest what the filter must know. */
export interface FirewallService {
  readonly name: string;
  readonly uid: number;
  /** Its TCP ports answer from its own sockets only. */
  readonly listens: readonly number[];
}

export interface FirewallOptions {
  /** All that run on this node. */
  services: readonly FirewallService[];
  /** TCP ports open to everyone, where a service listens on them. @default the cluster API and the node API */
  openTcpPorts?: readonly number[];
  /** Say dropped packets in the kernel's log, a few a minute. @default true */
  logsDrops?: boolean;
}

/** A statement or expression of libnftables-json(5). */
export type NftValue = string | number | readonly NftValue[] | { readonly [key: string]: NftValue | null };
export interface NftRuleset {
  readonly nftables: readonly NftValue[];
}

const FAMILY = 'inet';
const TABLE = 'ashlar';
/** Echo requests answered a second; more are dropped, so that pings cost no more than this. */
const ECHO_PER_SECOND = 20;
const LOGGED_PER_MINUTE = 6;
const NFT_DEADLINE_MS = 20_000;

/** The uids that a socket can have; packets of the kernel itself have none and match no comparison of it. */
const ANY_UID = { range: [0, 0xffff_fffe] };

/** The whole ruleset: whatever comes in, would be forwarded or goes out is dropped unless a rule lets it pass. */
export function firewallRuleset({
  services,
  openTcpPorts = [CLUSTER_API_PORT, NODE_API_PORT],
  logsDrops = true,
}: FirewallOptions): NftRuleset {
  const open = openTcpPorts.filter((port) => services.some(({ listens }) => listens.includes(port)));
  const input = [
    rule('input', [isOneOf(ctState, ['established', 'related']), accept]),
    // etcd, and the agent's way to the curator.
    rule('input', [is(meta('iifname'), 'lo'), accept]),
    rule('input', [is(ctState, 'invalid'), counter, drop]),
    ...icmpRules(),
    rule('input', [is(field('udp', 'sport'), DHCP_SERVER_PORT), is(field('udp', 'dport'), DHCP_CLIENT_PORT), accept]),
    ...open.map((port) => rule('input', [is(field('tcp', 'dport'), port), is(ctState, 'new'), counter, accept])),
    ...(logsDrops ? [rule('input', [limit(LOGGED_PER_MINUTE, 'minute'), log])] : []),
    rule('input', [counter, drop]),
  ];
  return {
    nftables: [
      // add, delete, add: also right when the table is not there yet, and one transaction.
      { add: { table: { family: FAMILY, name: TABLE } } },
      { delete: { table: { family: FAMILY, name: TABLE } } },
      { add: { table: { family: FAMILY, name: TABLE } } },
      chain('input', 'drop'),
      chain('forward', 'drop'),
      chain('output', 'drop'),
      ...input,
      ...outputRules(services, open, logsDrops),
      rule('forward', [counter, drop]),
    ],
  };
}

/** ICMP, IGMP, ICMPv6, as numbers: a node has no /etc/protocols. */
const KERNEL_PROTOCOLS = [1, 2, 58];

/** What each service may begin beyond loopback; one that is not here begins nothing. */
const outgoingOf = (): Readonly<Record<string, readonly NftValue[]>> => ({
  agent: [is(field('tcp', 'dport'), CLUSTER_API_PORT)],
  chrony: [is(field('udp', 'dport'), NTP_PORT)],
  // Renewals. Its first requests are frames of their own, which no packet filter sees.
  dhcpcd: [is(field('udp', 'sport'), DHCP_CLIENT_PORT), is(field('udp', 'dport'), DHCP_SERVER_PORT)],
});

/**
 * The order matters: whoever took a port of another service is silenced first, also on loopback; then what services may
 * say; then everything else of a process, init's included, is dropped; and last what the kernel says by itself. That is
 * neighbour discovery, multicast reports, ICMP errors and echo replies, and segments of connections whose socket no
 * process holds: not yet accepted, or closed with data still on the way.
 */
function outputRules(services: readonly FirewallService[], open: readonly number[], logsDrops: boolean): NftValue[] {
  const outgoing = outgoingOf();
  const ofAnyProcess = is(meta('skuid'), ANY_UID);
  const listeners = services.flatMap(({ uid, listens }) => listens.map((port) => ({ uid, port })));
  return [
    ...listeners.map(({ uid, port }) =>
      rule('output', [is(field('tcp', 'sport'), port), isNot(meta('skuid'), uid), counter, drop]),
    ),
    rule('output', [is(meta('oifname'), 'lo'), accept]),
    ...listeners
      .filter(({ port }) => open.includes(port))
      .map(({ uid, port }) =>
        rule('output', [is(meta('skuid'), uid), is(field('tcp', 'sport'), port), is(ctState, 'established'), accept]),
      ),
    ...services.flatMap(({ name, uid }) => {
      const begins = Object.hasOwn(outgoing, name) ? outgoing[name] : undefined;
      return begins === undefined ? [] : [rule('output', [is(meta('skuid'), uid), ...begins, accept])];
    }),
    ...(logsDrops ? [rule('output', [ofAnyProcess, limit(LOGGED_PER_MINUTE, 'minute'), log])] : []),
    rule('output', [ofAnyProcess, counter, drop]),
    rule('output', [isOneOf(meta('l4proto'), KERNEL_PROTOCOLS), accept]),
    rule('output', [isOneOf(ctState, ['established', 'related']), accept]),
    rule('output', [counter, drop]),
  ];
}

/**
 * ICMP that IP does not work without. Errors that belong to a connection are `related` already. Neighbour discovery has
 * no rate limit: a flood would use it up and cut the node off. Its hop limit of 255 says that it was not routed here
 * (RFC 4861 §6.1.2, §7.1.1).
 */
function icmpRules(): NftValue[] {
  const neighbours = ['nd-neighbor-solicit', 'nd-neighbor-advert', 'nd-router-advert'];
  const errors = ['destination-unreachable', 'packet-too-big', 'time-exceeded', 'parameter-problem'];
  const listeners = ['mld-listener-query', 'mld-listener-report', 'mld-listener-done', 'mld2-listener-report'];
  return [
    rule('input', [isOneOf(field('icmpv6', 'type'), neighbours), is(field('ip6', 'hoplimit'), 255), accept]),
    rule('input', [isOneOf(field('icmpv6', 'type'), [...errors, ...listeners]), limit(100, 'second'), accept]),
    rule('input', [is(field('icmp', 'type'), 'echo-request'), limit(ECHO_PER_SECOND, 'second'), accept]),
    rule('input', [is(field('icmpv6', 'type'), 'echo-request'), limit(ECHO_PER_SECOND, 'second'), accept]),
  ];
}

/**
 * Whether the kernel can write packets to its log. Where it cannot (no CONFIG_NF_LOG_SYSLOG), a ruleset that asks for it
 * is refused as a whole, and a node without drops in its log is better than one without a firewall.
 */
export function kernelLogsPackets(procfs = '/proc'): boolean {
  try {
    return readFileSync(`${procfs}/net/netfilter/nf_log`, 'utf8').includes('nf_log_ipv4');
  } catch {
    return false;
  }
}

export interface NftCommand {
  /** The program and arguments before ours. @default ['/usr/sbin/nft'] */
  command?: readonly string[];
  /** The file the ruleset is handed over in, which stays as a record. @default '/run/ashlar/firewall.json' */
  file?: string;
  signal?: AbortSignal;
}

/**
 * Loads a ruleset with nft. Rejects with nft's own words when it is refused; the old rules then still stand.
 *
 * The ruleset goes through a file: for `-f -` nft opens /dev/stdin, and neither is there such a link on a node, nor can
 * a socket, which is what Node.js gives a child as its pipe, be opened that way (ENXIO).
 */
export async function applyFirewall(ruleset: NftRuleset, options: NftCommand = {}): Promise<void> {
  const [nft, ...before] = options.command ?? ['/usr/sbin/nft'];
  const file = options.file ?? '/run/ashlar/firewall.json';
  if (nft === undefined) throw new Error('cannot load the firewall: no program was named');
  writeFileSync(file, JSON.stringify(ruleset), { mode: 0o600 });
  const deadline = AbortSignal.timeout(NFT_DEADLINE_MS);
  const child = spawn(nft, [...before, '-j', '-f', file], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: {},
    signal: options.signal === undefined ? deadline : AbortSignal.any([options.signal, deadline]),
    killSignal: 'SIGKILL',
  });
  let complaint = '';
  child.stderr.on('data', (chunk: Buffer) => {
    if (complaint.length < 4096) complaint += chunk.toString('utf8');
  });
  await new Promise<void>((resolve, reject) => {
    child.once('error', (cause) => reject(new Error(`cannot load the firewall: ${cause.message}`, { cause })));
    child.once('close', (code, killedBy) => {
      if (code === 0) resolve();
      else reject(new Error(`cannot load the firewall: nft ended with ${killedBy ?? code}: ${complaint.trim()}`));
    });
  });
}

// ---- the vocabulary of libnftables-json that is used here

const accept = { accept: null };
const drop = { drop: null };
const counter = { counter: { packets: 0, bytes: 0 } };
const log = { log: { prefix: 'ashlar drop: ', level: 'info' } };
const ctState = { ct: { key: 'state' } };

function meta(key: string): NftValue {
  return { meta: { key } };
}

function field(protocol: string, name: string): NftValue {
  return { payload: { protocol, field: name } };
}

function is(left: NftValue, right: NftValue): NftValue {
  return { match: { op: left === ctState ? 'in' : '==', left, right } };
}

function isNot(left: NftValue, right: NftValue): NftValue {
  return { match: { op: '!=', left, right } };
}

function isOneOf(left: NftValue, values: readonly (string | number)[]): NftValue {
  return { match: { op: left === ctState ? 'in' : '==', left, right: left === ctState ? values : { set: values } } };
}

function limit(rate: number, per: 'second' | 'minute'): NftValue {
  return { limit: { rate, per, burst: rate } };
}

function chain(name: string, policy: 'drop'): NftValue {
  const base = { type: 'filter', hook: name, prio: 0, policy };
  return { add: { chain: { family: FAMILY, table: TABLE, name, ...base } } };
}

function rule(chainName: string, expr: readonly NftValue[]): NftValue {
  return { add: { rule: { family: FAMILY, table: TABLE, chain: chainName, expr } } };
}
