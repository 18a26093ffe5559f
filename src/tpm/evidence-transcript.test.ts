/** The commands of docs/evidence.md, exactly as they stand there, on genuine evidence. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { type Evidence, encodeEvidence } from '../measure/evidence.ts';
import { judge } from '../measure/judge.ts';
import { authorityOf, bootTpm, encodeLog, takeTestEvidence, testMachine } from './evidence-fixture.ts';
import {
  evidenceDocument,
  followTranscript,
  measurementsOf,
  type TranscriptOutcome,
} from './evidence-transcript-fixture.ts';
import { type SoftwareTpm, startSoftwareTpm } from './swtpm-fixture.ts';

const board = testMachine();
const log = encodeLog(board.events);
let tpm: SoftwareTpm;
let good: Evidence;
before(async () => {
  tpm = await startSoftwareTpm({ manufactured: true });
  await bootTpm(tpm, log);
  good = takeTestEvidence(tpm, log);
});
after(() => tpm[Symbol.asyncDispose]());

function follow(evidence: Evidence | string, image = board.image, authority = authorityOf(tpm)): TranscriptOutcome {
  const text = typeof evidence === 'string' ? evidence : encodeEvidence(evidence);
  return followTranscript({ evidence: text, measurements: measurementsOf(image), authority });
}

test('genuine evidence is accepted, step by step, with tpm2-tools, openssl, jq and coreutils', () => {
  const { status, stdout, stderr } = follow(good);
  assert.equal(status, 0, `${stdout}\n${stderr}`);
  assert.match(stdout, /^PCR 11: [0-9a-f]{64}$/m);
  assert.match(stdout, /^ek-certificate.pem: OK$/m);
  assert.match(stdout, /^challenge's secret: 0020[0-9a-f]{64}$/m);
  assert.match(stdout, /\naccepted\n$/);
});

test('evidence with one bit of the signature wrong, and of another image, stops the script', () => {
  const { signature } = good.quote;
  const flipped = signature.with(signature.length - 1, (signature.at(-1) ?? 0) ^ 1);
  const forged = follow({ ...good, quote: { ...good.quote, signature: flipped } });
  assert.notEqual(forged.status, 0);
  assert.doesNotMatch(forged.stdout, /magic|accepted/);
  const another = follow(good, testMachine({ content: 'another image' }).image);
  assert.notEqual(another.status, 0);
  assert.match(another.stdout, /image: is [0-9a-f]{64}, expected [0-9a-f]{64}\n$/);
});

test('the document names every check of the judge, and no other', () => {
  const verdict = judge(encodeEvidence(good), { images: [board.image], time: new Date() });
  const table = /## The checks\n([\s\S]*?)\nEvidence is \*\*accepted/.exec(evidenceDocument)?.[1] ?? '';
  const documented = [...table.matchAll(/^\| (`[^|]*) \|/gm)].flatMap(([, cell = '']) => cell.match(/[\w-]+/g) ?? []);
  assert.deepEqual(
    documented,
    verdict.checks.map(({ name }) => name),
  );
});
