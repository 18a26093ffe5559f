/** The commands of docs/evidence.md on every kind of forged evidence. Each run takes seconds. */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { type Evidence, encodeEvidence } from '../measure/evidence.ts';
import { authorityOf, bootTpm, encodeLog, takeTestEvidence, testMachine } from './evidence-fixture.ts';
import { followTranscript, measurementsOf, type TranscriptOutcome } from './evidence-transcript-fixture.ts';
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

test('evidence of a TPM in this test is accepted', () => {
  const { status, stdout, stderr } = follow(good);
  assert.equal(status, 0, `${stdout}\n${stderr}`);
  assert.match(stdout, /\naccepted\n$/);
});

test('forged evidence stops the script at the step that is about it', () => {
  const other = testMachine({ content: 'another image' }).image;
  const flipped = (bytes: Uint8Array, at = bytes.length - 1) => bytes.with(at, (bytes[at] ?? 0) ^ 1);
  const { activation, quote, ek } = good;
  const edited = board.events.map((event, index) => (index === 0 ? { ...event, data: Buffer.from('x') } : event));
  const forgeries: [TranscriptOutcome, RegExp][] = [
    [
      follow({ ...good, pcrs: new Map(good.pcrs).set(15, new Uint8Array(32)) }),
      /PCR digest: is [0-9a-f]{64}, expected/,
    ],
    [follow({ ...good, eventLog: encodeLog(edited) }), /PCR 0: is/],
    [
      follow({ ...good, activation: { ...activation, credentialBlob: flipped(activation.credentialBlob) } }),
      /HMAC: is/,
    ],
    [follow({ ...good, activation: { ...activation, random: flipped(activation.random) } }), /HMAC: is/],
    [follow(good, other), /image: is [0-9a-f]{64}, expected/],
    [follow(good, { ...board.image, authenticode: other.authenticode }), /boot applications: is/],
  ];
  for (const [{ status, stdout }, reason] of forgeries) {
    assert.notEqual(status, 0);
    assert.match(stdout, reason);
  }
  // These tools say it themselves, or say nothing.
  const silent: TranscriptOutcome[] = [
    follow({ ...good, nonce: flipped(good.nonce) }),
    follow({ ...good, tlsSpki: flipped(good.tlsSpki) }),
    follow({ ...good, quote: { ...quote, signature: flipped(quote.signature) } }),
    follow({ ...good, quote: { ...quote, attest: flipped(quote.attest) } }),
    follow(good, { ...board.image, pcr7: { profile: '00'.repeat(32) } }),
    follow({ ...good, ek: { ...ek, certificates: [flipped(ek.certificates[0] ?? new Uint8Array(1), 500)] } }),
    follow({ ...good, ek: { ...ek, certificates: [authorityOf(tpm)] } }),
    follow(encodeEvidence(good).replace('ashlar-evidence/1', 'ashlar-evidence/2')),
  ];
  for (const { status, stdout } of silent) {
    assert.notEqual(status, 0, stdout);
    assert.doesNotMatch(stdout, /accepted/);
  }
});
