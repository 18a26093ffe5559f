/**
 * A coverage-guided fuzzer for one target: mutates inputs, keeps those that reach code which none reached before, and
 * reports every answer that breaks a promise.
 *
 * Asking V8 for coverage costs more than a thousand small decodes, so it is asked once per batch; the inputs of a batch that
 * reached something new are then found by halving it.
 */
import type { BlockCoverage } from './block-coverage.ts';
import { type FuzzTarget, isRefusal } from './fuzz-target.ts';
import { mutate } from './mutator.ts';

export interface Finding {
  readonly input: Uint8Array;
  readonly problem: string;
}

export interface EngineOptions {
  readonly target: FuzzTarget;
  readonly decode: (input: Uint8Array) => void;
  readonly coverage: BlockCoverage;
  /** Ask for coverage as it goes, to keep what reaches something new. Costs time that a short run with good seeds saves. */
  readonly isGuided: boolean;
  readonly seeds: readonly Uint8Array[];
  readonly random: () => number;
  readonly executions: number;
  /** Stop at so many findings. */
  readonly maxFindings: number;
  /** Called before each execution, so that an input that never ends is known outside. */
  readonly announce: (input: Uint8Array) => void;
}

export interface EngineResult {
  readonly executions: number;
  readonly findings: readonly Finding[];
  /** The smallest inputs that reach everything that was reached. */
  readonly corpus: readonly Uint8Array[];
}

const smallestBatch = 32;
const largestBatch = 2048;

export function fuzz(options: EngineOptions): EngineResult {
  const { target, coverage, random, executions, maxFindings } = options;
  const corpus: Uint8Array[] = [];
  const findings = new Map<string, Finding>();
  let done = 0;
  const isOver = (): boolean => done >= executions || findings.size >= maxFindings;

  const run = (input: Uint8Array): void => {
    options.announce(input);
    done += 1;
    try {
      options.decode(input);
    } catch (error) {
      if (isRefusal(error)) return;
      const problem = problemOf(withStack(options.decode, input) ?? error);
      // One finding for one place; the smallest input tells most.
      const known = findings.get(problem);
      if (known === undefined || input.length < known.input.length) {
        findings.set(problem, { input: input.slice(), problem });
      }
    }
  };
  const runAll = (inputs: readonly Uint8Array[]): boolean => {
    for (const input of inputs) {
      if (findings.size >= maxFindings) break;
      run(input);
    }
    return options.isGuided && coverage.take();
  };
  /** Adds to the corpus those of `inputs` that reach something new. */
  const keepNew = (inputs: readonly Uint8Array[]): void => {
    const before = coverage.snapshot();
    if (!runAll(inputs)) return;
    if (inputs.length === 1) return void corpus.push(...inputs);
    coverage.restore(before);
    const middle = inputs.length >> 1;
    keepNew(inputs.slice(0, middle));
    keepNew(inputs.slice(middle));
  };

  /** Of the corpus, what is needed to reach all that it reaches, small inputs first. */
  const smallest = (): Uint8Array[] => {
    const reached = coverage.snapshot();
    coverage.restore(reached.map(({ length }) => new Uint8Array(length)));
    const needed = corpus
      .toSorted((a, b) => a.length - b.length)
      .filter((input) => {
        run(input);
        return coverage.take();
      });
    coverage.restore(reached);
    return needed;
  };

  // Most inputs are refused, and a stack trace costs more than the refusal.
  Error.stackTraceLimit = 0;
  coverage.take();
  const seeds = options.seeds.map((seed) => seed.slice(0, target.maxBytes));
  if (options.isGuided) for (const seed of seeds) keepNew([seed]);
  else runAll(seeds);
  let batchSize = smallestBatch;
  while (!isOver()) {
    const pool = corpus.length > 0 ? corpus : seeds;
    const batch = Array.from({ length: Math.min(batchSize, executions - done) }, () => {
      const [parent = new Uint8Array(0), other = new Uint8Array(0)] = [choose(pool, random), choose(pool, random)];
      if (target.mutate !== undefined && random() < 0.5) return target.mutate(parent, random);
      return mutate(parent, other, { random, dictionary: target.dictionary, maxBytes: target.maxBytes });
    });
    const before = options.isGuided ? coverage.snapshot() : [];
    if (runAll(batch)) {
      coverage.restore(before);
      keepNew(batch);
      batchSize = Math.max(smallestBatch, batchSize >> 1);
    } else {
      batchSize = Math.min(largestBatch, batchSize * 2);
    }
  }
  coverage.take();
  return { executions: done, findings: [...findings.values()], corpus: options.isGuided ? smallest() : [] };
}

/** Later inputs reach rarer places, and are chosen more often. */
function choose(pool: readonly Uint8Array[], random: () => number): Uint8Array | undefined {
  const position = random() < 0.5 ? random() : Math.sqrt(random());
  return pool[Math.floor(position * pool.length)];
}

/** The error that the input gives, this time with where it came from. */
function withStack(decode: (input: Uint8Array) => void, input: Uint8Array): unknown {
  Error.stackTraceLimit = 10;
  try {
    decode(input);
    return undefined;
  } catch (error) {
    return error;
  } finally {
    Error.stackTraceLimit = 0;
  }
}

/** The error and where it came from, without the numbers that differ from input to input. */
function problemOf(error: unknown): string {
  if (!(error instanceof Error)) return `threw ${String(error)}`;
  const place = error.stack?.split('\n').find((line) => /\/(src|tools)\//.test(line) && !line.includes('fuzz-target'));
  return `${error.name}: ${error.message.replace(/\d+/g, 'N')}${place === undefined ? '' : ` (${place.trim().replace(/\(.*\/(src|tools)\//, '($1/')})`}`;
}
