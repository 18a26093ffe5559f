/**
 * Runs the tests.
 *
 *   unit         *.test.ts except those below; under 60 s
 *   integration  *.integration.test.ts, with the real parts that take their time: TPM, LUKS, etcd, browser, firewall
 *   vm           qemu-tests/*.test.ts, which boot machines, as many at once as there are processors, four at most
 *   full         everything, *.full.test.ts too (fuzzing, attacks, builds with cold caches)
 *   (none)       check, unit, integration and vm: what CI runs
 */

import { randomInt } from 'node:crypto';
import { existsSync } from 'node:fs';
import { glob, readFile, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { relative } from 'node:path';
import { type EventData, run } from 'node:test';
import { spec } from 'node:test/reporters';
import { reportChecks, runChecks } from './check.ts';
import { command, runCommandLine, UsageError } from './host/command-line.ts';
import { formatDuration, type Progress } from './host/progress.ts';
import { runProcess } from './host/run-process.ts';
import { decodeTestRecord, encodeTestRecord, mergeTestRecord, type RunResult, TEST_RECORD } from './test-record.ts';

const ROOT = new URL('..', import.meta.url).pathname;
const UNIT_LIMIT_MS = 60_000;

interface Stage {
  readonly name: string;
  /** Which files, relative to the root. */
  readonly accepts: (path: string) => boolean;
  readonly concurrency: number;
  /** For one test: a hang must become a failure. */
  readonly timeoutMs: number;
}

interface StageResult extends RunResult {
  /** Of each file of the full stage, which takes too long for one run to be its only record. */
  readonly files: readonly RunResult[];
}

// Tests of the harness itself are in folders of qemu-tests/; those directly in it boot machines.
const bootsMachines = (path: string) => /^qemu-tests\/[^/]+$/.test(path);
const isFull = (path: string) => path.endsWith('.full.test.ts');
const isIntegration = (path: string) => path.endsWith('.integration.test.ts');

const UNIT: Stage = {
  name: 'unit',
  accepts: (path) => !bootsMachines(path) && !isFull(path) && !isIntegration(path),
  concurrency: Math.max(2, Math.min(8, availableParallelism())),
  timeoutMs: 120_000,
};
const INTEGRATION: Stage = {
  ...UNIT,
  name: 'integration',
  accepts: (path) => !bootsMachines(path) && isIntegration(path),
};
const VM: Stage = {
  name: 'vm',
  accepts: (path) => bootsMachines(path) && !isFull(path),
  // An emulated machine keeps one processor busy most of the time: firmware, decompression and PID 1 are one thread each.
  concurrency: Math.max(1, Math.min(4, availableParallelism())),
  timeoutMs: 20 * 60_000,
};
const FULL: Stage = { ...VM, name: 'full', accepts: isFull, timeoutMs: 4 * 3_600_000 };

/** Test files of a stage, in a stable order; `patterns` are parts of paths, any of which selects. */
async function testFiles(stage: Stage, patterns: readonly string[]): Promise<string[]> {
  const found: string[] = [];
  for (const folder of ['src', 'tools', 'bench', 'qemu-tests']) {
    for await (const path of glob(`${folder}/**/*.test.ts`, { cwd: ROOT })) found.push(path);
  }
  const selected = (path: string) => patterns.length === 0 || patterns.some((pattern) => path.includes(pattern));
  return found.filter((path) => stage.accepts(path) && selected(path)).sort();
}

/** Refuses a pattern that selects nothing: a test that was mistyped would otherwise pass. */
async function refuseUselessPatterns(stages: readonly Stage[], patterns: readonly string[]): Promise<void> {
  const files = (await Promise.all(stages.map((stage) => testFiles(stage, [])))).flat();
  const useless = patterns.filter((pattern) => !files.some((path) => path.includes(pattern)));
  if (useless.length === 0) return;
  const where = stages.map(({ name }) => name).join(', ');
  const shown = useless.map((pattern) => JSON.stringify(pattern)).join(', ');
  throw new Error(`cannot run ${shown}: no test file of ${where} has that in its path`);
}

async function runStage(stage: Stage, patterns: readonly string[], signal: AbortSignal): Promise<StageResult> {
  const files = await testFiles(stage, patterns);
  const startMs = performance.now();
  if (files.length === 0) {
    // Fine for a pattern that is about another stage; without one, a stage that lost its tests is a failure.
    return { name: stage.name, passed: patterns.length > 0, durationMs: 0, counts: 'no test files', files: [] };
  }
  console.log(`\n── ${stage.name}: ${files.length} files ──`);
  const events = run({
    files: files.map((path) => `${ROOT}${path}`),
    concurrency: stage.concurrency,
    timeout: stage.timeoutMs,
    signal,
  });
  let summary: EventData.TestSummary | undefined;
  const fileResults: RunResult[] = [];
  events.on('test:summary', (data) => {
    // One without a file name is for the whole run.
    if (data.file === undefined) summary = data;
    else fileResults.push(resultOf(relative(ROOT, data.file), data, data.duration_ms));
  });
  for await (const text of events.compose(new spec())) process.stdout.write(text as string);
  signal.throwIfAborted();
  if (summary === undefined) throw new Error(`cannot judge the ${stage.name} tests: the runner gave no summary`);
  return {
    ...resultOf(stage.name, summary, performance.now() - startMs),
    files: stage === FULL ? fileResults : [],
  };
}

function resultOf(name: string, { success, counts }: EventData.TestSummary, durationMs: number): RunResult {
  return {
    name,
    // A run in which nothing ran proves nothing.
    passed: success && counts.passed + counts.skipped > 0,
    durationMs,
    counts: `${counts.passed} passed, ${counts.tests - counts.passed - counts.skipped - counts.todo} failed, ${counts.skipped} skipped`,
  };
}

async function runCheckStage(progress: Progress, signal: AbortSignal): Promise<StageResult> {
  const startMs = performance.now();
  console.log('\n── check ──');
  const results = await runChecks(progress, signal);
  const passed = reportChecks(results, (line) => console.log(line));
  const failures = results.filter((result) => !result.passed).length;
  return {
    name: 'check',
    passed,
    durationMs: performance.now() - startMs,
    counts: `${results.length - failures} passed, ${failures} failed`,
    files: [],
  };
}

function printSummary(results: readonly StageResult[]): void {
  console.log('\n── summary ──');
  for (const { name, passed, durationMs, counts } of results) {
    console.log(`${passed ? '✔' : '✖'} ${name.padEnd(11)} ${formatDuration(durationMs).padStart(7)}  ${counts}`);
  }
}

/** Puts results into the record of full runs, beside those of files that did not run this time. */
async function record(results: readonly StageResult[], seed: string, signal: AbortSignal): Promise<void> {
  const { stdout } = await runProcess('git', ['rev-parse', '--short=12', 'HEAD'], { cwd: ROOT, signal });
  const run = { date: new Date().toISOString().slice(0, 10), commit: stdout.trim(), seed };
  const path = `${ROOT}${TEST_RECORD}`;
  const before = existsSync(path) ? decodeTestRecord(await readFile(path, 'utf8')) : [];
  const ran = results.flatMap(({ files, ...stage }) => (files.length > 0 ? files : [stage]));
  const known = ['check', UNIT.name, INTEGRATION.name, VM.name, ...(await testFiles(FULL, []))];
  await writeFile(path, encodeTestRecord(mergeTestRecord({ before, ran, run, known })));
}

const test = command({
  name: 'test',
  summary: 'runs the tests',
  description:
    'STAGE is unit, integration, vm or full; without one: check, unit, integration and vm.\nPATTERN… are parts of paths of test files.',
  options: {
    seed: { type: 'string', value: 'N', summary: 'of the random tests in "full"; a new one each time unless given' },
    record: { type: 'boolean', summary: `write what ran to ${TEST_RECORD}, by file of the full stage` },
  },
  positionals: [
    { name: 'stage', summary: 'which tests' },
    { name: 'pattern', summary: 'only files whose path contains one of these', many: true },
  ],
  run: async ({ stage, pattern, ...values }, { progress, signal }) => {
    const stages: Record<string, Stage[]> = {
      unit: [UNIT],
      integration: [INTEGRATION],
      vm: [VM],
      full: [UNIT, INTEGRATION, VM, FULL],
    };
    const chosen = stage === undefined ? [UNIT, INTEGRATION, VM] : stages[stage];
    if (chosen === undefined)
      throw new UsageError(`there are no ${JSON.stringify(stage)} tests; choose unit, integration, vm or full`);

    await refuseUselessPatterns(chosen, pattern);

    const seed = values.seed ?? String(randomInt(2 ** 31));
    process.env.ASHLAR_TEST_SEED = seed;
    // For tests that keep a record of their own, in docs/.
    if (values.record) process.env.ASHLAR_TEST_RECORD = '1';
    if (stage === 'full') console.log(`seed ${seed}: repeat this run with --seed ${seed}`);

    const results: StageResult[] = [];
    if (stage === undefined || (stage === 'full' && pattern.length === 0))
      results.push(await runCheckStage(progress, signal));
    for (const each of chosen) results.push(await runStage(each, pattern, signal));
    printSummary(results);
    const unit = results.find((result) => result.name === 'unit');
    if (unit !== undefined && unit.durationMs > UNIT_LIMIT_MS) {
      progress.warn(`the unit tests took ${formatDuration(unit.durationMs)}; they should take less than 60s`);
    }
    // Of a stage that a pattern cut down, only the files of "full" are whole.
    const whole = results.filter(({ name }) => pattern.length === 0 || name === FULL.name);
    if (values.record) await record(whole, seed, signal);
    return results.every((result) => result.passed) ? 0 : 1;
  },
});

process.exitCode = await runCommandLine(test, process.argv.slice(2));
