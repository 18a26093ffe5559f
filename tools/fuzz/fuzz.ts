/** `npm run fuzz`: hostile input for the decoders of foreign bytes. */
import { randomInt } from 'node:crypto';
import { availableParallelism } from 'node:os';
import { command, runCommandLine } from '../host/command-line.ts';
import { recordCampaign, runCampaign } from './campaign.ts';
import { fuzzTargets } from './targets.ts';

const fuzzCommand = command({
  name: 'fuzz',
  summary: 'tries hostile input on the decoders',
  description: `TARGET… are of ${fuzzTargets.map(({ name }) => name).join(', ')}; all unless given.\nExit code 1 when an answer breaks a promise; the input is shown in base64.`,
  options: {
    executions: {
      type: 'integer',
      value: 'N',
      minimum: 1,
      summary: "inputs for each target; its campaign's unless given",
    },
    seed: { type: 'integer', value: 'N', maximum: 2 ** 31, summary: 'of the random numbers; a new one unless given' },
    lanes: {
      type: 'integer',
      value: 'N',
      minimum: 1,
      maximum: 64,
      summary: 'threads at once; as many as processors unless given',
    },
    record: { type: 'boolean', summary: 'write the result to docs/fuzzing.md and keep the seeds; wants all targets' },
  },
  positionals: [{ name: 'target', summary: 'what to fuzz', many: true }],
  run: async ({ target, executions, record, ...values }, { print, progress, signal }) => {
    const seed = values.seed ?? randomInt(2 ** 31);
    const results = await runCampaign({
      ...{ seed, progress, signal, lanes: values.lanes ?? availableParallelism() },
      ...(target.length === 0 ? {} : { targets: target }),
      ...(executions === undefined ? {} : { executions }),
    });
    for (const result of results) {
      const [taken, branches] = (['taken', 'branches'] as const).map((key) =>
        result.coverage.reduce((sum, file) => sum + file[key], 0),
      );
      print(`${result.target}: ${result.executions} inputs, ${taken} of ${branches} branches, seed ${seed}`);
      for (const { file, missedLines } of result.coverage)
        if (missedLines.length > 0) print(`  ${file}: not taken at lines ${missedLines.join(', ')}`);
      for (const { problem, input } of result.findings)
        print(`  FINDING ${problem}\n  ${Buffer.from(input).toString('base64')}`);
    }
    if (record) await recordCampaign(results, new Date());
    return results.every(({ findings }) => findings.length === 0) ? 0 : 1;
  },
});

process.exitCode = await runCommandLine(fuzzCommand, process.argv.slice(2));
