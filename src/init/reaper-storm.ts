/**
 * Orphans by the thousand beside children whose exit codes count: a test of the reaper, for whoever is PID 1. Needs a
 * shell, so it runs in a PID namespace of the host (reaper.integration.test.ts) or in a machine that was given one.
 */
import { spawn, spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { watchChildren } from './children.ts';
import { startReaper } from './reaper.ts';

const ROUNDS = 40;
const CHILDREN = 6;
const ORPHANS_PER_CHILD = 12;
/** How long the last orphans may take to end and be reaped. */
const CALM_DEADLINE_MS = 10_000;

export interface StormResult {
  readonly pid: number;
  /** Children whose exit event was wrong, or never came. */
  readonly wrong: readonly string[];
  readonly reaped: number;
  /** At least so many orphans fell to PID 1. */
  readonly expected: number;
  /** Zombies when it was over. */
  readonly zombies: number;
}

/** @param childDeadlineMs for the exit event of one child; a child runs a dozen programs */
export async function runReaperStorm(childDeadlineMs: number): Promise<StormResult> {
  using children = watchChildren();
  using reaper = startReaper({ children });
  const wrong: string[] = [];
  for (let round = 0; round < ROUNDS; round += 1) {
    const codes = Array.from({ length: CHILDREN }, (_, index) => (round * CHILDREN + index) % 250);
    await Promise.all(
      codes.map(async (code) => {
        const result = await runChild(code, childDeadlineMs);
        if (result !== code) wrong.push(`exit event ${result} instead of ${code}`);
      }),
    );
    if (round % 10 === 0) {
      const { status } = spawnSync('sh', ['-c', '(true &); exit 7']);
      if (status !== 7) wrong.push(`spawnSync gave ${status}`);
    }
  }
  const expected = ROUNDS * CHILDREN * ORPHANS_PER_CHILD;
  // The last orphans still run when their children's exit codes are in.
  const isCalm = () => reaper.reaped >= expected && zombies() === 0;
  for (let waitedMs = 0; !isCalm() && waitedMs < CALM_DEADLINE_MS; waitedMs += 100) await sleep(100);
  return { pid: process.pid, wrong, reaped: reaper.reaped, expected, zombies: zombies() };
}

async function runChild(code: number, deadlineMs: number): Promise<number | null | 'no exit event'> {
  // Each orphan is forked by a subshell that ends at once, so it falls to PID 1 while it runs.
  const script = `i=0; while [ $i -lt ${ORPHANS_PER_CHILD} ]; do (sleep 0.0$((i % 4)) &); i=$((i+1)); done; exit ${code}`;
  const child = spawn('sh', ['-c', script], { stdio: 'ignore' });
  const ended = new Promise<number | null>((resolve) => child.on('exit', resolve));
  const late = new AbortController();
  try {
    return await Promise.race([ended, sleep(deadlineMs, 'no exit event' as const, { signal: late.signal })]);
  } finally {
    late.abort();
  }
}

function zombies(): number {
  return readdirSync('/proc').filter((name) => {
    if (!/^\d+$/.test(name)) return false;
    try {
      return /^\d+ \(.*\) Z/.test(readFileSync(`/proc/${name}/stat`, 'latin1'));
    } catch {
      return false;
    }
  }).length;
}
