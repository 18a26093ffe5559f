/**
 * Which blocks of which source files have run, from V8 itself. A file must be loaded after {@link startBlockCoverage}:
 * functions compiled before have no counters in their blocks.
 *
 * V8 reports per call only ranges that differ from what is around them, so no single report lists all branches. Over many
 * runs each branch that is not always taken shows up as a range of its own; the union of them is what is counted.
 * Branches inside functions that never ran are not known; such a function counts as one branch that was not taken.
 */
import { readFileSync } from 'node:fs';
import { Session } from 'node:inspector';
import { fileURLToPath } from 'node:url';

export interface FileCoverage {
  /** Relative to the source tree. */
  readonly file: string;
  readonly branches: number;
  readonly taken: number;
  /** First line of each branch not taken, ascending. */
  readonly missedLines: readonly number[];
}

interface WatchedFile {
  readonly file: string;
  readonly text: string;
  /** 1 for each character that ran in any run. */
  readonly covered: Uint8Array;
  /** The same for one report. */
  readonly painted: Uint8Array;
  /** Start and end of each branch seen. */
  readonly branches: Map<string, number>;
}

export interface BlockCoverage {
  /** Adds what ran since the last call. @returns whether something ran for the first time */
  take(): boolean;
  /** What was covered so far, for {@link restore}. */
  snapshot(): Uint8Array[];
  restore(snapshot: readonly Uint8Array[]): void;
  report(): FileCoverage[];
}

interface ScriptCoverage {
  readonly url: string;
  readonly functions: readonly {
    readonly ranges: readonly { readonly startOffset: number; readonly endOffset: number; readonly count: number }[];
  }[];
}

/** @param files by URL as they are imported: their names for the report. */
export function startBlockCoverage(files: ReadonlyMap<string, string>): BlockCoverage {
  const session = new Session();
  session.connect();
  const post = (method: string, params?: object): unknown => {
    let outcome: { error: Error | null; result: unknown } | undefined;
    // The session answers before post returns, as it is in the same thread.
    session.post(method, params, (error: Error | null, result: unknown) => {
      outcome = { error, result };
    });
    if (outcome === undefined) throw new Error(`cannot ask V8 for ${method}: no answer`);
    if (outcome.error !== null) throw new Error(`cannot ask V8 for ${method}: ${outcome.error.message}`);
    return outcome.result;
  };
  post('Profiler.enable');
  post('Profiler.startPreciseCoverage', { callCount: true, detailed: true });
  const watched = new Map<string, WatchedFile>();
  for (const [url, file] of files) {
    const text = readFileSync(fileURLToPath(url), 'utf8');
    const size = text.length + 1;
    watched.set(url, {
      file,
      text,
      covered: new Uint8Array(size),
      painted: new Uint8Array(size),
      branches: new Map(),
    });
  }
  return {
    take() {
      const { result } = post('Profiler.takePreciseCoverage') as { result: readonly ScriptCoverage[] };
      let isNew = false;
      for (const script of result) {
        const file = watched.get(script.url);
        if (file !== undefined && addReport(file, script)) isNew = true;
      }
      return isNew;
    },
    snapshot: () => [...watched.values()].map(({ covered }) => covered.slice()),
    restore(snapshot) {
      for (const [index, file] of [...watched.values()].entries()) {
        const saved = snapshot[index];
        if (saved !== undefined) file.covered.set(saved);
      }
    },
    report: () => [...watched.values()].map(reportOf),
  };
}

/** For runs that are only to be fast. */
export function noCoverage(): BlockCoverage {
  return { take: () => false, snapshot: () => [], restore: () => {}, report: () => [] };
}

function addReport(file: WatchedFile, { functions }: ScriptCoverage): boolean {
  const { painted, covered, branches } = file;
  painted.fill(0);
  // Outer ranges come first, so that inner ones paint over them.
  for (const { ranges } of functions) {
    for (const { startOffset, endOffset, count } of ranges) {
      painted.fill(count > 0 ? 1 : 0, startOffset, endOffset);
      branches.set(`${startOffset}:${endOffset}`, startOffset);
    }
  }
  let isNew = false;
  for (let at = 0; at < painted.length; at++) {
    if (painted[at] === 1 && covered[at] === 0) {
      covered[at] = 1;
      isNew = true;
    }
  }
  return isNew;
}

function reportOf({ file, text, covered, branches }: WatchedFile): FileCoverage {
  const missed = [...branches.values()].filter((start) => covered[start] === 0);
  const lines = missed.map((start) => text.slice(0, start).split('\n').length);
  return {
    file,
    branches: branches.size,
    taken: branches.size - missed.length,
    missedLines: [...new Set(lines)].toSorted((a, b) => a - b),
  };
}
