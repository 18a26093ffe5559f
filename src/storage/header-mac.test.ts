import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import fc from 'fast-check';
import { readDataHeader, repairStaleCopy } from './data-volume.ts';
import { madeHeader, makeVolume } from './data-volume-fixture.ts';
import { type DataHeader, deriveHeaderMacKey, headerMac, matchHeader } from './header-mac.ts';
import { acceptHeader, unusedRanges } from './luks-header.ts';
import { METADATA_BYTES, REQUEST_OFFSET } from './luks-metadata.ts';

const { bytes: BYTES, uuid: UUID } = madeHeader();
const HEADER: DataHeader = { bytes: BYTES, accepted: acceptHeader(BYTES, { uuid: UUID }) };
const KEY = deriveHeaderMacKey(Buffer.alloc(32, 1), Buffer.alloc(32, 2), UUID);
const MAC = headerMac(KEY, HEADER);

/** Bytes by which two copies of one header may differ: magic, salt, place, checksum. */
const OWN = [
  [0, 6],
  [104, 168],
  [256, 264],
  [448, 512],
] as const;

/** What the MAC is to cover, said anew: the accepted copy but for {@link OWN}, and the areas of the two slots. */
function isCovered(at: number): boolean {
  if (at < METADATA_BYTES) return !OWN.some(([start, end]) => at >= start && at < end);
  return HEADER.accepted.slotAreas.some(({ offset, size }) => at >= offset && at < offset + size);
}

test('a changed bit anywhere in header and key slots changes the MAC, and nowhere else', () => {
  const place = fc.oneof(fc.nat(METADATA_BYTES - 1), fc.nat(BYTES.length - 1), fc.constantFrom(...OWN.flat()));
  fc.assert(
    fc.property(place, fc.nat(7), (at, bit) => {
      const bytes = Buffer.from(BYTES);
      bytes.writeUInt8(bytes.readUInt8(at) ^ (1 << bit), at);
      // The copy that counts is the same: what is tried here is the MAC, not the checksum.
      const isChanged = !headerMac(KEY, { bytes, accepted: HEADER.accepted }).equals(MAC);
      assert.equal(isChanged, isCovered(at), `offset ${at}`);
    }),
    { numRuns: 120 },
  );
});

test('both copies of a header have one MAC, also after one was written again', () => {
  using volume = makeVolume();
  const mac = () => headerMac(KEY, readDataHeader(volume.device, volume.uuid));
  const before = mac();
  volume.device.write(0, Buffer.alloc(METADATA_BYTES));
  assert.equal(readDataHeader(volume.device, volume.uuid).accepted.copy, 'secondary');
  assert.deepEqual(mac(), before);
  repairStaleCopy(volume.device, readDataHeader(volume.device, volume.uuid));
  assert.equal(readDataHeader(volume.device, volume.uuid).accepted.copy, 'primary');
  assert.deepEqual(mac(), before);
});

test('the key depends on key, share and partition', () => {
  const keys = [
    KEY,
    deriveHeaderMacKey(Buffer.alloc(32, 3), Buffer.alloc(32, 2), UUID),
    deriveHeaderMacKey(Buffer.alloc(32, 1), Buffer.alloc(32, 3), UUID),
    deriveHeaderMacKey(Buffer.alloc(32, 1), Buffer.alloc(32, 2), UUID.replace('1', '2')),
  ];
  assert.equal(new Set(keys.map((key) => key.toString('hex'))).size, keys.length);
  assert.throws(() => deriveHeaderMacKey(Buffer.alloc(31), Buffer.alloc(32), UUID), /the node unlock key has 31 bytes/);
});

test('a header matches what its anchor names, and no other', () => {
  const other = randomBytes(32);
  assert.equal(matchHeader(MAC, { current: MAC, next: undefined }), 'current');
  assert.equal(matchHeader(MAC, { current: other, next: MAC }), 'next');
  assert.equal(matchHeader(MAC, { current: other, next: undefined }), undefined);
});

test('what lies between the key slots is free of what they hold, up to the block for requests', () => {
  const ranges = [...unusedRanges(HEADER.accepted), ...HEADER.accepted.slotAreas].toSorted(
    (a, b) => a.offset - b.offset,
  );
  assert.equal(ranges[0]?.offset, 2 * METADATA_BYTES);
  for (const [index, { offset, size }] of ranges.entries()) {
    assert.equal(offset + size, ranges[index + 1]?.offset ?? REQUEST_OFFSET);
  }
});
