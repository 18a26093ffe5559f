/** Runs a target in a thread of its own and watches over it: an input that never ends, or eats the heap, is a finding too. */
import { Worker } from 'node:worker_threads';
import type { FileCoverage } from './block-coverage.ts';
import type { EngineResult, Finding } from './engine.ts';

export interface FuzzOptions {
  readonly target: string;
  /** Root of the source tree whose decoder runs. @default this one */
  readonly tree?: string;
  readonly seeds: readonly Uint8Array[];
  /** Of the random numbers. */
  readonly seed: number;
  readonly executions: number;
  /** See `EngineOptions`. @default true */
  readonly isGuided?: boolean;
  /** V8's counters make decoders several times slower. @default true */
  readonly measuresCoverage?: boolean;
  /** Stop at so many. @default 10 */
  readonly maxFindings?: number;
  /** An execution that takes longer does not end. @default 20000, far above what a busy machine needs */
  readonly hangMs?: number;
  readonly signal?: AbortSignal;
}

export interface FuzzJob {
  readonly target: string;
  readonly tree: string;
  readonly seeds: readonly Uint8Array[];
  readonly seed: number;
  readonly executions: number;
  readonly isGuided: boolean;
  readonly measuresCoverage: boolean;
  readonly maxFindings: number;
  readonly shared: SharedArrayBuffer;
}

export interface WorkerReport extends EngineResult {
  readonly durationMs: number;
  readonly coverage: readonly FileCoverage[];
}

export interface FuzzResult extends WorkerReport {
  readonly target: string;
  readonly seed: number;
}

const root = new URL('../..', import.meta.url).pathname;
const heapLimitMib = 512;
const maxInputBytes = 64 * 1024;
const headerBytes = 8;

/** The thread's side: notes count and input where {@link runFuzz} reads them when the thread is stuck. */
export function announceTo(shared: SharedArrayBuffer): (input: Uint8Array) => void {
  const header = new Uint32Array(shared, 0, 2);
  const body = new Uint8Array(shared, headerBytes);
  return (input) => {
    body.set(input.length > body.length ? input.subarray(0, body.length) : input);
    header[1] = Math.min(input.length, body.length);
    Atomics.add(header, 0, 1);
  };
}

/** @throws Error when the thread fails for a reason that is not the input. */
export async function runFuzz(options: FuzzOptions): Promise<FuzzResult> {
  const { target, seed, executions, seeds, signal } = options;
  const shared = new SharedArrayBuffer(headerBytes + maxInputBytes);
  const header = new Uint32Array(shared, 0, 2);
  const job: FuzzJob = {
    target,
    tree: options.tree ?? root,
    seeds,
    seed,
    executions,
    isGuided: options.isGuided ?? true,
    measuresCoverage: options.measuresCoverage ?? true,
    maxFindings: options.maxFindings ?? 10,
    shared,
  };
  const current = (problem: string): Finding => ({
    input: new Uint8Array(shared.slice(headerBytes, headerBytes + (header[1] ?? 0))),
    problem,
  });
  const stuck = (problem: string): FuzzResult => ({
    target,
    seed,
    executions: header[0] ?? 0,
    findings: [current(problem)],
    corpus: [],
    coverage: [],
    durationMs: 0,
  });
  const worker = new Worker(new URL('./fuzz-worker.ts', import.meta.url), {
    workerData: job,
    resourceLimits: { maxOldGenerationSizeMb: heapLimitMib },
  });
  const hangMs = options.hangMs ?? 20_000;
  let timer: NodeJS.Timeout | undefined;
  try {
    return await new Promise<FuzzResult>((resolve, reject) => {
      let seen = 0;
      timer = setInterval(() => {
        const count = header[0] ?? 0;
        // None yet: the thread is still loading.
        if (count > 0 && count === seen) resolve(stuck(`does not end within ${hangMs} ms`));
        seen = count;
      }, hangMs);
      worker.once('message', (report: WorkerReport) => resolve({ target, seed, ...report }));
      worker.once('error', (error: NodeJS.ErrnoException) => {
        if (error.code === 'ERR_WORKER_OUT_OF_MEMORY') resolve(stuck(`needs over ${heapLimitMib} MiB of heap`));
        else reject(error);
      });
      worker.once('exit', (code) => reject(new Error(`cannot fuzz ${target}: the thread ended with code ${code}`)));
      signal?.addEventListener('abort', () => reject(new Error(`cannot fuzz ${target}: interrupted`)), { once: true });
    });
  } finally {
    clearInterval(timer);
    await worker.terminate();
  }
}
