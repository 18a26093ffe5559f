import assert from 'node:assert/strict';
import { test } from 'node:test';
import { tapTpm } from '../tpm/tpm-bus-fixture.ts';
import { readDataHeader } from './data-volume.ts';
import { FIXTURE_UUID } from './data-volume-fixture.ts';
import { PowerCut, type SealedMachine, sealedMachine } from './sealed-machine-fixture.ts';
import { sealedVolume } from './sealed-volume.ts';

/** What the machine's TPM says of its owner and its NV indices, by tools that are not ours. */
function tpmState({ tpm }: SealedMachine): { isOwned: boolean; indices: string[] } {
  const properties = tpm.tool('tpm2_getcap', 'properties-variable');
  const indices = tpm.tool('tpm2_getcap', 'handles-nv-index');
  return {
    isOwned: /ownerAuthSet:\s+1/.test(properties),
    indices: [...indices.matchAll(/0x1A51A0[01]/gi)].map(([index]) => index.toLowerCase()).sort(),
  };
}

async function assertSettled(machine: SealedMachine, generation: number): Promise<void> {
  const { settled } = await machine.start({ epoch: 2 });
  assert.deepEqual(settled.warnings, []);
  assert.equal(settled.sealing?.generation, generation);
  assert.deepEqual(settled.header.accepted.slotAreas.length, 2);
  const { isOwned, indices } = tpmState(machine);
  assert.ok(isOwned);
  assert.equal(indices.length, 1);
}

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

test('a first boot whose power goes at any write is repeated or finished by the next', async () => {
  await using machine = await sealedMachine();
  await machine.boot({}, () => undefined);
  const empty = machine.save();
  const { writes } = await machine.start();
  for (let count = 0; count < writes; count += 1) {
    await machine.restore(empty);
    await assert.rejects(machine.start({ writes: count }), PowerCut);
    const opened = await machine.start();
    assert.equal(opened.settled.sealing?.generation, 1);
    assert.deepEqual(tpmState(machine), { isOwned: true, indices: ['0x1a51a00'] }, `after a cut at write ${count + 1}`);
  }
  assert.ok(writes >= 6, `${writes} writes`);
});

test('a resealing whose power goes at any write opens again and ends with one generation, of the new epoch', async (t) => {
  await using machine = await sealedMachine();
  const provisioned = await machine.start();
  machine.request(provisioned, { reason: 'a new epoch' });
  const before = machine.save();
  const { writes, settled } = await machine.start({ epoch: 2 });
  assert.match(
    settled.sealing?.resealed ?? '',
    /^generation 2 for ashlar-epoch-2 and PCR 7 [0-9a-f]{64}: a new epoch$/,
  );
  for (let count = 0; count < writes; count += 1) {
    await machine.restore(before);
    const cut = await machine.start({ epoch: 2, writes: count }).catch((error: unknown) => error);
    assert.ok(cut instanceof PowerCut, String(cut));
    const opened = await machine.start({ epoch: 2 });
    assert.deepEqual(opened.volumeKey, provisioned.volumeKey, `the same volume after a cut at write ${count + 1}`);
    await assertSettled(machine, 2);
  }
  t.diagnostic(`${writes} writes`);
});
