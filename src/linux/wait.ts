/** waitid(2) and waitpid(2), without ever waiting. */
import { libcFunction } from './libc.ts';

const P_ALL = 0;
const WNOHANG = 1;
const WEXITED = 4;
const WNOWAIT = 0x0100_0000;

const waitid = libcFunction('int waitid(int type, unsigned int id, void *info, int options)');
const waitpid = libcFunction('int waitpid(int pid, void *status, int options)');

/** How a process ended. */
export interface ExitStatus {
  readonly pid: number;
  /** Its exit code, or null when a signal ended it. */
  readonly code: number | null;
  /** The signal's number, or null. */
  readonly signal: number | null;
}

/** The pid of a child that has ended and not been waited for, or null. It stays as it is. `ECHILD` is null too. */
export function peekZombie(): number | null {
  // siginfo_t is 128 bytes; si_pid is at 16 and stays 0 when no child has ended.
  const info = Buffer.alloc(128);
  try {
    waitid(P_ALL, 0, info, WNOHANG | WEXITED | WNOWAIT);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ECHILD') return null;
    throw error;
  }
  const pid = info.readInt32LE(16);
  return pid === 0 ? null : pid;
}

/** Takes the exit status of a child that has ended; null while it runs, or when it is no child of this process. */
export function reap(pid: number): ExitStatus | null {
  const status = Buffer.alloc(4);
  try {
    if (waitpid(pid, status, WNOHANG) === 0) return null;
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ECHILD') return null;
    throw error;
  }
  const value = status.readInt32LE();
  const signal = value & 0x7f;
  return signal === 0 ? { pid, code: (value >> 8) & 0xff, signal: null } : { pid, code: null, signal };
}
