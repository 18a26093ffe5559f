import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { decodeNvPublic, encodeNvPublic } from './tpm-nv-public.ts';
import { decodePublic, encodePublic, type PublicArea } from './tpm-public-area.ts';

const bytes = (maxLength: number) => fc.uint8Array({ maxLength });
const attributes = fc.nat(0xffffffff);
const plain = (value: PublicArea) =>
  Object.fromEntries(Object.entries(value).map(([k, v]) => [k, v instanceof Uint8Array ? [...v] : v]));

test('every public area that Ashlar makes round-trips', () => {
  const area: fc.Arbitrary<PublicArea> = fc.oneof(
    fc.record({ type: fc.constant('sealed' as const), attributes, authPolicy: bytes(32), unique: bytes(32) }),
    fc.record({
      type: fc.constant('ecc-storage' as const),
      attributes,
      authPolicy: bytes(32),
      x: bytes(32),
      y: bytes(32),
    }),
    fc.record({
      type: fc.constant('ecc-signing' as const),
      attributes,
      authPolicy: bytes(32),
      x: bytes(32),
      y: bytes(32),
    }),
    fc.record({ type: fc.constant('rsa-storage' as const), attributes, authPolicy: bytes(32), modulus: bytes(256) }),
  );
  fc.assert(
    fc.property(area, (value) => {
      assert.deepEqual(plain(decodePublic(encodePublic(value))), plain(value));
    }),
  );
});

test('a truncated public area is refused with field and offset', () => {
  const wire = encodePublic({
    type: 'sealed',
    attributes: 0x412,
    authPolicy: new Uint8Array(32),
    unique: new Uint8Array(32),
  });
  for (let length = 0; length < wire.length; length += 1) {
    assert.throws(() => decodePublic(wire.subarray(0, length)), /cannot decode TPMT_PUBLIC: .* offset \d+/);
  }
});

test('an NV public area round-trips, and a truncated one is refused with field and offset', () => {
  const area = fc.record({
    index: fc.nat(0xffffffff),
    attributes,
    authPolicy: bytes(32),
    sizeBytes: fc.nat(0xffff),
  });
  fc.assert(
    fc.property(area, fc.nat(100), (value, cut) => {
      const wire = encodeNvPublic(value);
      const decoded = decodeNvPublic(wire);
      assert.deepEqual(
        { ...decoded, authPolicy: [...decoded.authPolicy] },
        { ...value, authPolicy: [...value.authPolicy] },
      );
      const short = wire.subarray(0, cut % wire.length);
      assert.throws(() => decodeNvPublic(short), /cannot decode TPMS_NV_PUBLIC: .* offset \d+/);
    }),
  );
});
