/** Run by reaper.test.ts as PID 1 of a namespace: orphans by the thousand beside children whose exit codes count. */
import { spawn, spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { watchChildren } from './children.ts';
import { startReaper } from './reaper.ts';

const ROUNDS = 40;
const CHILDREN = 6;
const ORPHANS_PER_CHILD = 12;

const children = watchChildren();
const reaper = startReaper({ children });
const wrong: string[] = [];

for (let round = 0; round < ROUNDS; round += 1) {
  await Promise.all(Array.from({ length: CHILDREN }, (_, index) => runChild((round * CHILDREN + index) % 250)));
  if (round % 10 === 0) {
    const { status } = spawnSync('sh', ['-c', '(true &); exit 7']);
    if (status !== 7) wrong.push(`spawnSync gave ${status}`);
  }
}
await sleep(500);
process.stdout.write(
  JSON.stringify({
    pid: process.pid,
    wrong,
    reaped: reaper.reaped,
    expected: ROUNDS * CHILDREN * ORPHANS_PER_CHILD,
    zombies: zombies(),
  }),
);
process.exit(0);

async function runChild(code: number): Promise<void> {
  // Each orphan is forked by a subshell that ends at once, so it falls to PID 1 while it runs.
  const script = `i=0; while [ $i -lt ${ORPHANS_PER_CHILD} ]; do (sleep 0.0$((i % 4)) &); i=$((i+1)); done; exit ${code}`;
  const child = spawn('sh', ['-c', script], { stdio: 'ignore' });
  const ended = new Promise<number | null>((resolve) => child.on('exit', resolve));
  const result = await Promise.race([ended, sleep(20_000, 'no exit event')]);
  if (result !== code) wrong.push(`${child.pid}: ${result} instead of ${code}`);
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
