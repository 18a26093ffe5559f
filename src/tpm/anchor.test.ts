import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { ANCHOR_BYTES, decodeAnchor, encodeAnchor } from './anchor.ts';

const part = fc.uint8Array({ minLength: 32, maxLength: 32 });
const notZero = part.filter((bytes) => bytes.some((byte) => byte !== 0));

test('an anchor survives its encoding', () => {
  fc.assert(
    fc.property(part, part, fc.option(notZero, { nil: undefined }), (share, current, next) => {
      const decoded = decodeAnchor(encodeAnchor({ share, current, next }));
      assert.deepEqual([...decoded.share], [...share]);
      assert.deepEqual([...decoded.current], [...current]);
      assert.deepEqual(decoded.next && [...decoded.next], next && [...next]);
    }),
  );
});

test('an anchor has 100 bytes: version, share, MAC of the header, MAC of the next', () => {
  const bytes = encodeAnchor({ share: Buffer.alloc(32, 1), current: Buffer.alloc(32, 2), next: undefined });
  assert.equal(bytes.toString('hex'), `00000001${'01'.repeat(32)}${'02'.repeat(32)}${'00'.repeat(32)}`);
});

test('another length or version is refused', () => {
  for (const length of [0, ANCHOR_BYTES - 1, ANCHOR_BYTES + 1]) {
    assert.throws(() => decodeAnchor(Buffer.alloc(length)), /it has \d+ bytes, not 100/);
  }
  assert.throws(() => decodeAnchor(Buffer.alloc(ANCHOR_BYTES)), /its version is 0, not 1/);
  const short = { share: Buffer.alloc(31), current: Buffer.alloc(32), next: undefined };
  assert.throws(() => encodeAnchor(short), /share has 31 bytes/);
});
