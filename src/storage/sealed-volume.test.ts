import assert from 'node:assert/strict';
import { test } from 'node:test';
import { tapTpm } from '../tpm/tpm-bus-fixture.ts';
import { readDataHeader } from './data-volume.ts';
import { FIXTURE_UUID } from './data-volume-fixture.ts';
import { cutFirstBoot, cutPrediction, cutResealing, tpmState } from './power-cut-fixture.ts';
import { sealedMachine } from './sealed-machine-fixture.ts';
import { sealedVolume } from './sealed-volume.ts';

test('a first boot makes a volume that the next boot opens, with an anchor, and an owner of the TPM', async () => {
  await using machine = await sealedMachine();
  const first = await machine.start();
  const next = await machine.start();
  assert.deepEqual(next.volumeKey, first.volumeKey);
  assert.equal(next.writes, 0, 'a settled volume is opened without a write');
  assert.deepEqual(tpmState(machine), { isOwned: true, indices: ['0x1a51a00'] });
  assert.deepEqual(next.settled.sealing, {
    policyRef: 'ashlar-epoch-1',
    policyKeyFingerprint: next.settled.sealing?.policyKeyFingerprint,
    pcr7: machine.pcr7('keys'),
    generation: 1,
    anchor: 'ok',
  });
});

test('the TPM is asked twelve commands for the slot key, and four more to forget what they left in it', async (t) => {
  await using machine = await sealedMachine();
  await machine.start();
  await using bus = await tapTpm(machine.tpm);
  await machine.boot({ tcti: bus.tcti }, async (booted) => {
    await bus.forget();
    const lock = sealedVolume(booted.machine, { path: machine.tpm.directory });
    lock.unlock(booted.device, readDataHeader(booted.device, FIXTURE_UUID))[Symbol.dispose]();
    const commands = await bus.commands();
    t.diagnostic(commands.join(' '));
    assert.deepEqual(commands, [
      'ReadPublic',
      'StartAuthSession',
      'Load',
      'LoadExternal',
      'PolicyPCR',
      'VerifySignature',
      'PolicyAuthorize',
      'PolicyPCR',
      'Unseal',
      'NV_ReadPublic',
      'StartAuthSession',
      'NV_Read',
      ...Array.from({ length: 4 }, () => 'FlushContext'),
    ]);
  });
});

// Every write has its turn in sealed-power-cuts.full.test.ts.
test('a first boot whose power goes is repeated or finished by the next', async () => {
  await cutFirstBoot(2);
});

test('a resealing whose power goes opens again, and ends with one generation, of the new epoch', async () => {
  await cutResealing(5);
});

test('a resealing for a PCR 7 to come whose power goes opens before and after it', async () => {
  await cutPrediction(4);
});
