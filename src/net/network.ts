/**
 * The network from nothing to an address, and what it says while there is none.
 *
 *   firewall loaded → loopback up → DHCP client started → an address
 *
 * The order is a promise: no packet reaches the node before the firewall stands. A silent DHCP server is no failure: the
 * client asks for ever, the node stays up, and the console tells, less and less often.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { type AddressWatchOptions, type GlobalAddress, watchAddresses } from './addresses.ts';
import { applyFirewall, type FirewallService, firewallRuleset, kernelLogsPackets } from './firewall.ts';
import { type Link, listLinks, setLinkUp } from './links.ts';

export interface NetworkOptions {
  signal: AbortSignal;
  /** All services of this node, for the firewall. */
  services: readonly FirewallService[];
  /** A line for the console and the log. */
  say: (text: string) => void;
  /** Starts the DHCP client, which the supervisor then keeps running. */
  startDhcp: () => void;
  /** The first address is there, or another one than before. Not called when the last one goes. */
  onAddress: (address: GlobalAddress) => void;
  /** Effects, for tests. */
  effects?: Partial<NetworkEffects>;
}

export interface NetworkEffects {
  loadFirewall(services: readonly FirewallService[], signal: AbortSignal): Promise<void>;
  raiseLoopback(): void;
  links(): Link[];
  addresses: AddressWatchOptions;
  /** Until the first notice that there is no address; each further wait is twice as long. @default 10000 */
  noticeFirstMs: number;
}

const NOTICE_LONGEST_MS = 600_000;

const realEffects: NetworkEffects = {
  loadFirewall: (services, signal) =>
    applyFirewall(firewallRuleset({ services, logsDrops: kernelLogsPackets() }), { signal }),
  raiseLoopback: () => setLinkUp('lo'),
  links: () => listLinks(),
  addresses: {},
  noticeFirstMs: 10_000,
};

/** Runs until the signal aborts. Throws when the firewall cannot be loaded: the network then stays down. */
export async function runNetwork(options: NetworkOptions): Promise<void> {
  const { signal, services, say, startDhcp, onAddress } = options;
  const effects = { ...realEffects, ...options.effects };
  await effects.loadFirewall(services, signal);
  effects.raiseLoopback();
  startDhcp();

  let quiet = waitNotices(effects, signal, say);
  let current: GlobalAddress | undefined;
  try {
    for await (const addresses of watchAddresses(signal, effects.addresses)) {
      const [first] = addresses;
      if (first === undefined) {
        say(`lost ${current?.cidr ?? 'the address'}`);
        quiet = waitNotices(effects, signal, say);
      } else {
        quiet.abort();
        if (first.cidr !== current?.cidr) onAddress(first);
      }
      current = first;
    }
  } finally {
    quiet.abort();
  }
}

/** Says at growing intervals that there is no address yet, and what each link looks like, until aborted. */
function waitNotices(effects: NetworkEffects, signal: AbortSignal, say: (text: string) => void): AbortController {
  const stop = new AbortController();
  const until = AbortSignal.any([signal, stop.signal]);
  const loop = async () => {
    let waitedMs = 0;
    for (let waitMs = effects.noticeFirstMs; ; waitMs = Math.min(NOTICE_LONGEST_MS, waitMs * 2)) {
      await delay(waitMs, undefined, { signal: until });
      waitedMs += waitMs;
      say(`no address after ${Math.round(waitedMs / 1000)} s, still asking by DHCP: ${describeLinks(effects.links())}`);
    }
  };
  // Its only end is the abort.
  loop().catch((error: unknown) => {
    if (!until.aborted) say(`cannot look at the links: ${error instanceof Error ? error.message : String(error)}`);
  });
  return stop;
}

/** What a person at the machine can act on: is there a card, is there a cable. */
export function describeLinks(links: readonly Link[]): string {
  const cards = links.filter((link) => link.isHardware);
  if (cards.length === 0) return 'no network card was found';
  return cards
    .map((link) => {
      const state = link.hasCarrier ? 'connected, no answer' : link.isUp ? 'no cable' : 'not switched on';
      return `${link.name} (${link.address}) ${state}`;
    })
    .join(', ');
}
