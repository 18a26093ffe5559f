import assert from 'node:assert/strict';
import { createHmac, generateKeyPairSync, type KeyObject, privateDecrypt, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { encodeTpmPublicKey, type TpmPublicKey } from '../formats/tpm-attest.ts';
import { credentialRandomBytes, makeCredential } from './make-credential.ts';

const common = {
  nameHash: 'sha256',
  attributes: 0x000300b2,
  authPolicy: new Uint8Array(32),
  symmetricBits: 128,
} as const;
const akName = Buffer.concat([Uint8Array.of(0, 0x0b), randomBytes(32)]);
const bytesOf = (text: string | undefined) => Buffer.from(text ?? '', 'base64url');

function rsaKey(): { publicArea: Uint8Array; privateKey: KeyObject } {
  const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const modulus = bytesOf(publicKey.export({ format: 'jwk' }).n);
  return { publicArea: encodeTpmPublicKey({ type: 'rsa', ...common, exponent: 65537, modulus }), privateKey };
}

function eccKey(change: Partial<TpmPublicKey & { type: 'ecc' }> = {}): Uint8Array {
  const { publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const { x, y } = publicKey.export({ format: 'jwk' });
  return encodeTpmPublicKey({ type: 'ecc', ...common, curve: 'P-256', x: bytesOf(x), y: bytesOf(y), ...change });
}

test('a credential can be made again from its random bytes, and differs for another key, name or secret', () => {
  for (const publicArea of [rsaKey().publicArea, eccKey()]) {
    const secret = randomBytes(32);
    const first = makeCredential(publicArea, akName, secret);
    assert.deepEqual(makeCredential(publicArea, akName, secret, first.random), first);
    for (const other of [
      makeCredential(publicArea, randomBytes(34), secret, first.random),
      makeCredential(publicArea, akName, randomBytes(32), first.random),
      makeCredential(publicArea, akName, secret),
    ])
      assert.notDeepEqual(other.credentialBlob, first.credentialBlob);
    assert.notDeepEqual(makeCredential(publicArea, akName, secret).encryptedSecret, first.encryptedSecret);
  }
});

test('the seed for an RSA key is OAEP as OpenSSL reads it, with the label and its NUL', () => {
  const { publicArea, privateKey } = rsaKey();
  const { encryptedSecret, random } = makeCredential(publicArea, akName, randomBytes(32));
  const oaepLabel = Buffer.from('IDENTITY\0');
  const seed = privateDecrypt({ key: privateKey, oaepHash: 'sha256', oaepLabel }, encryptedSecret);
  assert.deepEqual(seed, createHmac('sha512', random).update('seed').digest().subarray(0, 32));
  const withoutNul = Buffer.from('IDENTITY');
  assert.throws(() => privateDecrypt({ key: privateKey, oaepHash: 'sha256', oaepLabel: withoutNul }, encryptedSecret));
});

test('a key that is no endorsement key, and a wrong length, are refused by name', () => {
  const make = (publicArea: Uint8Array, secretBytes = 32, randomCount = credentialRandomBytes) =>
    makeCredential(publicArea, akName, randomBytes(secretBytes), randomBytes(randomCount));
  const { symmetricBits: _, ...withoutSymmetric } = common;
  const { x, y } = generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ format: 'jwk' });
  const signingKey = encodeTpmPublicKey({
    type: 'ecc',
    ...withoutSymmetric,
    curve: 'P-256',
    x: bytesOf(x),
    y: bytesOf(y),
  });
  assert.throws(() => make(signingKey), /has no symmetric algorithm/);
  assert.throws(() => make(eccKey({ nameHash: 'sha1' })), /names in sha1/);
  assert.throws(() => make(eccKey({ x: new Uint8Array(32).fill(1) })), /Public key is not valid|[Ii]nvalid/);
  assert.throws(() => make(eccKey(), 31), /secret of 31 bytes/);
  assert.throws(() => make(eccKey(), 32, 31), /31 random bytes/);
  assert.throws(() => make(new Uint8Array(3)), /cannot decode TPMT_PUBLIC/);
});
