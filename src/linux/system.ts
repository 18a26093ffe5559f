/** The machine as a whole: root directory, host name, clock. */
import { libcFunction } from './libc.ts';

const CLOCK_REALTIME = 0;

const chrootFunction = libcFunction('int chroot(const char *path)');
const sethostname = libcFunction('int sethostname(const char *name, size_t length)');
const clockSettime = libcFunction('int clock_settime(int clock, void *time)');

/** Makes `path` this process's root directory; follow it with `process.chdir('/')`. */
export function changeRoot(path: string): void {
  chrootFunction(path);
}

export function setHostName(name: string): void {
  sethostname(name, Buffer.byteLength(name));
}

/** Sets the wall clock. */
export function setWallClock(milliseconds: number): void {
  const time = Buffer.alloc(16);
  time.writeBigInt64LE(BigInt(Math.floor(milliseconds / 1000)), 0);
  time.writeBigInt64LE(BigInt((milliseconds % 1000) * 1_000_000), 8);
  clockSettime(CLOCK_REALTIME, time);
}
