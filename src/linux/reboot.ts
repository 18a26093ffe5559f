/** reboot(2) and sync(2). These act at once and forget what is unwritten: the ordered way is `src/init/shutdown.ts`. */
import { libcFunction } from './libc.ts';

const RB_AUTOBOOT = 0x01234567;
const RB_POWER_OFF = 0x4321fedc;
const RB_DISABLE_CAD = 0;

const rebootFunction = libcFunction('int reboot(int command)');
const syncFunction = libcFunction('void sync()');

/** Restarts the machine. Does not return when it succeeds as PID 1. */
export function rebootNow(): void {
  rebootFunction(RB_AUTOBOOT);
}

/** Switches the machine off. Does not return when it succeeds as PID 1. */
export function powerOffNow(): void {
  rebootFunction(RB_POWER_OFF);
}

/** Makes Ctrl-Alt-Del send SIGINT to PID 1 instead of restarting without a shutdown. */
export function disableCtrlAltDel(): void {
  rebootFunction(RB_DISABLE_CAD);
}

/** Writes all dirty pages of all file systems; returns when the devices have them. */
export function syncDisks(): void {
  syncFunction();
}
