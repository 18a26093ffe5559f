/** chrony's configuration (chrony.conf(5)) from the node's parameters. */
import { isIP } from 'node:net';

export interface TimeSources {
  /** NTP servers: IP addresses, since no resolver runs on a node. */
  servers: readonly string[];
  /** PTP clocks of the machine, such as a virtual machine's view of its host's clock: `/dev/ptp0`. */
  ptpDevices: readonly string[];
}

/**
 * The text of chrony.conf. Without any source chrony runs and leaves the clock alone. Throws on a server that is not an
 * IP address, or a device that is not `/dev/ptpN`: each becomes a line of a file that a privileged program obeys.
 */
export function chronyConfiguration({ servers, ptpDevices }: TimeSources): string {
  for (const server of servers) {
    if (isIP(server) === 0) {
      throw new Error(`cannot use the time server ${JSON.stringify(server)}: it is not an IP address`);
    }
  }
  for (const device of ptpDevices) {
    if (!/^\/dev\/ptp\d{1,3}$/.test(device)) {
      throw new Error(`cannot use the clock ${JSON.stringify(device)}: it is not /dev/ptpN`);
    }
  }
  return [
    ...servers.map((server) => `server ${server} iburst`),
    ...ptpDevices.map((device) => `refclock PHC ${device} poll 2`),
    // A clock that is far off at boot jumps; later it only drifts, so that a liar cannot throw it about.
    'makestep 1.0 3',
    // The kernel writes the time to the hardware clock, for the next boot.
    'rtcsync',
    // A client only: no port is open. Its control socket stays, in RAM that no other process sees: with neither that nor
    // a server to ask, chrony would end with "Nothing to do".
    'port 0',
    'cmdport 0',
    'pidfile /run/chronyd.pid',
    '',
  ].join('\n');
}
