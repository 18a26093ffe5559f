import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { test } from 'node:test';
import { encodeRecoveryToken, readRecoveryPublicKey } from './data-key.ts';
import { openDataVolume, readDataHeader } from './data-volume.ts';
import { FIXTURE_UUID, makeVolume } from './data-volume-fixture.ts';
import { RECOVERY_KEY_PAIR, sealedMachine } from './sealed-machine-fixture.ts';
import { sealedVolume } from './sealed-volume.ts';
import { unsealedVolume } from './unsealed-volume.ts';
import { NoNodeKeyError } from './volume-lock.ts';

/** A volume on a machine without TPM, in place of the one that the fixture has made. */
function makeUnsealedVolume() {
  const volume = makeVolume();
  const lock = unsealedVolume({ path: volume.directory });
  const key = randomBytes(32);
  const pem = RECOVERY_KEY_PAIR.publicKey.export({ format: 'pem', type: 'spki' }).toString();
  using prepared = lock.prepare(FIXTURE_UUID);
  prepared.create(volume.device, { key, token: encodeRecoveryToken(key, readRecoveryPublicKey(pem)) });
  return Object.assign(volume, { lock });
}

test('a volume on a machine without TPM opens with the key beside it, and says so', () => {
  using volume = makeUnsealedVolume();
  assert.match(volume.lock.warnings.join(), /whoever has the disk has the data/);
  const header = readDataHeader(volume.device, FIXTURE_UUID);
  using unlocked = volume.lock.unlock(volume.device, header);
  const key = { slot: unlocked.slot, key: unlocked.slotKey };
  using opened = openDataVolume(volume.path, header, key, { path: volume.directory });
  const settled = unlocked.settle(opened.volumeKey);
  assert.equal(settled.sealing, undefined);
  assert.equal(settled.header, header);
  unlocked.takeOwnership();
});

test('a machine without TPM does not open a sealed volume', () => {
  using volume = makeVolume();
  const lock = unsealedVolume({ path: volume.directory });
  assert.throws(() => lock.unlock(volume.device, readDataHeader(volume.device, volume.uuid)), NoNodeKeyError);
});

test('a machine with a TPM does not open an unsealed volume', async () => {
  using volume = makeUnsealedVolume();
  await using machine = await sealedMachine();
  await machine.boot({}, ({ machine: booted }) => {
    const lock = sealedVolume(booted, { path: volume.directory });
    assert.throws(
      () => lock.unlock(volume.device, readDataHeader(volume.device, FIXTURE_UUID)),
      (error) => error instanceof NoNodeKeyError && /though this machine has a TPM/.test(error.message),
    );
  });
});
