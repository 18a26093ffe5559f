/**
 * PID 1's entry. The same bundle runs twice in one boot: in the initramfs as stage 1, and from the verified system
 * partition as stage 2, which stays. It does nothing when it is not PID 1.
 */
import { existsSync } from 'node:fs';
import { createLogStore, type LogEntry } from '../supervisor/log-store.ts';
import { readStage1Record, startTimeline } from './boot-record.ts';
import { consoleLine, openConsole } from './console.ts';
import { failBoot, installLastResort } from './last-resort.ts';
import { mountAll, STAGE1_MOUNTS } from './mounts.ts';
import { runStage1 } from './stage1.ts';
import { runStage2 } from './stage2.ts';

async function main(): Promise<void> {
  const isStage1 = existsSync('/etc/initrd-release');
  // The console's devices come with /dev and /sys, so even it has to wait for these.
  if (isStage1) mountAll(STAGE1_MOUNTS);
  const console = openConsole();
  installLastResort(console);
  const logStore = createLogStore();
  // Node's own warnings (an experimental API) would go to standard error, past the queue.
  process.removeAllListeners('warning');
  process.on('warning', (warning) => logStore.append('init.node', 'DEBUG', warning.message));

  const name = isStage1 ? 'init.stage1' : 'init.stage2';
  try {
    if (isStage1) {
      logStore.onEntry((entry) => console.write(consoleLine(entry)));
      const stage = { console, logStore, log: logStore.logger(name), timeline: startTimeline(logStore) };
      await runStage1(stage);
    } else {
      const stage1 = await readStage1Record();
      const timeline = startTimeline(logStore, stage1.timeline);
      // Before the console listens: it has shown these.
      for (const { name: from, severity, atMs, text } of stage1.log)
        logStore.append(from, severity, `(${(atMs / 1000).toFixed(3)}) ${text}`);
      logStore.onEntry((entry) => {
        if (isForConsole(entry)) console.write(consoleLine(entry));
      });
      await runStage2({ console, logStore, log: logStore.logger(name), timeline }, stage1);
    }
  } catch (error) {
    failBoot(console, name.slice('init.'.length), error);
  }
}

/** The console shows init's own log, and of everything else that it failed. */
function isForConsole({ name, severity }: LogEntry): boolean {
  if (severity === 'ERROR') return true;
  return severity !== 'DEBUG' && (name === 'init' || name.startsWith('init.'));
}

if (process.pid === 1) void main();
