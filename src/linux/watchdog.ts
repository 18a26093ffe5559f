/** Watchdog devices (uapi/linux/watchdog.h). Once open, one must be fed or the machine resets. */
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { ioctl } from './ioctl.ts';

const WDIOC_KEEPALIVE = 0x80045705;
const WDIOC_SETTIMEOUT = 0xc0045706;

export interface WatchdogDevice {
  /** `/dev/watchdog0` */
  readonly path: string;
  /** The driver's name for it, `i6300ESB timer`. */
  readonly identity: string;
  /** A kernel timer, not hardware: it does not fire when the kernel itself hangs. */
  readonly isSoftware: boolean;
}

export interface OpenWatchdog {
  readonly device: WatchdogDevice;
  /** What the driver made of the timeout that was asked for. */
  readonly timeoutSeconds: number;
  feed(): void;
  /** Closes without the magic 'V': the device stays armed, for the next program to open and feed. */
  leaveArmed(): void;
}

/** The machine's watchdogs, in the kernel's order. */
export function listWatchdogs(sysfs = '/sys'): WatchdogDevice[] {
  const directory = `${sysfs}/class/watchdog`;
  let names: string[];
  try {
    names = readdirSync(directory);
  } catch {
    return [];
  }
  return names.sort().map((name) => {
    const identity = readFileSync(`${directory}/${name}/identity`, 'utf8').trim();
    return { path: `/dev/${name}`, identity, isSoftware: identity === 'Software Watchdog' };
  });
}

/** Opens, and so arms, a watchdog. Throws `LinuxError` or the error of open (`EBUSY`: another program feeds it). */
export function openWatchdog(device: WatchdogDevice, timeoutSeconds: number): OpenWatchdog {
  const fd = openSync(device.path, 'w');
  const timeout = Buffer.alloc(4);
  timeout.writeInt32LE(timeoutSeconds);
  try {
    ioctl(fd, WDIOC_SETTIMEOUT, timeout);
  } catch (error) {
    // It is armed by now with the driver's own timeout; an unfed watchdog that nobody holds would reset us.
    ioctl(fd, WDIOC_KEEPALIVE, 0);
    closeSync(fd);
    throw error;
  }
  return {
    device,
    timeoutSeconds: timeout.readInt32LE(),
    feed: () => void ioctl(fd, WDIOC_KEEPALIVE, 0),
    leaveArmed: () => closeSync(fd),
  };
}
