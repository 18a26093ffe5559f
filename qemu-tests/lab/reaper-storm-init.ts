/** In place of init in a machine that was given a shell: the storm as a real PID 1, its result on the console. */
import { mountAll, STAGE1_MOUNTS } from '../../src/init/mounts.ts';
import { runReaperStorm } from '../../src/init/reaper-storm.ts';

/** An emulated machine starts a program in tens of milliseconds. */
const CHILD_DEADLINE_MS = 120_000;

async function main(): Promise<void> {
  mountAll(STAGE1_MOUNTS);
  process.env['PATH'] = '/bin';
  process.stdout.write('reaper storm: begins\n');
  const result = await runReaperStorm(CHILD_DEADLINE_MS);
  process.stdout.write(`reaper storm: ${JSON.stringify(result)}\n`);
  // PID 1 stays: its end would be a panic, which is another message.
  setInterval(() => {}, 60_000);
}

void main();
