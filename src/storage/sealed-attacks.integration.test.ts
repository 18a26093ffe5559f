/** What somebody does who can write to the disk, use the TPM and boot what he likes, and does not have the owner's value. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { policyRefOfEpoch } from '../measure/policy.ts';
import { TpmInUseError } from '../tpm/provisioning.ts';
import { SealingError, type SealingFailure } from '../tpm/sealing.ts';
import { encodeRecoveryToken, readRecoveryPublicKey } from './data-key.ts';
import { readDataHeader } from './data-volume.ts';
import { FIXTURE_UUID } from './data-volume-fixture.ts';
import { Generation } from './generation.ts';
import { editedHeader, newHeader, replaceHeader, writeFirstHeader } from './header-edit.ts';
import { copyRange } from './luks-header.ts';
import { HEADER_BYTES, LuksHeaderError, REQUEST_OFFSET } from './luks-metadata.ts';
import { encodeTpm2Token, sealedGenerations } from './luks-tokens.ts';
import { encodeResealRequest } from './reseal-request.ts';
import { RECOVERY_KEY_PAIR, type SealedMachine, sealedMachine } from './sealed-machine-fixture.ts';
import { SecureBootOffError } from './sealed-volume.ts';

const headerRefused = (message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof LuksHeaderError, String(error));
  assert.match(error.message, message);
  return true;
};
const sealingRefused = (failure: SealingFailure) => (error: unknown) => {
  assert.ok(error instanceof SealingError, String(error));
  assert.equal(error.failure, failure);
  return true;
};

const headerOf = ({ device }: SealedMachine): Buffer => device.read(0, HEADER_BYTES);

async function raiseEpoch(machine: SealedMachine): Promise<void> {
  machine.request(await machine.start(), { reason: 'raise the epoch' });
  const { settled } = await machine.start({ epoch: 2 });
  assert.equal(settled.sealing?.generation, 2);
}

test('after the epoch was raised, the old header and sealed key, put back from a copy, open nothing under any image', async () => {
  await using machine = await sealedMachine();
  await machine.start();
  const old = headerOf(machine);
  await raiseEpoch(machine);
  machine.device.write(0, old);
  for (const epoch of [1, 2])
    await assert.rejects(machine.start({ epoch }), headerRefused(/keeps no anchor 0x01a51a00/));
});

test('an image of an older epoch does not open what was sealed to a newer one', async () => {
  await using machine = await sealedMachine();
  await raiseEpoch(machine);
  await assert.rejects(machine.start({ epoch: 1 }), sealingRefused('image-not-allowed'));
  // The name in the token is only the reason that is told: without it the TPM refuses.
  const { tokens } = readDataHeader(machine.device, FIXTURE_UUID).accepted;
  const [facts] = sealedGenerations(tokens);
  assert.ok(facts);
  await machine.boot({ epoch: 1 }, ({ machine: old }) => {
    const rootKey = old.tpm.persistentStorageRootKey();
    assert.ok(rootKey);
    const relabelled = { ...facts, policyRef: policyRefOfEpoch(1) };
    assert.throws(
      () => Generation.open({ machine: old, rootKey, uuid: FIXTURE_UUID }, relabelled),
      (error) =>
        sealingRefused('image-not-allowed')(error) &&
        error instanceof Error &&
        sealingRefused('policy-not-met')(error.cause),
    );
  });
});

test('an older header of the same generation is refused, though the TPM unseals its key', async () => {
  await using machine = await sealedMachine();
  const opened = await machine.start();
  const old = headerOf(machine);
  machine.request(opened, { reason: 'a new dbx', pcr7: machine.pcr7('new dbx') });
  assert.equal((await machine.start()).settled.sealing?.generation, 1);
  machine.device.write(0, old);
  await assert.rejects(machine.start(), headerRefused(/it is not the one that the TPM knows/));
});

test('a header changed within its accepted shape is refused, with good checksums too', async () => {
  await using machine = await sealedMachine();
  await machine.start();
  const good = headerOf(machine);
  const { accepted } = readDataHeader(machine.device, FIXTURE_UUID);
  const recoveryArea = accepted.slotAreas.find(({ slot }) => slot === 1);
  assert.ok(recoveryArea);
  const flipped = Buffer.from(good);
  flipped.writeUInt8(flipped.readUInt8(recoveryArea.offset) ^ 1, recoveryArea.offset);
  const costly = withText(good, (text) => text.replace('"iterations":1000', '"iterations":9999'));
  const newer = withText(good, (text) => text, 1n);
  for (const header of [flipped, costly, newer]) {
    machine.device.write(0, header);
    await assert.rejects(machine.start(), headerRefused(/it is not the one that the TPM knows/));
  }
  machine.device.write(0, good);
  await machine.start();
});

/** Both copies with changed JSON text and good checksums. */
function withText(header: Buffer, change: (text: string) => string, laterBy = 0n): Buffer {
  const changed = Buffer.from(header);
  for (const copy of ['primary', 'secondary'] as const) {
    const [start, end] = copyRange(copy);
    const area = changed.subarray(start + 4096, end);
    const text = change(area.toString('utf8', 0, area.indexOf(0)));
    area.fill(0);
    area.write(text);
    changed.writeBigUInt64BE(changed.readBigUInt64BE(start + 16) + laterBy, start + 16);
    changed.fill(0, start + 448, start + 512);
    createHash('sha256')
      .update(changed.subarray(start, end))
      .digest()
      .copy(changed, start + 448);
  }
  return changed;
}

