/**
 * The record of full test runs, `docs/full-test-result.md`: one row for each stage and each file of the full stage, from
 * the last run in which it ran. Together they take hours, so no single run need hold all of them. Pure.
 */

export const TEST_RECORD = 'docs/full-test-result.md';

export interface RunResult {
  /** A stage, or the path of a test file. */
  readonly name: string;
  readonly passed: boolean;
  readonly durationMs: number;
  readonly counts: string;
}

export interface TestRecordRow {
  readonly name: string;
  readonly result: string;
  readonly time: string;
  readonly counts: string;
  readonly date: string;
  readonly commit: string;
  readonly seed: string;
}

const COLUMNS = ['name', 'result', 'time', 'counts', 'date', 'commit', 'seed'] as const;
const HEADINGS = ['what', 'result', 'time', 'tests', 'date', 'commit', 'seed'];
const TITLE = '# The last full test run';
const INTRODUCTION =
  'Each row is from the last run with `npm run test:full -- --record` in which it ran; `--seed` repeats its random tests.';

export function encodeTestRecord(rows: readonly TestRecordRow[]): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  const table = rows.map((row) => line(COLUMNS.map((column) => row[column])));
  return [TITLE, '', INTRODUCTION, '', line(HEADINGS), `|${'---|'.repeat(COLUMNS.length)}`, ...table, ''].join('\n');
}

/** Rows of a record; lines of any other form are passed over. */
export function decodeTestRecord(text: string): TestRecordRow[] {
  return text.split('\n').flatMap((line) => {
    const cells = line.split('|').slice(1, -1);
    const [name = '', result = '', time = '', counts = '', date = '', commit = '', seed = ''] = cells.map((cell) =>
      cell.trim(),
    );
    const isRow = cells.length === COLUMNS.length && (result === 'passed' || result === 'FAILED');
    return isRow ? [{ name, result, time, counts, date, commit, seed }] : [];
  });
}

/** @param options.known names that still exist, in the order of the record; rows of others are dropped */
export function mergeTestRecord(options: {
  readonly before: readonly TestRecordRow[];
  readonly ran: readonly RunResult[];
  readonly run: Pick<TestRecordRow, 'date' | 'commit' | 'seed'>;
  readonly known: readonly string[];
}): TestRecordRow[] {
  const { before, ran, run, known } = options;
  const now = ran.map(({ name, passed, durationMs, counts }) => ({
    name,
    result: passed ? 'passed' : 'FAILED',
    time: `${Math.round(durationMs / 1000)} s`,
    counts,
    ...run,
  }));
  return known.flatMap((name) => {
    const row = [...now, ...before].find((candidate) => candidate.name === name);
    return row === undefined ? [] : [row];
  });
}
