/**
 * The watchdogs of the machine, armed early in stage 1 and fed by the event loop: a PID 1 that no longer turns its loop
 * is reset by hardware. They stay armed across execve (closed without the magic 'V') and are opened again by stage 2,
 * well within their timeout. Nothing ever disarms them.
 */
import { listWatchdogs, type OpenWatchdog, openWatchdog } from '../linux/watchdog.ts';
import type { Logger } from '../supervisor/log-store.ts';

/** Long enough for stage 1's slowest synchronous step on an emulated machine, short enough to be worth having. */
const TIMEOUT_SECONDS = 60;
const FEED_MS = 10_000;

export interface Watchdogs {
  /** Stops feeding and leaves the devices armed, for the program that follows. */
  handOver(): void;
}

/** Arms every hardware watchdog, or the kernel's own when there is none. */
export function armWatchdogs(log: Logger): Watchdogs {
  const all = listWatchdogs();
  const hardware = all.filter((device) => !device.isSoftware);
  const open: OpenWatchdog[] = [];
  for (const device of hardware.length > 0 ? hardware : all) {
    try {
      const watchdog = openWatchdog(device, TIMEOUT_SECONDS);
      open.push(watchdog);
      log.info(`${device.path} (${device.identity}) resets the machine after ${watchdog.timeoutSeconds} s of silence`);
    } catch (error) {
      log.warning(`cannot arm ${device.path} (${device.identity}): ${String(error)}`);
    }
  }
  if (open.length === 0) log.warning('no watchdog: a hang of this machine will need a visit');
  const feed = () => {
    for (const watchdog of open) {
      try {
        watchdog.feed();
      } catch (error) {
        log.error(`cannot feed ${watchdog.device.path}: ${String(error)}`);
      }
    }
  };
  const timer = setInterval(feed, FEED_MS);
  return {
    handOver: () => {
      clearInterval(timer);
      feed();
      for (const watchdog of open) watchdog.leaveArmed();
    },
  };
}
