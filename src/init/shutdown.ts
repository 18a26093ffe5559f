/**
 * The ordered shutdown. Whatever starts something registers how it ends; the steps then run in reverse order, each with
 * a deadline, so that no step that hangs keeps the machine from going down. Last come the things that always hold: no
 * process outside PID 1's own cgroup is left, no file system is dirty.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { listMappings, removeMapping } from '../linux/device-mapper.ts';
import { isErrno } from '../linux/libc.ts';
import { MNT_DETACH, MS_RDONLY, MS_REMOUNT, mount, unmount } from '../linux/mount.ts';
import { powerOffNow, rebootNow, syncDisks } from '../linux/reboot.ts';
import type { Logger } from '../supervisor/log-store.ts';
import type { Console } from './console.ts';
import type { StopAction } from './signals.ts';

const CGROUP_ROOT = '/sys/fs/cgroup';
/** PID 1's own, which lives on. */
const INIT_CGROUP = 'init';
const KILL_DEADLINE_MS = 5_000;
const UNMOUNT_DEADLINE_MS = 3_000;
/** The system's mapping holds the running program, so it stays until the machine is off. */
const SYSTEM_MAPPING = 'ashlar-system';

export interface ShutdownStep {
  /** What it does, for the console: `stop the services`. */
  readonly name: string;
  readonly deadlineMs: number;
  readonly run: () => Promise<void> | void;
}

export interface Shutdown {
  /** Registers a step; it runs before those registered earlier. */
  use(step: ShutdownStep): void;
  /** Begins; later calls change nothing. Resolves when nothing is left but to wait for the machine. */
  begin(action: StopAction, reason: string): Promise<void>;
  /** Aborts when the shutdown begins. */
  readonly signal: AbortSignal;
}

/** `endMachine` is injected by tests. */
export function createShutdown(
  log: Logger,
  console: Pick<Console, 'flush'>,
  endMachine: (action: StopAction) => void = endNow,
): Shutdown {
  const steps: ShutdownStep[] = [];
  const began = new AbortController();
  const run = async (action: StopAction, reason: string) => {
    log.info(`${action === 'reboot' ? 'restarting' : 'switching off'}: ${reason}`);
    began.abort(new Error(reason));
    for (const step of steps.reverse()) await runStep(step, log);
    // The fixed words that tests wait for are said by the log named `init`.
    log.info('shutdown complete');
    await console.flush();
    endMachine(action);
  };
  let running: Promise<void> | null = null;
  return {
    use: (step) => void steps.push(step),
    begin: (action, reason) => {
      running ??= run(action, reason);
      return running;
    },
    signal: began.signal,
  };
}

async function runStep(step: ShutdownStep, log: Logger): Promise<void> {
  const late = new AbortController();
  try {
    const outcome = await Promise.race([
      Promise.resolve(step.run()).then(() => 'done' as const),
      sleep(step.deadlineMs, 'late' as const, { signal: late.signal }),
    ]);
    if (outcome === 'late') log.error(`${step.name}: not done within ${step.deadlineMs} ms, going on without`);
    else log.info(`${step.name}: done`);
  } catch (error) {
    log.error(`${step.name}: ${error instanceof Error ? error.message : String(error)}`);
  } finally {
    late.abort();
  }
}

/** Kills every process outside PID 1's cgroup and waits until they are gone. */
export async function killRemainingProcesses(): Promise<void> {
  const groups = readdirSync(CGROUP_ROOT, { withFileTypes: true })
    .filter((entry) => entry.isDirectory() && entry.name !== INIT_CGROUP)
    .map((entry) => `${CGROUP_ROOT}/${entry.name}`);
  for (const group of groups) if (existsSync(`${group}/cgroup.kill`)) writeFileSync(`${group}/cgroup.kill`, '1');
  const isEmpty = (group: string) => !/^populated 1$/m.test(readFileSync(`${group}/cgroup.events`, 'ascii'));
  for (let waitedMs = 0; !groups.every(isEmpty); waitedMs += 50) {
    if (waitedMs >= KILL_DEADLINE_MS) throw new Error(`processes of ${groups.join(', ')} survive SIGKILL`);
    await sleep(50);
  }
}

/** Unmounts a file system that was in use until a moment ago; what still holds it leaves it read-only and clean. */
export async function unmountWithRetry(target: string): Promise<void> {
  for (let waitedMs = 0; ; waitedMs += 50) {
    try {
      unmount(target);
      return;
    } catch (error) {
      if (isErrno(error, 'EINVAL')) return; // not mounted
      if (!isErrno(error, 'EBUSY')) throw error;
      if (waitedMs >= UNMOUNT_DEADLINE_MS) break;
    }
    await sleep(50);
  }
  mount({ source: 'none', target, flags: MS_REMOUNT | MS_RDONLY });
  unmount(target, MNT_DETACH);
  throw new Error(`${target} was still in use; it is read-only now`);
}

/** Removes every device mapping but the system's: with dm-crypt's go the keys in the kernel's memory. */
export function closeMappings(): void {
  for (const name of listMappings().filter((one) => one !== SYSTEM_MAPPING)) removeMapping(name);
}

function endNow(action: StopAction): void {
  syncDisks();
  if (action === 'reboot') rebootNow();
  else powerOffNow();
}
