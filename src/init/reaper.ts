/**
 * Orphans become children of PID 1 and stay zombies until it waits for them. This reaper waits for exactly those that
 * libuv does not own, each by its pid; waitpid(-1) would steal libuv's children and with them their exit events.
 *
 * It runs on SIGCHLD and, because signals coalesce and a zombie can be skipped while its exit event is under way, at
 * intervals too. All of it happens on the event loop's thread, where libuv spawns and waits, so neither can come between
 * looking at a pid and waiting for it.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { type ExitStatus, peekZombie, reap } from '../linux/wait.ts';
import type { ChildRegistry } from './children.ts';

const INTERVAL_MS = 5_000;

export interface Reaper extends Disposable {
  /** How many orphans were reaped. */
  readonly reaped: number;
}

export interface ReaperOptions {
  readonly children: ChildRegistry;
  /** Called for each orphan after it was waited for. */
  readonly onReaped?: (status: ExitStatus) => void;
}

export function startReaper({ children, onReaped }: ReaperOptions): Reaper {
  let reaped = 0;
  const take = (pid: number) => {
    const status = children.owns(pid) ? null : reap(pid);
    if (status === null) return false;
    reaped += 1;
    onReaped?.(status);
    return true;
  };
  const sweep = () => {
    // The kernel shows its first zombie only, and would show it again for ever while it is libuv's: so the fast way ends
    // at the first that is not ours, and only then the list of all children is walked.
    for (let zombie = peekZombie(); zombie !== null; zombie = peekZombie()) {
      if (take(zombie)) continue;
      for (const pid of listChildren()) take(pid);
      return;
    }
  };
  process.on('SIGCHLD', sweep);
  const timer = setInterval(sweep, INTERVAL_MS);
  timer.unref();
  sweep();
  return {
    get reaped() {
      return reaped;
    },
    [Symbol.dispose]: () => {
      process.off('SIGCHLD', sweep);
      clearInterval(timer);
    },
  };
}

/** Pids of this process's children, zombies too. Children of every thread: an orphan goes to any of them. */
function listChildren(): number[] {
  const pids: number[] = [];
  for (const thread of readdirSync('/proc/self/task')) {
    const list = readFileSync(`/proc/self/task/${thread}/children`, 'ascii').trim();
    if (list !== '') pids.push(...list.split(' ').map(Number));
  }
  return pids;
}
