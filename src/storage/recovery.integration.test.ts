import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TpmInUseError } from '../tpm/provisioning.ts';
import { SealingError } from '../tpm/sealing.ts';
import { readDataHeader, WrongSlotKeyError } from './data-volume.ts';
import { FIXTURE_UUID } from './data-volume-fixture.ts';
import { hasLeftovers } from './header-edit.ts';
import { recoverVolume } from './recovery.ts';
import {
  type Boot,
  type BootedMachine,
  PowerCut,
  type SealedMachine,
  sealedMachine,
} from './sealed-machine-fixture.ts';
import { SecureBootOffError } from './sealed-volume.ts';

/** Recovers in a boot that has been refused: PCR 11 is capped. */
function recover(machine: SealedMachine, boot: Boot, key: Uint8Array = machine.recoveryKey): Promise<string> {
  return machine.boot(boot, ({ machine: booted, device }: BootedMachine) => {
    booted.tpm.extendPcr(11, Buffer.alloc(32, 1));
    return recoverVolume(booted, { device, uuid: FIXTURE_UUID, directory: { path: machine.tpm.directory } }, key);
  });
}

const NEW_FIRMWARE = { firmware: 'new dbx' };

test('after a change of PCR 7 a node is sealed anew with the recovery key, and the PCR 7 of before opens nothing', async () => {
  await using machine = await sealedMachine();
  const { volumeKey } = await machine.start();
  await assert.rejects(machine.start(NEW_FIRMWARE), SealingError);
  const summary = await recover(machine, NEW_FIRMWARE);
  assert.match(summary, /^sealed as generation 2 to ashlar-epoch-1 and PCR 7 [0-9a-f]{64}; restart to open it$/);
  const opened = await machine.start(NEW_FIRMWARE);
  assert.deepEqual(opened.volumeKey, volumeKey);
  assert.equal(opened.writes, 0, 'nothing is left to do');
  assert.equal(hasLeftovers(readDataHeader(machine.device, FIXTURE_UUID)), false);
  await assert.rejects(machine.start(), SealingError);
});

for (const [name, leave] of [
  ['was cleared', ({ tpm }: SealedMachine) => void tpm.tool('tpm2_clear', '-c', 'l')],
  [
    'is another, taken over by nobody',
    async (machine: SealedMachine) => {
      await using other = await sealedMachine();
      await other.boot({}, () => undefined);
      await machine.restore({ ...other.save(), disk: machine.save().disk, isMarked: true });
    },
  ],
] as const) {
  test(`a node whose TPM ${name} is sealed to it with the recovery key, and owns it`, async () => {
    await using machine = await sealedMachine();
    const { volumeKey } = await machine.start();
    await leave(machine);
    await assert.rejects(machine.start(), SealingError);
    await recover(machine, {});
    const opened = await machine.start();
    assert.deepEqual(opened.volumeKey, volumeKey);
    assert.match(machine.tpm.tool('tpm2_getcap', 'properties-variable'), /ownerAuthSet:\s+1/);
  });
}

test('a recovery whose power goes at any write can be done again, or has been done', async (t) => {
  await using machine = await sealedMachine();
  const { volumeKey } = await machine.start();
  const before = machine.save();
  let count = 0;
  for (; ; count += 1) {
    await machine.restore(before);
    const end = await recover(machine, { ...NEW_FIRMWARE, writes: count }).catch((error: unknown) => error);
    const opened = await machine.start(NEW_FIRMWARE).catch(() => undefined);
    if (opened === undefined) await recover(machine, NEW_FIRMWARE);
    assert.deepEqual((await machine.start(NEW_FIRMWARE)).volumeKey, volumeKey, `after a cut at write ${count + 1}`);
    if (!(end instanceof PowerCut)) break;
  }
  assert.ok(count >= 6, `${count} writes`);
  t.diagnostic(`${count} writes`);
});

test('another key, Secure Boot off, or a TPM of somebody else recovers nothing and changes nothing', async () => {
  await using machine = await sealedMachine();
  await machine.start();
  const before = machine.save();
  await assert.rejects(recover(machine, {}, Buffer.alloc(32, 1)), WrongSlotKeyError);
  await assert.rejects(recover(machine, { secureBoot: 0 }), SecureBootOffError);
  machine.tpm.tool('tpm2_clear', '-c', 'l');
  machine.tpm.tool('tpm2_changeauth', '-c', 'o', 'somebody');
  await assert.rejects(recover(machine, {}), TpmInUseError);
  assert.ok(before.disk.equals(machine.save().disk));
  await machine.restore(before);
  await machine.start();
});
