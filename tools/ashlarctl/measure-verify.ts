/** `ashlarctl measure verify`: the judge on a file, without a node and without a network. */
import { maxEvidenceBytes } from '../../src/measure/evidence.ts';
import { judge } from '../../src/measure/judge.ts';
import { command } from '../host/command-line.ts';
import { printJson } from './command-options.ts';
import { readInputFile } from './input-file.ts';
import { JUDGE_OPTIONS, parseNonce, readJudgePolicy, writeReport } from './judge-options.ts';
import { verdictJson, verdictLines } from './verdict-view.ts';

export const measureVerify = command({
  name: 'verify',
  summary: 'judge evidence that a node gave',
  description:
    'FILE is from: ashlarctl node attest NODE --out FILE. docs/evidence.md says how to check it with other tools.\n' +
    'Exit code 0 when it is accepted and 1 when it is refused. What could not be compared, for want of --nonce or\n' +
    '--ek-ca, is a reservation; --strict refuses it.',
  options: {
    evidence: { type: 'string', value: 'FILE', required: true, summary: 'the evidence' },
    ...JUDGE_OPTIONS,
    nonce: { type: 'string', value: 'HEX', summary: 'the nonce that was chosen for this evidence' },
    json: { type: 'boolean', summary: 'print JSON' },
  },
  async run(values, { print }) {
    const policy = await readJudgePolicy(values);
    const nonce = values.nonce === undefined ? {} : { nonce: parseNonce(values.nonce) };
    const source = await readInputFile(values.evidence, 'the evidence', maxEvidenceBytes);
    const verdict = judge(source, { ...policy, ...nonce });
    const [format] = verdict.checks;
    // Not evidence at all: that is one line, as for any other wrong file.
    if (format?.outcome === 'failed' && !values.json) throw new Error(`${values.evidence}: ${format.detail}`);
    if (values.report !== undefined) await writeReport(values.report, source, verdict);
    if (values.json) printJson(print, verdictJson(verdict));
    else for (const line of verdictLines(verdict)) print(line);
    return verdict.accepted ? 0 : 1;
  },
});
