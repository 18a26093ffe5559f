import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { constants as osConstants } from 'node:os';
import { StringDecoder } from 'node:string_decoder';
import debianPackages from './debian-packages.json' with { type: 'json' };

/** How long a process group may take to end after SIGTERM before it gets SIGKILL. */
const TERMINATION_GRACE_MS = 5000;
const QUOTED_ERROR_LINES = 12;

export interface RunProcessOptions {
  cwd?: string;
  /** The whole environment of the process. @default this process's own */
  env?: Record<string, string>;
  /** Written to stdin, which is then closed. @default an empty stdin */
  input?: Uint8Array | string;
  /** Ends the process and everything it started. */
  signal?: AbortSignal;
  /** Sees each line as it comes, without its line end. */
  onLine?: (line: string, stream: 'stdout' | 'stderr') => void;
  /** Return a non-zero exit code instead of throwing. @default false */
  allowFailure?: boolean;
}

export interface ProcessResult {
  /** Exit code; 128 + signal number when a signal ended it. */
  code: number;
  stdout: string;
  stderr: string;
}

/** A process ended with a code other than 0. */
export class ProcessError extends Error {
  override readonly name = 'ProcessError';
  readonly command: readonly string[];
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;

  constructor(command: readonly string[], result: ProcessResult) {
    const said = result.stderr.trim() === '' ? result.stdout : result.stderr;
    const lastLines = said.trimEnd().split('\n').slice(-QUOTED_ERROR_LINES).join('\n');
    const ending = result.code > 128 ? `was ended by signal ${result.code - 128}` : `exited with ${result.code}`;
    super(`${command.map(quote).join(' ')} ${ending}${lastLines === '' ? '' : `:\n${lastLines}`}`);
    this.command = command;
    this.code = result.code;
    this.stdout = result.stdout;
    this.stderr = result.stderr;
  }
}

// What this process has running, so that its end is their end too: each child leads a process group of its own, which
// the terminal's Ctrl-C does not reach. Of the process, not of a caller, hence of the module.
const running = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of running) killGroup(child, 'SIGKILL');
});

/**
 * Runs a program without a shell and waits for its end; stdout and stderr are collected as UTF-8.
 *
 * @throws ProcessError when it exits with a code other than 0, unless `allowFailure`
 * @throws the signal's reason when aborted, after the whole process group is gone
 */
export async function runProcess(
  command: string,
  args: readonly string[],
  options: RunProcessOptions = {},
): Promise<ProcessResult> {
  options.signal?.throwIfAborted();
  const child = spawn(command, args, {
    cwd: options.cwd,
    env: options.env ?? process.env,
    stdio: ['pipe', 'pipe', 'pipe'],
    detached: true,
  });
  running.add(child);
  const stdout = collect(child.stdout, 'stdout', options.onLine);
  const stderr = collect(child.stderr, 'stderr', options.onLine);
  // A program that does not read all of its input is judged by its exit code, not by our broken pipe.
  child.stdin.on('error', () => {});
  child.stdin.end(options.input);

  let killTimer: NodeJS.Timeout | undefined;
  const onAbort = () => {
    killGroup(child, 'SIGTERM');
    killTimer = setTimeout(() => killGroup(child, 'SIGKILL'), TERMINATION_GRACE_MS);
  };
  options.signal?.addEventListener('abort', onAbort, { once: true });
  try {
    const code = await exitCode(child, command, options.cwd);
    options.signal?.throwIfAborted();
    const result = { code, stdout: stdout(), stderr: stderr() };
    if (code !== 0 && options.allowFailure !== true) throw new ProcessError([command, ...args], result);
    return result;
  } finally {
    options.signal?.removeEventListener('abort', onAbort);
    clearTimeout(killTimer);
    running.delete(child);
  }
}

function exitCode(child: ChildProcess, command: string, cwd: string | undefined): Promise<number> {
  return new Promise((resolve, reject) => {
    child.once('error', (error: NodeJS.ErrnoException) => reject(spawnError(error, command, cwd)));
    // 'close', not 'exit': the last output is in by then.
    child.once('close', (code, signal) => resolve(code ?? 128 + signalNumber(signal)));
  });
}

function spawnError(error: NodeJS.ErrnoException, command: string, cwd: string | undefined): Error {
  if (error.code !== 'ENOENT') return new Error(`cannot run ${command}: ${error.message}`, { cause: error });
  if (cwd !== undefined && !existsSync(cwd)) {
    return new Error(`cannot run ${command}: its working directory ${cwd} does not exist`, { cause: error });
  }
  const name = command.slice(command.lastIndexOf('/') + 1);
  const known = debianPackages.find((entry) => entry.binary === name);
  const wayOut = known === undefined ? '' : `; install it with: apt-get install ${known.package}`;
  return new Error(`cannot run ${command}: there is no such program${wayOut}`, { cause: error });
}

function collect(
  stream: NodeJS.ReadableStream,
  name: 'stdout' | 'stderr',
  onLine: RunProcessOptions['onLine'],
): () => string {
  const decoder = new StringDecoder('utf8');
  let text = '';
  let lineStart = 0;
  const emitLines = () => {
    if (onLine === undefined) return;
    for (let end = text.indexOf('\n', lineStart); end !== -1; end = text.indexOf('\n', lineStart)) {
      onLine(text.slice(lineStart, text[end - 1] === '\r' ? end - 1 : end), name);
      lineStart = end + 1;
    }
  };
  stream.on('data', (chunk: Buffer) => {
    text += decoder.write(chunk);
    emitLines();
  });
  stream.on('end', () => {
    text += decoder.end();
    emitLines();
    if (onLine !== undefined && lineStart < text.length) onLine(text.slice(lineStart), name);
  });
  return () => text;
}

function killGroup(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, signal);
  } catch (error) {
    // The group is gone already.
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

function signalNumber(signal: NodeJS.Signals | null): number {
  return signal === null ? 0 : osConstants.signals[signal];
}

function quote(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}
