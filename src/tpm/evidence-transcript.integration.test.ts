/** The commands of docs/evidence.md, exactly as they stand there, on evidence of a node; and the judge on the same. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decodeAllowedImage } from '../measure/allowed-image.ts';
import { decodeEvidence } from '../measure/evidence.ts';
import { judge } from '../measure/judge.ts';
import { evidenceDocument, evidenceSample, followTranscript } from './evidence-transcript-fixture.ts';

const sample = evidenceSample();
const { time, nonce, tlsSpki } = decodeEvidence(sample.evidence);
const image = decodeAllowedImage(sample.measurements, 'the sample');
const policy = { images: [image], time, nonce, tlsSpki, ekAuthorities: [sample.authority] };

test('evidence of a node is accepted, step by step, with tpm2-tools, openssl, jq and coreutils', () => {
  const { status, stdout, stderr } = followTranscript(sample);
  assert.equal(status, 0, `${stdout}\n${stderr}`);
  assert.match(stdout, /^PCR 11: [0-9a-f]{64}$/m);
  assert.match(stdout, /^ek-certificate.pem: OK$/m);
  assert.match(stdout, /^challenge's secret: 0020[0-9a-f]{64}$/m);
  assert.match(stdout, /\naccepted\n$/);
});

test('the judge accepts the same, without reservation', () => {
  const verdict = judge(sample.evidence, policy);
  assert.deepEqual(
    verdict.checks.filter(({ outcome }) => outcome === 'failed'),
    [],
  );
  assert.equal(verdict.accepted, true);
  assert.deepEqual(verdict.reservations, []);
});

test('one digit of the nonce changed stops the script at the quote, and is what the judge says', () => {
  const digit = /"nonce": "(.)/.exec(sample.evidence)?.[1] ?? '';
  const evidence = sample.evidence.replace(`"nonce": "${digit}`, `"nonce": "${digit === '0' ? '1' : '0'}`);
  const { status, stdout } = followTranscript({ ...sample, evidence });
  assert.notEqual(status, 0);
  assert.doesNotMatch(stdout, /magic|accepted/);
  const failed = judge(evidence, policy).checks.filter(({ outcome }) => outcome === 'failed');
  assert.deepEqual(
    failed.map(({ name }) => name),
    ['nonce', 'qualifying-data'],
  );
});

test('the document names every check of the judge, and no other', () => {
  const table = /## The checks\n([\s\S]*?)\nEvidence is \*\*accepted/.exec(evidenceDocument)?.[1] ?? '';
  const documented = [...table.matchAll(/^\| (`[^|]*) \|/gm)].flatMap(([, cell = '']) => cell.match(/[\w-]+/g) ?? []);
  assert.deepEqual(
    documented,
    judge(sample.evidence, policy).checks.map(({ name }) => name),
  );
});
