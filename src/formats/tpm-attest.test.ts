import assert from 'node:assert/strict';
import { generateKeyPairSync, sign } from 'node:crypto';
import { test } from 'node:test';
import fc from 'fast-check';
import { FormatError } from './byte-reader.ts';
import { mutations } from './fixtures.ts';
import {
  ATTEST_QUOTE,
  type Attest,
  decodeAttest,
  decodeTpmPublicKey,
  decodeTpmSignature,
  encodeAttest,
  encodeTpmPublicKey,
  encodeTpmSignature,
  keyObjectOf,
  TPM_GENERATED,
  type TpmPublicKey,
  type TpmSignature,
  verifyTpmSignature,
} from './tpm-attest.ts';

const bytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });
const anyBytes = fc.uint8Array({ maxLength: 64 });
const record = <T extends object>(fields: { [K in keyof T]: fc.Arbitrary<T[K]> }): fc.Arbitrary<T> =>
  fc.record<T>(fields, { noNullPrototype: true }) as fc.Arbitrary<T>;

/** Buffers as plain lists, so that a Buffer and a Uint8Array of the same bytes are equal. */
const plain = (value: unknown): unknown =>
  value instanceof Uint8Array
    ? [...value]
    : Array.isArray(value)
      ? value.map(plain)
      : typeof value === 'object' && value !== null
        ? Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, plain(entry)]))
        : value;

type QuoteAttest = Attest & Required<Pick<Attest, 'quote'>>;
const quote: fc.Arbitrary<QuoteAttest> = record<QuoteAttest>({
  magic: fc.nat(0xffffffff),
  type: fc.constant(ATTEST_QUOTE),
  qualifiedSigner: anyBytes,
  extraData: anyBytes,
  clock: record<Attest['clock']>({
    clockMs: fc.bigInt(0n, 2n ** 64n - 1n),
    resetCount: fc.nat(0xffffffff),
    restartCount: fc.nat(0xffffffff),
    safe: fc.boolean(),
  }),
  firmwareVersion: fc.bigInt(0n, 2n ** 64n - 1n),
  quote: record<QuoteAttest['quote']>({
    selections: fc.array(
      record<{ hash: number; pcrs: number[] }>({
        hash: fc.nat(0xffff),
        pcrs: fc.uniqueArray(fc.nat(23)).map((pcrs) => pcrs.sort((a, b) => a - b)),
      }),
      { maxLength: 4 },
    ),
    pcrDigest: bytes(32),
  }),
});

const hash = fc.constantFrom('sha1' as const, 'sha256' as const, 'sha384' as const, 'sha512' as const);
const signature: fc.Arbitrary<TpmSignature> = fc.oneof(
  record<TpmSignature & { scheme: 'rsassa' | 'rsapss' }>({
    scheme: fc.constantFrom('rsassa' as const, 'rsapss' as const),
    hash,
    signature: bytes(256),
  }),
  record<TpmSignature & { scheme: 'ecdsa' }>({
    scheme: fc.constant('ecdsa' as const),
    hash,
    r: bytes(32),
    s: bytes(32),
  }),
);

const common = {
  nameHash: hash,
  attributes: fc.nat(0xffffffff),
  authPolicy: anyBytes,
  symmetricBits: fc.constantFrom(128, 192, 256),
  scheme: record<{ name: TpmSignature['scheme']; hash: 'sha256' }>({
    name: fc.constantFrom('rsassa' as const, 'rsapss' as const, 'ecdsa' as const),
    hash: fc.constant('sha256' as const),
  }),
};
const publicKey: fc.Arbitrary<TpmPublicKey> = fc.oneof(
  record<TpmPublicKey & { type: 'rsa' }>({
    type: fc.constant('rsa' as const),
    ...common,
    exponent: fc.constantFrom(3, 65537),
    modulus: bytes(256),
  }),
  record<TpmPublicKey & { type: 'ecc' }>({
    type: fc.constant('ecc' as const),
    ...common,
    curve: fc.constant('P-256' as const),
    x: bytes(32),
    y: bytes(32),
  }),
);

/** An ECC key with neither symmetric algorithm nor scheme, as TPMT_PUBLIC, and its private part. */
function eccKey() {
  const pair = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const jwk = pair.publicKey.export({ format: 'jwk' });
  const coordinate = (text: string | undefined) => Buffer.from(text ?? '', 'base64url');
  const key: TpmPublicKey = {
    type: 'ecc',
    nameHash: 'sha256',
    attributes: 0,
    authPolicy: new Uint8Array(0),
    curve: 'P-256',
    x: coordinate(jwk.x),
    y: coordinate(jwk.y),
  };
  return { ...pair, key };
}

