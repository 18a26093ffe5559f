/**
 * What the processes of agent and curator have in common: one line of output for each log line (the supervisor gives it
 * its time and name), an end on SIGTERM, and a failure that is said before it is fatal.
 */
import { setFlagsFromString } from 'node:v8';
import type { RpcLog } from './rpc-error.ts';

export interface ServiceProcess {
  readonly log: RpcLog;
  /** Aborts when the process must end. */
  readonly signal: AbortSignal;
}

/** Runs `service` to its end and exits with 0, or with 1 and its error as the last line. */
export function runService(service: (process: ServiceProcess) => Promise<void>): void {
  // Nothing here is in a hurry; without it a burst leaves tens of MB of young generation behind for good.
  setFlagsFromString('--semi-space-growth-factor=1');
  const abort = new AbortController();
  const log = processLog();
  // As the first process of its bundle, it gets no default action for signals.
  for (const name of ['SIGTERM', 'SIGINT'] as const) {
    process.on(name, () => abort.abort(new DOMException(`the process got ${name}`, 'AbortError')));
  }
  const fail = (error: unknown) => {
    log.error(`FAILED: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
    process.exit(1);
  };
  process.on('uncaughtException', fail);
  process.on('unhandledRejection', fail);
  service({ log, signal: abort.signal }).then(
    () => process.exit(0),
    (error: unknown) => (abort.signal.aborted ? process.exit(0) : fail(error)),
  );
}

/** The same, but a warning that only repeats the one before is left out for a minute: what fails is tried often. */
export function withoutRepetition(log: RpcLog, nowMs: () => number = () => performance.now()): RpcLog {
  const last = { text: '', atMs: Number.NEGATIVE_INFINITY };
  return {
    ...log,
    warning(text) {
      if (text === last.text && nowMs() - last.atMs < 60_000) return;
      Object.assign(last, { text, atMs: nowMs() });
      log.warning(text);
    },
  };
}

/** Information to standard output, the rest to standard error. A line stays a line. */
function processLog(): RpcLog {
  const write = (stream: NodeJS.WriteStream, severity: string, text: string) => {
    stream.write(`${severity}${text.replaceAll('\n', ' | ')}\n`);
  };
  return {
    info: (text) => write(process.stdout, '', text),
    warning: (text) => write(process.stderr, 'warning: ', text),
    error: (text) => write(process.stderr, 'error: ', text),
  };
}
