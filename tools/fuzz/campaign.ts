/** Every target for as long as its share says, and the record of it in docs/fuzzing.md. */
import { readFile, writeFile } from 'node:fs/promises';
import { formatDuration, type Progress } from '../host/progress.ts';
import { type FuzzResult, runFuzz } from './run-fuzz.ts';
import { keepSeeds, seedsOf } from './seeds.ts';
import { fuzzTarget, fuzzTargets } from './targets.ts';

export interface CampaignOptions {
  /** @default all */
  readonly targets?: readonly string[];
  /** Inputs for each target. @default its share of the campaign */
  readonly executions?: number;
  readonly seed: number;
  /** Threads at once; more than targets share them. @default 1 */
  readonly lanes?: number;
  readonly progress?: Progress;
  readonly signal?: AbortSignal;
}

const recordPath = new URL('../../docs/fuzzing.md', import.meta.url);
const [recordStart, recordEnd] = ['<!-- last campaign -->', '<!-- end of last campaign -->'];
/** A hang must be one under load too, beside other campaigns and tests. */
const hangMs = 60_000;
const maxGuided = 20_000;

/** @returns the results in the order of the targets */
export async function runCampaign(options: CampaignOptions): Promise<FuzzResult[]> {
  const names = options.targets ?? fuzzTargets.map((target) => target.name);
  const results = new Map<string, FuzzResult>();
  const shards = Math.max(1, Math.floor((options.lanes ?? 1) / names.length));
  const waiting = [...names];
  const lane = async (): Promise<void> => {
    for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) {
      const target = name;
      const run = (): Promise<FuzzResult> => runTarget(target, options, shards);
      results.set(target, await (options.progress?.step(`fuzz ${target}`, run) ?? run()));
    }
  };
  await Promise.all(Array.from({ length: options.lanes ?? 1 }, lane));
  return names.flatMap((name) => results.get(name) ?? []);
}

/**
 * First guided by coverage, to find inputs that reach all that can be reached; then, without V8's counters and so several
 * times as fast, from those inputs.
 */
async function runTarget(name: string, options: CampaignOptions, shards: number): Promise<FuzzResult> {
  const executions = options.executions ?? fuzzTarget(name).campaignExecutions;
  const guidedExecutions = Math.min(maxGuided, Math.ceil(executions / 4));
  const common = {
    ...{ target: name, seed: options.seed, hangMs },
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  };
  const seeds = await seedsOf(name);
  const guided = await runFuzz({ ...common, seeds, executions: guidedExecutions });
  const fast = await Promise.all(
    Array.from({ length: shards }, (_, shard) =>
      runFuzz({
        ...common,
        ...{ seed: options.seed + 1 + shard, seeds: [...seeds, ...guided.corpus] },
        ...{ executions: Math.max(1, Math.ceil((executions - guided.executions) / shards)) },
        ...{ isGuided: false, measuresCoverage: false },
      }),
    ),
  );
  return {
    ...guided,
    executions: fast.reduce((sum, part) => sum + part.executions, guided.executions),
    findings: [...guided.findings, ...fast.flatMap(({ findings }) => findings)],
    durationMs: guided.durationMs + Math.max(...fast.map(({ durationMs }) => durationMs)),
  };
}

/** Replaces the last campaign in the documentation, and the seeds by the inputs that it found to be needed. */
export async function recordCampaign(results: readonly FuzzResult[], now: Date): Promise<void> {
  const text = await readFile(recordPath, 'utf8');
  const [start, end] = [text.indexOf(recordStart), text.indexOf(recordEnd)];
  if (start < 0 || end < start) throw new Error(`cannot record the campaign: docs/fuzzing.md has no ${recordStart}`);
  const record = `${recordStart}\n\n${campaignTable(results, now)}\n\n`;
  await writeFile(recordPath, text.slice(0, start) + record + text.slice(end));
  for (const { target, corpus } of results) await keepSeeds(target, corpus);
}

function campaignTable(results: readonly FuzzResult[], now: Date): string {
  const total = results.reduce((sum, { executions }) => sum + executions, 0);
  const findings = results.reduce((sum, result) => sum + result.findings.length, 0);
  const rows = results.map((result) =>
    row([
      result.target,
      count(result.executions),
      formatDuration(result.durationMs),
      String(result.findings.length),
      String(result.corpus.length),
    ]),
  );
  const files = results.flatMap((result) =>
    result.coverage.map(({ file, taken, branches }) =>
      row([result.target, `\`${file}\``, `${taken} of ${branches}`, `${Math.round((100 * taken) / branches)} %`]),
    ),
  );
  return [
    `${now.toISOString().slice(0, 10)}, seed ${results[0]?.seed ?? 0}: ${count(total)} inputs, ${findings} findings.`,
    '',
    row(['target', 'inputs', 'time', 'findings', 'seeds kept']),
    '|---|---|---|---|---|',
    ...rows,
    '',
    row(['target', 'file', 'branches taken', '']),
    '|---|---|---|---|',
    ...files,
  ].join('\n');
}

const row = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
const count = (value: number): string => value.toLocaleString('en-US');
