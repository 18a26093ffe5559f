import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  decodeCapability,
  decodeDigests,
  decodePcrSelections,
  decodeSized,
  encodeDigests,
  encodePcrSelections,
  encodeSha256DigestValues,
  encodeSized,
} from './tpm-structures.ts';

const bytes = (maxLength: number) => fc.uint8Array({ maxLength });

test('a TPM2B round-trips and refuses trailing bytes', () => {
  fc.assert(
    fc.property(bytes(300), (content) => {
      assert.deepEqual([...decodeSized(encodeSized(content), 'test')], [...content]);
      assert.throws(() => decodeSized(Buffer.concat([encodeSized(content), Buffer.of(0)]), 'test'), /1 bytes follow/);
    }),
  );
});

test('a PCR selection round-trips', () => {
  const selection = fc.record(
    {
      hash: fc.nat(0xffff),
      pcrs: fc.uniqueArray(fc.nat(23)).map((list) => list.sort((a, b) => a - b)),
    },
    { noNullPrototype: true },
  );
  fc.assert(
    fc.property(fc.array(selection, { maxLength: 4 }), (selections) => {
      assert.deepEqual(decodePcrSelections(encodePcrSelections(selections)), selections);
    }),
  );
});

test('the selection of PCR 11 has the bytes of the specification', () => {
  assert.equal(encodePcrSelections([{ hash: 0x0b, pcrs: [11] }]).toString('hex'), '00000001000b03000800');
});

test('a PCR that does not exist cannot be selected', () => {
  assert.throws(() => encodePcrSelections([{ hash: 0x0b, pcrs: [24] }]), /cannot select PCR 24/);
});

test('a digest list round-trips', () => {
  fc.assert(
    fc.property(fc.array(bytes(64), { maxLength: 8 }), (digests) => {
      assert.deepEqual(
        decodeDigests(encodeDigests(digests)).map((d) => [...d]),
        digests.map((d) => [...d]),
      );
    }),
  );
});

test('a list that claims more entries than any TPM has is refused before it is read', () => {
  assert.throws(() => decodeDigests(Buffer.from('ffffffff', 'hex')), /over the limit/);
  assert.throws(() => decodeCapability(Buffer.from('00000006ffffffff', 'hex')), /over the limit/);
});

test('only a SHA-256 digest can be extended', () => {
  assert.throws(() => encodeSha256DigestValues(new Uint8Array(20)), /cannot extend 20 bytes/);
});
