import assert from 'node:assert/strict';
import { constants, createHmac, generateKeyPairSync, type KeyObject, privateDecrypt, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import {
  deriveSlotKey,
  encodeRecoveryToken,
  readRecoveryPublicKey,
  uuidBytes,
  volumeKeyMeasurement,
  xorBytes,
} from './data-key.ts';

const UUID = '00112233-4455-6677-8899-aabbccddeeff';
const ABSENT = new Uint8Array();
const RECOVERY = 'ab'.repeat(32);
const parts = {
  nodeUnlockKey: Buffer.alloc(32, 1),
  share: ABSENT,
  clusterUnlockKey: ABSENT,
  partitionUuid: UUID,
  recoveryPublicKeySha256: RECOVERY,
};

/** RFC 5869 with one block of output. */
function hkdf(input: Uint8Array, salt: Uint8Array, info: string): Buffer {
  const key = createHmac('sha256', salt).update(input).digest();
  return createHmac('sha256', key).update(info).update(Buffer.of(1)).digest();
}

test('the slot key is HKDF-SHA256 of the joined keys under the partition UUID, for one recovery key', () => {
  const info = `ashlar/data/1 recovery ${RECOVERY}`;
  const salt = Buffer.from('00112233445566778899aabbccddeeff', 'hex');
  assert.deepEqual(deriveSlotKey(parts), hkdf(parts.nodeUnlockKey, salt, info));
  const all = { ...parts, share: Buffer.alloc(32, 2), clusterUnlockKey: Buffer.alloc(32, 3) };
  const joined = Buffer.concat([Buffer.alloc(32, 1), Buffer.alloc(32, 2), Buffer.alloc(32, 3)]);
  assert.deepEqual(deriveSlotKey(all), hkdf(joined, salt, info));
});

test('a header that names another recovery key gives another slot key', () => {
  const forged = { ...parts, recoveryPublicKeySha256: 'cd'.repeat(32) };
  assert.notDeepEqual(deriveSlotKey(forged), deriveSlotKey(parts));
});

test('a part of a wrong length derives no key', () => {
  assert.throws(() => deriveSlotKey({ ...parts, nodeUnlockKey: ABSENT }), /the node unlock key has 0 bytes/);
  assert.throws(() => deriveSlotKey({ ...parts, share: Buffer.alloc(31) }), /share has 31 bytes/);
  assert.throws(() => deriveSlotKey({ ...parts, recoveryPublicKeySha256: 'AB' }), /is not 64 hex digits/);
  assert.throws(() => uuidBytes('no uuid'), /cannot read UUID/);
});

test('the measurement of a volume depends on its key and on the partition', () => {
  const [a, b] = [randomBytes(64), randomBytes(64)];
  const all = [
    volumeKeyMeasurement(a, UUID),
    volumeKeyMeasurement(b, UUID),
    volumeKeyMeasurement(a, UUID.replace('0', '1')),
  ];
  assert.equal(new Set(all.map((digest) => digest.toString('hex'))).size, 3);
  assert.equal(all[0]?.length, 32);
});

test('xor joins two sources of equal length', () => {
  assert.deepEqual(xorBytes(Buffer.of(0xf0, 0x0f), Buffer.of(0xff, 0xff)), Buffer.of(0x0f, 0xf0));
  assert.throws(() => xorBytes(Buffer.alloc(1), Buffer.alloc(2)), /cannot xor/);
});

test('the recovery token is opened by the operator private key', () => {
  const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const recoveryKey = randomBytes(32);
  const pem = publicKey.export({ format: 'pem', type: 'spki' }).toString();
  const token = encodeRecoveryToken(recoveryKey, readRecoveryPublicKey(pem));
  const options = { key: privateKey, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha256' };
  assert.deepEqual(privateDecrypt(options, Buffer.from(token.encryptedKey, 'base64')), recoveryKey);
});

test('a recovery key that is no RSA key of useful size is refused', () => {
  const pemOf = (key: KeyObject) => key.export({ format: 'pem', type: 'spki' }).toString();
  assert.throws(() => readRecoveryPublicKey('-----BEGIN'), /it is no public key in PEM/);
  assert.throws(() => readRecoveryPublicKey(pemOf(generateKeyPairSync('ed25519').publicKey)), /it is ed25519/);
  const small = generateKeyPairSync('rsa', { modulusLength: 1024 }).publicKey;
  assert.throws(() => readRecoveryPublicKey(pemOf(small)), /rsa of 1024 bits/);
});
