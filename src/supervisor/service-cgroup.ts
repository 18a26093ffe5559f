/**
 * The cgroup of one service (cgroup v2, Documentation/admin-guide/cgroup-v2.rst).
 *
 *   /sys/fs/cgroup/services/NAME        limits and counters; stays between two runs of the service
 *   /sys/fs/cgroup/services/NAME/box    made and removed by crun; holds the processes
 *
 * Limits sit one level above the processes so that, when a run has ended and crun has removed its cgroup, the counters
 * still tell why: an out-of-memory kill would otherwise look like any SIGKILL.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Clock } from './clock.ts';
import { sleep } from './clock.ts';
import type { ServiceManifest } from './service-manifest.ts';

const CONTROLLERS = '+cpu +memory +pids';
const KILL_POLL_MS = 20;

export interface ServiceCgroup {
  /** For the OCI configuration: below the root of the hierarchy. */
  boxPath: string;
  /** How often the kernel killed something in here for want of memory, since the service was first started. */
  oomKills(): number;
  /** Kills every process in it, now, whatever it does; resolves when none is left or `deadlineMs` has passed. */
  kill(deadlineMs: number): Promise<void>;
}

/** Makes the cgroup of a service, with its limits. `root` is where cgroup v2 is mounted. Throws on what it cannot set. */
export function prepareServiceCgroup(root: string, manifest: ServiceManifest, clock: Clock): ServiceCgroup {
  const parent = join(root, 'services');
  const own = join(parent, manifest.name);
  const box = join(own, 'box');
  const { limits } = manifest;
  if (!existsSync(join(root, 'cgroup.controllers'))) {
    throw new Error(`cannot set limits for ${manifest.name}: cgroup v2 is not mounted at ${root}`);
  }
  mkdirSync(own, { recursive: true });
  set(root, 'cgroup.subtree_control', CONTROLLERS);
  set(parent, 'cgroup.subtree_control', CONTROLLERS);
  set(own, 'memory.max', limits.memoryMaxBytes);
  set(own, 'memory.high', limits.memoryHighBytes ?? 'max');
  // A service that lost one of its processes is not half a service: all go, and it starts again whole.
  set(own, 'memory.oom.group', 1);
  set(own, 'pids.max', limits.pidsMax);
  set(own, 'cpu.weight', limits.cpuWeight);
  return {
    boxPath: `/services/${manifest.name}/box`,
    oomKills: () => counter(join(own, 'memory.events'), 'oom_kill'),
    kill: async (deadlineMs) => {
      if (!existsSync(box)) return;
      const lateMs = clock.nowMs() + deadlineMs;
      while (isPopulated(box) && clock.nowMs() < lateMs) {
        writeIfThere(join(box, 'cgroup.kill'), '1');
        await sleep(clock, KILL_POLL_MS, new AbortController().signal);
      }
    },
  };
}

function set(cgroup: string, file: string, value: string | number): void {
  try {
    writeFileSync(join(cgroup, file), String(value));
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`cannot set ${file} of ${cgroup} to ${value}: ${reason}`, { cause });
  }
}

/** The cgroup may go away under our hands when crun removes it; then there is nothing left to kill. */
function writeIfThere(path: string, value: string): void {
  try {
    writeFileSync(path, value);
  } catch (error) {
    if (existsSync(path)) throw error;
  }
}

function isPopulated(cgroup: string): boolean {
  return counter(join(cgroup, 'cgroup.events'), 'populated') > 0;
}

/** A number of a "key value" file; 0 when the file is gone. */
function counter(path: string, key: string): number {
  let content: string;
  try {
    content = readFileSync(path, 'utf8');
  } catch {
    return 0;
  }
  const found = content.split('\n').find((line) => line.startsWith(`${key} `));
  return found === undefined ? 0 : Number(found.slice(key.length + 1));
}