test('a quote, a signature and a public key round-trip', () => {
  fc.assert(fc.property(quote, (value) => assert.deepEqual(plain(decodeAttest(encodeAttest(value))), plain(value))));
  fc.assert(
    fc.property(signature, (value) =>
      assert.deepEqual(plain(decodeTpmSignature(encodeTpmSignature(value))), plain(value)),
    ),
  );
  fc.assert(
    fc.property(publicKey, (value) =>
      assert.deepEqual(plain(decodeTpmPublicKey(encodeTpmPublicKey(value))), plain(value)),
    ),
  );
});

test('every truncation and every extra byte is refused, with the structure and the field', () => {
  const [attest = {} as QuoteAttest] = fc.sample(quote, { numRuns: 1, seed: 1 });
  const structures = [
    { wire: encodeAttest(attest), decode: decodeAttest, name: 'TPMS_ATTEST' },
    {
      wire: encodeTpmSignature({ scheme: 'ecdsa', hash: 'sha256', r: new Uint8Array(32), s: new Uint8Array(32) }),
      decode: decodeTpmSignature,
      name: 'TPMT_SIGNATURE',
    },
    { wire: encodeTpmPublicKey(eccKey().key), decode: decodeTpmPublicKey, name: 'TPMT_PUBLIC' },
  ];
  for (const { wire, decode, name } of structures) {
    for (let length = 0; length < wire.length; length += 1)
      assert.throws(() => decode(wire.subarray(0, length)), new RegExp(`cannot decode ${name}: .* offset \\d+`));
    assert.throws(() => decode(Buffer.concat([wire, Uint8Array.of(0)])), /1 bytes follow that should not be there/);
  }
});

test('damaged structures decode or fail as a format error, and nothing else', () => {
  const [attest = {} as QuoteAttest] = fc.sample(quote, { numRuns: 1, seed: 2 });
  const cases: [Uint8Array, (wire: Uint8Array) => unknown][] = [
    [encodeAttest(attest), decodeAttest],
    [encodeTpmPublicKey(eccKey().key), decodeTpmPublicKey],
    [encodeTpmSignature({ scheme: 'rsassa', hash: 'sha256', signature: new Uint8Array(256) }), decodeTpmSignature],
  ];
  for (const [wire, decode] of cases)
    for (const damaged of mutations(wire, { seed: 7, count: 2000, window: 64 })) {
      try {
        decode(damaged);
      } catch (error) {
        assert.ok(error instanceof FormatError, String(error));
      }
    }
});

test('a statement that is no quote keeps its type and shows no quote', () => {
  const [attest = {} as QuoteAttest] = fc.sample(quote, { numRuns: 1, seed: 3 });
  // TPM_ST_ATTEST_CERTIFY
  const other = decodeAttest(encodeAttest({ ...attest, magic: TPM_GENERATED, type: 0x8017 }));
  assert.equal(other.type, 0x8017);
  assert.equal(other.quote, undefined);
});

test('a signature is verified over exactly its message and by exactly its key', () => {
  const { privateKey, key } = eccKey();
  const message = Buffer.from('what the TPM says');
  const joined = sign('sha256', message, { key: privateKey, dsaEncoding: 'ieee-p1363' });
  const made: TpmSignature = { scheme: 'ecdsa', hash: 'sha256', r: joined.subarray(0, 32), s: joined.subarray(32) };
  assert.equal(verifyTpmSignature(key, made, message), true);
  assert.equal(verifyTpmSignature(key, made, Buffer.from('what the TPM did not say')), false);
  assert.equal(verifyTpmSignature(eccKey().key, made, message), false);
  assert.equal(verifyTpmSignature(key, { ...made, hash: 'sha384' }, message), false);
  assert.equal(verifyTpmSignature(key, { ...made, r: new Uint8Array(200) }, message), false);
  assert.equal(verifyTpmSignature(key, { scheme: 'rsassa', hash: 'sha256', signature: joined }, message), false);
});

test('RSA signatures of both paddings are verified', () => {
  const { publicKey: rsa, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const modulus = Buffer.from(rsa.export({ format: 'jwk' }).n ?? '', 'base64url');
  const authPolicy = new Uint8Array(0);
  const key: TpmPublicKey = { type: 'rsa', nameHash: 'sha256', attributes: 0, authPolicy, exponent: 65537, modulus };
  const message = Buffer.from('said');
  const pkcs1 = sign('sha256', message, privateKey);
  const pss = sign('sha256', message, { key: privateKey, padding: 6, saltLength: 32 });
  assert.equal(verifyTpmSignature(key, { scheme: 'rsassa', hash: 'sha256', signature: pkcs1 }, message), true);
  assert.equal(verifyTpmSignature(key, { scheme: 'rsapss', hash: 'sha256', signature: pss }, message), true);
  assert.equal(verifyTpmSignature(key, { scheme: 'rsapss', hash: 'sha256', signature: pkcs1 }, message), false);
});

test('a point that is not on its curve is no key', () => {
  const { key } = eccKey();
  assert.throws(() => keyObjectOf({ ...key, x: new Uint8Array(32).fill(5) } as TpmPublicKey));
});
