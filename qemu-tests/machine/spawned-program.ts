/**
 * A long-running program of a test machine (QEMU, swtpm). It must never outlive this process, however this process
 * ends: `setpriv --pdeathsig` makes the kernel send SIGKILL when the parent dies, even by SIGKILL itself. setpriv
 * replaces itself by the program, so the process id is the program's own.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { constants } from 'node:os';

const KILL_DEADLINE_MS = 10_000;
const QUOTED_LOG_LINES = 12;

export interface SpawnedProgramOptions {
  readonly command: string;
  readonly args: readonly string[];
  /** stderr is appended here; stdout too, unless `onStdout` takes it. */
  readonly logPath: string;
  readonly onStdout?: (chunk: Buffer) => void;
}

export interface SpawnedProgram extends AsyncDisposable {
  readonly pid: number;
  /** Resolves when it has ended and its output is read: the exit code, or 128 + signal number. Never rejects. */
  readonly ended: Promise<number>;
  readonly running: boolean;
  /** SIGKILL, and the wait for the end: what it had not written is lost, as in a power cut. */
  kill(): Promise<void>;
  /** The last lines of the log, for an error message. */
  lastWords(): string;
}

/** @throws Error when the program cannot be started */
export async function spawnProgram(options: SpawnedProgramOptions): Promise<SpawnedProgram> {
  const log = openSync(options.logPath, 'a');
  let child: ChildProcess;
  try {
    child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', options.command, ...options.args], {
      stdio: ['ignore', options.onStdout === undefined ? log : 'pipe', log],
      // A Ctrl-C at the terminal is for us alone: we end our machines in order.
      detached: true,
    });
  } finally {
    closeSync(log);
  }
  if (options.onStdout !== undefined) child.stdout?.on('data', options.onStdout);
  const pid = await new Promise<number>((resolve, reject) => {
    child.once('spawn', () => resolve(child.pid as number));
    child.once('error', (error) =>
      reject(new Error(`cannot start ${options.command}: ${error.message}`, { cause: error })),
    );
  });
  let running = true;
  const ended = new Promise<number>((resolve) => {
    child.once('close', (code, signal) => {
      running = false;
      resolve(code ?? 128 + (signal === null ? 0 : constants.signals[signal]));
    });
  });
  const kill = async () => {
    if (!running) return;
    child.kill('SIGKILL');
    await withinDeadline(ended, KILL_DEADLINE_MS, `cannot end ${options.command} (process ${pid})`);
  };
  return {
    pid,
    ended,
    get running() {
      return running;
    },
    kill,
    lastWords: () => readFileSync(options.logPath, 'utf8').trimEnd().split('\n').slice(-QUOTED_LOG_LINES).join('\n'),
    [Symbol.asyncDispose]: kill,
  };
}

/** @throws Error with `complaint` when `promise` is not settled after `deadlineMs` */
export async function withinDeadline<T>(promise: Promise<T>, deadlineMs: number, complaint: string): Promise<T> {
  const { promise: expired, reject } = Promise.withResolvers<never>();
  const timer = setTimeout(() => reject(new Error(`${complaint}: nothing happened in ${deadlineMs} ms`)), deadlineMs);
  try {
    return await Promise.race([promise, expired]);
  } finally {
    clearTimeout(timer);
  }
}
