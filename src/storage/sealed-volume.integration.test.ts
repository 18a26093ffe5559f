import assert from 'node:assert/strict';
import type { KeyObject } from 'node:crypto';
import { test } from 'node:test';
import { SealingError } from '../tpm/sealing.ts';
import type { Tpm } from '../tpm/tpm.ts';
import { tapTpm } from '../tpm/tpm-bus-fixture.ts';
import { readDataHeader } from './data-volume.ts';
import { FIXTURE_UUID } from './data-volume-fixture.ts';
import { cutFirstBoot, cutPrediction, cutResealing, tpmState } from './power-cut-fixture.ts';
import { NEXT_POLICY_KEY, POLICY_KEY, sealedMachine } from './sealed-machine-fixture.ts';
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
    policyKeyPem: policyKeyPem(POLICY_KEY),
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

test('a resealing that the TPM refuses is a warning, opens as before, and is done by the boot that can', async () => {
  await using machine = await sealedMachine();
  const { volumeKey, ...opened } = await machine.start();
  machine.request({ volumeKey, ...opened }, { reason: 'a new epoch' });
  for (const fault of ['nvDefine', 'unseal', 'nvUndefine']) {
    let calls = 0;
    const wrap = (tpm: Tpm) =>
      new Proxy(tpm, {
        get(target, property) {
          const value: unknown = Reflect.get(target, property, target);
          if (typeof value !== 'function') return value;
          return (...args: unknown[]) => {
            // The first unseal opens the volume, the second proves the new generation.
            if (property === fault && (calls += 1) === (fault === 'unseal' ? 2 : 1)) throw new Error('memory is full');
            return (value as (...all: unknown[]) => unknown).apply(target, args);
          };
        },
      });
    const { settled, volumeKey: key } = await machine.start({ epoch: 2, wrap });
    assert.deepEqual(key, volumeKey);
    assert.match(settled.warnings.join(), /could not be resealed; it opens as before, .*: memory is full/, fault);
  }
  const { settled } = await machine.start({ epoch: 2 });
  assert.match(settled.warnings.join(), /for generation 1, .*: it was done/, 'the proof was all that failed');
  assert.deepEqual((await machine.start({ epoch: 2 })).settled.warnings, []);
  assert.equal(settled.sealing?.policyRef, 'ashlar-epoch-2');
});

test('an image of the epoch before does not end, nor repeat, what a newer one has begun', async () => {
  await using machine = await sealedMachine();
  machine.request(await machine.start(), { reason: 'a new epoch' });
  await machine.start({ epoch: 2, wrap: withoutUndefine });
  // The image of before does not open the new generation, and ends nothing that a newer image may open.
  const older = await machine.start({ epoch: 1 });
  assert.equal(older.settled.sealing?.generation, 1);
  assert.match(older.settled.warnings.join(), /is left to the newer image/);
  assert.equal((await machine.start({ epoch: 2 })).settled.sealing?.generation, 2);
});

test('a node that is sealed to the former policy key opens under an image of the new one, and moves to it when asked', async () => {
  await using machine = await sealedMachine();
  const first = await machine.start();
  const fingerprint = first.settled.sealing?.policyKeyFingerprint ?? '';
  const next = await machine.start({ policyKey: 'next' });
  assert.equal(next.settled.sealing?.policyKeyFingerprint, fingerprint, 'nothing moves unasked');
  assert.match(
    next.settled.warnings.join(),
    new RegExp(`still sealed to the former policy key ${fingerprint.slice(0, 16)}`),
  );
  assert.deepEqual((await machine.start()).settled.warnings, [], 'the image of before is still good');
  machine.request(next, { reason: 'a new policy key' });
  const moved = await machine.start({ policyKey: 'next' });
  assert.deepEqual(moved.volumeKey, first.volumeKey);
  assert.deepEqual(moved.settled.warnings, []);
  assert.notEqual(moved.settled.sealing?.policyKeyFingerprint, fingerprint);
  assert.equal(moved.settled.sealing?.policyKeyPem, policyKeyPem(NEXT_POLICY_KEY));
  await assert.rejects(machine.start(), (error) => {
    assert.ok(error instanceof SealingError);
    assert.equal(error.failure, 'image-not-allowed');
    assert.match(error.message, /another policy key than this image's/);
    return true;
  });
});

test('a request under the former policy key leaves to the newer image what that has begun', async () => {
  await using machine = await sealedMachine();
  machine.request(await machine.start(), { reason: 'a new policy key' });
  await machine.start({ policyKey: 'next', wrap: withoutUndefine });
  const older = await machine.start();
  assert.equal(older.settled.sealing?.generation, 1);
  assert.equal(older.settled.sealing?.waiting, undefined, 'it cannot say to which key the other generation is sealed');
  assert.match(older.settled.warnings.join(), /is left to the newer image/);
  assert.equal((await machine.start({ policyKey: 'next' })).settled.sealing?.generation, 2);
});

test('a generation that waits for a PCR 7 to come is told of', async () => {
  await using machine = await sealedMachine();
  machine.request(await machine.start(), { reason: 'a new dbx', pcr7: machine.pcr7('new dbx') });
  const { settled } = await machine.start();
  const { policyKeyFingerprint = '', waiting } = settled.sealing ?? {};
  const pcr7 = machine.pcr7('new dbx');
  assert.deepEqual(waiting, { policyKeyFingerprint, policyRef: 'ashlar-epoch-1', pcr7, generation: 2 });
  const changed = await machine.start({ firmware: 'new dbx' });
  assert.equal(changed.settled.sealing?.waiting, undefined);
});

/** The power goes before an old anchor does. */
function withoutUndefine(tpm: Tpm): Tpm {
  return new Proxy(tpm, {
    get(target, property) {
      const value: unknown = Reflect.get(target, property, target);
      if (typeof value !== 'function') return value;
      return (...args: unknown[]) => {
        if (property === 'nvUndefine') throw new Error('the power goes here');
        return (value as (...all: unknown[]) => unknown).apply(target, args);
      };
    },
  });
}

function policyKeyPem({ publicKey }: { readonly publicKey: KeyObject }): string {
  return publicKey.export({ format: 'pem', type: 'spki' }).toString();
}

// Every write has its turn in sealed-power-cuts.full.test.ts.
test('a first boot whose power goes is repeated or finished by the next', async () => {
  await cutFirstBoot(3);
});

test('a resealing whose power goes opens again, and ends with one generation, of the new epoch', async () => {
  await cutResealing(7);
});

test('a resealing for a PCR 7 to come whose power goes opens before and after it', async () => {
  await cutPrediction(5);
});