test('a volume of an attacker, sealed to the same policy on this TPM, is refused: the anchor is not its', async () => {
  await using machine = await sealedMachine();
  await machine.start();
  // Any system may seal: it takes neither the policy nor the owner.
  await machine.boot({ firmware: 'Secure Boot off', epoch: 1 }, ({ machine: theirs, device }) => {
    const rootKey = theirs.tpm.persistentStorageRootKey();
    assert.ok(rootKey);
    const where = { machine: theirs, rootKey, uuid: FIXTURE_UUID };
    const pcr7 = Buffer.from(machine.pcr7('keys'), 'hex');
    using generation = Generation.make(where, { place: 'a', number: 1, pcr7 });
    assert.throws(() => generation.defineAnchor(), /NV_DefineSpace/, 'the anchor that is there stays');
    const pem = RECOVERY_KEY_PAIR.publicKey.export({ format: 'pem', type: 'spki' }).toString();
    const recoveryToken = encodeRecoveryToken(Buffer.alloc(32, 1), readRecoveryPublicKey(pem));
    const volume = { uuid: FIXTURE_UUID, generation: generation.slot(recoveryToken), recoveryToken };
    const directory = { path: machine.tpm.directory };
    writeFirstHeader(device, newHeader(device.path, { ...volume, recoveryKey: Buffer.alloc(32, 1) }, directory));
  });
  await assert.rejects(machine.start(), headerRefused(/anchor 0x01a51a00 of the TPM is not this key's/));
});

test('the sealed key of another node, or of an attacker, in our header is refused', async () => {
  await using machine = await sealedMachine();
  await using other = await sealedMachine();
  await machine.start();
  await other.start();
  const generationOf = ({ device }: SealedMachine) => {
    const [facts] = sealedGenerations(readDataHeader(device, FIXTURE_UUID).accepted.tokens);
    return facts ?? assert.fail('no generation');
  };
  const [ours, theirs] = [generationOf(machine), generationOf(other)];
  await machine.boot({}, ({ machine: booted }) => {
    const rootKey = booted.tpm.persistentStorageRootKey();
    assert.ok(rootKey);
    const where = { machine: booted, rootKey, uuid: FIXTURE_UUID };
    const open = (sealed: typeof ours.sealed) => Generation.open(where, { ...ours, sealed });
    assert.throws(() => open(theirs.sealed), sealingRefused('another-tpm'));
    const renamed = { ...theirs.sealed, storageRootKeyName: rootKey.name };
    assert.throws(() => open(renamed), sealingRefused('another-tpm'));
    using made = Generation.make(where, { place: 'a', number: 1 });
    assert.throws(() => open(made.facts.sealed), /is not this key's/);
    open(ours.sealed)[Symbol.dispose]();
  });
});

test('without the owner no anchor is undefined, defined, read or written', async () => {
  await using machine = await sealedMachine();
  await machine.start();
  const { tpm } = machine;
  const index = '0x1a51a00';
  for (const [tool, ...args] of [
    ['tpm2_nvundefine', index, '-C', 'o'],
    ['tpm2_nvdefine', '0x1a51a01', '-C', 'o', '-s', '100'],
    ['tpm2_nvread', index, '-C', index],
    ['tpm2_nvread', index, '-C', 'o'],
    ['tpm2_nvwrite', index, '-C', index, '-i', 'partition'],
    ['tpm2_evictcontrol', '-C', 'o', '-c', '0x81000001'],
    ['tpm2_changeauth', '-c', 'o', 'mine'],
  ] as const) {
    assert.throws(() => tpm.tool(tool, ...args), /./, tool);
  }
  await machine.start();
});

test('a TPM that has an owner, or another storage root key, is not taken into use', async () => {
  for (const prepare of [
    ({ tpm }: SealedMachine) => tpm.tool('tpm2_changeauth', '-c', 'o', 'somebody'),
    ({ tpm }: SealedMachine) => {
      tpm.tool('tpm2_createprimary', '-Q', '-C', 'o', '-G', 'rsa', '-c', 'rsa.ctx');
      tpm.tool('tpm2_evictcontrol', '-Q', '-C', 'o', '-c', 'rsa.ctx', '0x81000001');
      tpm.tool('tpm2_flushcontext', '-t');
    },
  ]) {
    await using machine = await sealedMachine();
    prepare(machine);
    await assert.rejects(machine.start(), (error) => {
      assert.ok(error instanceof TpmInUseError, String(error));
      return /clear the TPM in the firmware settings/.test(error.message);
    });
  }
});

test('a TPM that was cleared, or is another, is refused as another', async () => {
  await using machine = await sealedMachine();
  await machine.start();
  machine.tpm.tool('tpm2_clear', '-c', 'l');
  await assert.rejects(machine.start(), sealingRefused('another-tpm'));
});

test('a change of Secure Boot, and PCRs that were moved, are refused by name', async () => {
  await using machine = await sealedMachine();
  await machine.start();
  await assert.rejects(machine.start({ firmware: 'other keys' }), sealingRefused('pcr-7-changed'));
  for (const index of [12, 13, 15]) {
    await assert.rejects(machine.start({ injected: [index] }), sealingRefused('pcr-not-zero'));
  }
  await machine.start();
});

test('nothing is made while Secure Boot is off or the firmware is in Setup Mode', async () => {
  await using machine = await sealedMachine();
  for (const boot of [{ secureBoot: 0 }, { setupMode: 1 }]) {
    await assert.rejects(machine.start(boot), SecureBootOffError);
  }
  assert.ok(headerOf(machine).every((byte) => byte === 0));
});

test('a predicted PCR 7 opens from the boot on that has it, and ends the old one', async () => {
  await using machine = await sealedMachine();
  const opened = await machine.start();
  machine.request(opened, { reason: 'a new dbx', pcr7: machine.pcr7('new dbx') });
  const waiting = await machine.start();
  assert.match(
    waiting.settled.sealing?.resealed ?? '',
    /^generation 2 .*, which counts from the first boot with that PCR 7 on: a new dbx$/,
  );
  assert.equal((await machine.start()).settled.sealing?.generation, 1, 'until then all is as before');
  const changed = await machine.start({ firmware: 'new dbx' });
  assert.deepEqual(changed.volumeKey, opened.volumeKey);
  assert.equal(changed.settled.sealing?.generation, 2);
  await assert.rejects(machine.start({ firmware: 'keys' }), sealingRefused('pcr-7-changed'));
});

test('a request that was forged, or is an old one, reseals nothing and is told', async () => {
  await using machine = await sealedMachine();
  const opened = await machine.start();
  const pcr7 = machine.pcr7('Secure Boot off');
  machine.device.write(REQUEST_OFFSET, encodeResealRequest({ reason: 'x', pcr7 }, 1, Buffer.alloc(32)));
  const forged = await machine.start();
  assert.match(forged.settled.warnings.join(), /is not carried out: it is not authentic/);
  assert.equal(forged.settled.sealing?.resealed, undefined);

  machine.request(opened, { reason: 'once' });
  const request = machine.device.read(REQUEST_OFFSET, 4096);
  assert.equal((await machine.start()).settled.sealing?.generation, 2);
  machine.device.write(REQUEST_OFFSET, request);
  const replayed = await machine.start();
  assert.match(replayed.settled.warnings.join(), /for generation 1, and generation 2 opened the volume/);
  assert.equal(replayed.settled.sealing?.generation, 2);
});

test('a key slot that somebody adds who had the volume key once makes another header, which is refused', async () => {
  await using machine = await sealedMachine();
  const { volumeKey } = await machine.start();
  const header = readDataHeader(machine.device, FIXTURE_UUID);
  const [facts] = sealedGenerations(header.accepted.tokens);
  assert.ok(facts);
  const token = encodeTpm2Token({ ...facts, place: 'b', number: 2 });
  const add = { place: 'b' as const, slotKey: Buffer.alloc(32, 7), tokens: [token, token] };
  const directory = { path: machine.tpm.directory };
  replaceHeader(machine.device, header, editedHeader(header, machine.device.path, { add, volumeKey }, directory));
  await assert.rejects(machine.start(), headerRefused(/it is not the one that the TPM knows/));
});
