/**
 * The node's own addresses, and waiting for them.
 *
 * By looking again and again, not by rtnetlink: Node.js refuses netlink sockets, and a native reader would parse kernel
 * messages in PID 1 to save one getifaddrs (well under a millisecond) every so often. The wait for the first address
 * looks often, since the whole boot hangs on it; later changes are only news for a reader.
 */
import { networkInterfaces } from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';

export interface GlobalAddress {
  interface: string;
  family: 4 | 6;
  address: string;
  /** With the prefix length: `192.0.2.7/24`. */
  cidr: string;
}

export interface AddressWatchOptions {
  /** Between two looks while there is no address. @default 100 */
  eagerMs?: number;
  /** Between two looks once there is one. @default 5000 */
  calmMs?: number;
  /** Where addresses come from. @default globalAddresses */
  look?: () => GlobalAddress[];
}

/** Addresses that others can reach: not loopback, not link-local; IPv4 first, in the order of interfaces. */
export function globalAddresses(interfaces = networkInterfaces()): GlobalAddress[] {
  const found = Object.entries(interfaces).flatMap(([name, infos]) =>
    (infos ?? [])
      .filter((info) => !info.internal && !isLinkLocal(info.address))
      .map((info): GlobalAddress => {
        const { address } = info;
        const family = info.family === 'IPv4' ? 4 : 6;
        return { interface: name, family, address, cidr: info.cidr ?? `${address}/${family === 4 ? 32 : 128}` };
      }),
  );
  return found.sort((a, b) => a.family - b.family);
}

/** Yields the global addresses now, if any, and whenever they change, until the signal aborts. */
export async function* watchAddresses(
  signal: AbortSignal,
  { eagerMs = 100, calmMs = 5000, look = globalAddresses }: AddressWatchOptions = {},
): AsyncGenerator<GlobalAddress[], void, undefined> {
  let before = '';
  while (!signal.aborted) {
    const now = look();
    const state = now.map((one) => `${one.interface} ${one.cidr}`).join(', ');
    if (state !== before) {
      before = state;
      yield now;
    }
    // An abort only ends the wait; the loop's condition ends the watch.
    await delay(now.length === 0 ? eagerMs : calmMs, undefined, { signal }).catch(() => {});
  }
}

/** 169.254.0.0/16 (RFC 3927) and fe80::/10 (RFC 4291). */
function isLinkLocal(address: string): boolean {
  return address.startsWith('169.254.') || /^fe[89ab][0-9a-f]:/i.test(address);
}
