import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { FormatError } from '../formats/byte-reader.ts';
import { mutations } from '../formats/fixtures.ts';
import { decodeEvidence, type Evidence, encodeEvidence, quotedPcrs } from './evidence.ts';
import { credentialRandomBytes } from './make-credential.ts';

const bytes = (minLength: number, maxLength = minLength) =>
  fc.uint8Array({ minLength, maxLength }).map((value) => Buffer.from(value));
const word = fc.string({ minLength: 1, maxLength: 40 }).filter((text) => !/\p{Cc}/u.test(text));
const blob = bytes(1, 300);

const evidence: fc.Arbitrary<Evidence> = fc.record(
  {
    node: fc.record({ id: word, version: word, bootId: word }, { noNullPrototype: true }),
    time: fc.date({ min: new Date(0), max: new Date('2200-01-01'), noInvalidDate: true }),
    nonce: bytes(32),
    tlsSpki: blob,
    ek: fc.record({ publicArea: blob, certificates: fc.array(blob, { maxLength: 3 }) }, { noNullPrototype: true }),
    ak: fc.record({ publicArea: blob }, { noNullPrototype: true }),
    activation: fc.record(
      { credentialBlob: blob, encryptedSecret: blob, secret: bytes(32), random: bytes(credentialRandomBytes) },
      { noNullPrototype: true },
    ),
    quote: fc.record({ attest: blob, signature: blob }, { noNullPrototype: true }),
    pcrs: fc
      .array(bytes(32), { minLength: 16, maxLength: 16 })
      .map((values) => new Map(values.map((value, index) => [index, value]))),
    eventLog: blob,
  },
  { noNullPrototype: true },
);

const [sample = {} as Evidence] = fc.sample(evidence, { numRuns: 1, seed: 4 });
/** The sample's text after a change of its document. */
function changed(change: (document: Record<string, never>) => void): string {
  const document = JSON.parse(encodeEvidence(sample)) as Record<string, never>;
  change(document);
  return JSON.stringify(document);
}

test('evidence round-trips', () => {
  fc.assert(fc.property(evidence, (value) => assert.deepEqual(decodeEvidence(encodeEvidence(value)), value)));
  const sealing = { policyRef: 'r', policyKeyFingerprint: 'f', pcr7: '00'.repeat(32), generation: 1, anchor: 'ok' };
  assert.deepEqual(decodeEvidence(encodeEvidence({ ...sample, sealing })).sealing, sealing);
});

test('what is not as documented is refused, with its place', () => {
  const refused: [string | Uint8Array, RegExp][] = [
    ['', /it is not JSON/],
    ['[]', /must be an object/],
    [`\ufeff${encodeEvidence(sample)}`, /it is not JSON/],
    [Buffer.from(`\ufeff${encodeEvidence(sample)}`), /it is not JSON/],
    [Buffer.of(0xff, 0xfe), /not valid/],
    [' '.repeat(4 * 1024 * 1024 + 1), /over the limit/],
    [changed((it) => Object.assign(it, { format: 'ashlar-evidence/2' })), /format must be one of ashlar-evidence\/1/],
    [changed((it) => Object.assign(it, { extra: 1 })), /extra is not a key/],
    [changed((it) => Object.assign(it, { nonce: 'AB'.repeat(32) })), /nonce must match/],
    [changed((it) => Object.assign(it, { nonce: 'ab' })), /nonce must have 64/],
    [changed((it) => Object.assign(it, { time: '2026-13-01T00:00:00.000Z' })), /time is not a moment/],
    [changed((it) => Object.assign(it, { eventLog: 'AB==' })), /eventLog is not canonical base64/],
    [changed((it) => Object.assign(it, { eventLog: '' })), /eventLog must have/],
    [changed((it) => Object.assign(it, { ak: { publicArea: 'A'.repeat(8000) } })), /ak.publicArea must have/],
    [changed((it) => Object.assign(it, { node: { id: 'a\u0007', version: 'v', bootId: 'b' } })), /node.id must match/],
    [changed((it) => Object.assign(it, { pcrs: { sha256: {}, sha1: {} } })), /pcrs.sha1 is not a key/],
    [changed((it) => Object.assign(it, { pcrs: { sha256: {} } })), /pcrs.sha256.0 is missing/],
    [encodeEvidence(sample).replace('{', '{ "format": "another", '), /a key is there twice/],
  ];
  for (const [source, reason] of refused)
    assert.throws(
      () => decodeEvidence(source),
      (error) => error instanceof FormatError && reason.test(error.message),
      `${reason}`,
    );
  assert.equal(quotedPcrs.length, 16);
});

test('a text of nothing but structure is refused in a fraction of a second', () => {
  const size = 4 * 1024 * 1024;
  const hostile: [string, RegExp][] = [
    ['['.repeat(size), /more than 16 levels/],
    [`${'['.repeat(size / 2)}${']'.repeat(size / 2)}`, /more than 16 levels/],
    [`${'{"a":'.repeat(600_000)}0${'}'.repeat(600_000)}`, /more than 16 levels/],
    [`[${'{},'.repeat(1_300_000)}0]`, /more than 10000 values/],
    [`{${Array.from({ length: 300_000 }, (_, index) => `"${index}":0`).join()}}`, /more than 10000 values/],
  ];
  for (const [source, reason] of hostile) {
    const start = process.cpuUsage();
    assert.throws(() => decodeEvidence(Buffer.from(source)), reason);
    assert.ok(process.cpuUsage(start).user < 500_000, `${reason}: ${process.cpuUsage(start).user} µs`);
  }
  // In a string these are letters.
  const node = { ...sample.node, id: `${'[{,'.repeat(60)}\\"[` };
  assert.equal(decodeEvidence(encodeEvidence({ ...sample, node })).node.id, node.id);
});

test('damaged evidence decodes or fails as a format error, and nothing else', () => {
  for (const damaged of mutations(Buffer.from(encodeEvidence(sample)), { seed: 11, count: 3000 })) {
    try {
      decodeEvidence(damaged);
    } catch (error) {
      assert.ok(error instanceof FormatError, String(error));
    }
  }
});

test('the largest event log is read, and in two seconds', () => {
  const eventLog = Buffer.alloc(2 * 1024 * 1024, 7);
  const start = process.cpuUsage();
  assert.equal(decodeEvidence(encodeEvidence({ ...sample, eventLog })).eventLog.length, eventLog.length);
  // Of the processor, so that what else the machine does is not counted.
  assert.ok(process.cpuUsage(start).user < 2_000_000);
});
