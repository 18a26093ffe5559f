/**
 * What happens when PID 1 fails in a way that nothing else handles: the reason on the console and in the kernel's log,
 * disks synced, reboot. Without this Node.js would end the process, and the kernel would panic with an exit code as the
 * only explanation.
 */
import { appendFileSync, writeSync } from 'node:fs';
import { rebootNow, syncDisks } from '../linux/reboot.ts';
import { printable } from '../supervisor/log-lines.ts';
import { type Console, consoleLine } from './console.ts';

/** Time for a person, and a serial line, to read the reason. */
const REBOOT_AFTER_MS = 3_000;

export function installLastResort(console: Console): void {
  process.on('uncaughtException', (error) => fail(console, 'unexpected error', error));
  process.on('unhandledRejection', (reason) => fail(console, 'unhandled rejection', reason));
  process.on('exit', (code) => {
    // Reaching here means that the event loop ran dry or someone called exit: for PID 1 either is a fault.
    say(console, `FAILED init: PID 1 would exit with code ${code}`);
    syncDisks();
    rebootNow();
  });
}

/** Says that a stage failed, and restarts the machine. Never returns normally. */
export function failBoot(console: Console, stage: string, error: unknown): void {
  fail(console, stage, error);
}

function fail(console: Console, stage: string, error: unknown): void {
  const reason = error instanceof Error ? describe(error) : String(error);
  say(console, `FAILED ${stage}: ${reason}`);
  if (error instanceof Error && error.stack !== undefined)
    for (const line of error.stack.split('\n').slice(1, 12)) say(console, `${line.trim()}`);
  syncDisks();
  setTimeout(rebootNow, REBOOT_AFTER_MS);
}

/** An error and its causes in one line. */
function describe(error: Error): string {
  const messages: string[] = [];
  for (let at: unknown = error; at instanceof Error && messages.length < 5; at = at.cause)
    if (!messages.some((message) => message.includes((at as Error).message))) messages.push(at.message);
  return messages.join(': ');
}

function say(console: Console, text: string): void {
  const atMs = Number(process.hrtime.bigint() / 1_000_000n);
  console.writeNow(consoleLine({ name: 'init', atMs, text }));
  try {
    // <5> is "notice": not on the consoles again, but in the log that reaches pstore should the kernel go down, too.
    appendFileSync('/dev/kmsg', `<5>init: ${printable(text).slice(0, 800)}\n`);
  } catch {
    try {
      writeSync(2, `${text}\n`);
    } catch {
      // Nothing left to tell it to.
    }
  }
}
