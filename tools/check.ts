/**
 * Everything about the source that can be judged without running it: format, lint (with types: a floating promise is an
 * error), types, protos. `npm run check -- --fix` formats first.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { command, runCommandLine } from './host/command-line.ts';
import type { Progress } from './host/progress.ts';
import { runProcess } from './host/run-process.ts';

const ROOT = new URL('..', import.meta.url).pathname;
/** Where TypeScript lives; biome looks at the rest too (JSON, .mjs). */
const SOURCE_FOLDERS = ['src', 'tools', 'qemu-tests', 'bench'];

export interface CheckResult {
  readonly name: string;
  readonly passed: boolean;
  /** What the tool said. */
  readonly output: string;
}

/** Runs all checks at once; each is shown as a step. */
export async function runChecks(progress: Progress, signal: AbortSignal): Promise<CheckResult[]> {
  const checks: [name: string, tool: string, args: string[]][] = [
    ['format (biome)', 'biome', ['check', '--max-diagnostics=100', '.']],
    [
      'lint (oxlint)',
      'oxlint',
      ['--deny-warnings', ...SOURCE_FOLDERS.filter((folder) => existsSync(join(ROOT, folder)))],
    ],
    ['types (tsc)', 'tsc', ['--noEmit', '--pretty', 'false', '-p', '.']],
  ];
  if (existsSync(join(ROOT, 'buf.yaml'))) checks.push(['protos (buf)', 'buf', ['lint']]);
  return Promise.all(checks.map(([name, tool, args]) => runCheck(name, tool, args, progress, signal)));
}

async function runCheck(
  name: string,
  tool: string,
  args: string[],
  progress: Progress,
  signal: AbortSignal,
): Promise<CheckResult> {
  const offence = new Error(`${name} found something`);
  let result: CheckResult | undefined;
  try {
    await progress.step(name, async () => {
      result = await runTool(name, tool, args, signal);
      if (!result.passed) throw offence;
    });
  } catch (error) {
    // For the step a finding is a failure; for the caller it is a result, and the other checks go on.
    if (error !== offence) throw error;
  }
  if (result === undefined) throw offence;
  return result;
}

/** Runs a development tool from node_modules. */
async function runTool(name: string, tool: string, args: string[], signal: AbortSignal): Promise<CheckResult> {
  const result = await runProcess(process.execPath, [join(ROOT, 'node_modules/.bin', tool), ...args], {
    cwd: ROOT,
    signal,
    allowFailure: true,
  });
  return { name, passed: result.code === 0, output: `${result.stdout}${result.stderr}`.trim() };
}

/** Prints what failed; returns whether all passed. */
export function reportChecks(results: readonly CheckResult[], print: (line: string) => void): boolean {
  const failed = results.filter((result) => !result.passed);
  for (const result of failed) print(`\n── ${result.name} ──\n${result.output}`);
  print(failed.length === 0 ? 'all checks pass' : `\nfailed: ${failed.map((result) => result.name).join(', ')}`);
  return failed.length === 0;
}

if (import.meta.main) {
  const check = command({
    name: 'check',
    summary: 'checks format, lint, types and protos',
    options: { fix: { type: 'boolean', summary: 'format the files first' } },
    run: async (values, { progress, signal, print }) => {
      if (values.fix) await runTool('format', 'biome', ['check', '--write', '.'], signal);
      return reportChecks(await runChecks(progress, signal), print) ? 0 : 1;
    },
  });
  process.exitCode = await runCommandLine(check, process.argv.slice(2));
}
