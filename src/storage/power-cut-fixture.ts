/** Cuts the power at each write of what a node writes to disk and TPM, and looks at what the next boots make of it. */
import assert from 'node:assert/strict';
import { type Boot, PowerCut, type SealedMachine, sealedMachine } from './sealed-machine-fixture.ts';

/** What the machine's TPM says of its owner and its NV indices, by tools that are not ours. */
export function tpmState({ tpm }: SealedMachine): { isOwned: boolean; indices: string[] } {
  const properties = tpm.tool('tpm2_getcap', 'properties-variable');
  const indices = tpm.tool('tpm2_getcap', 'handles-nv-index');
  return {
    isOwned: /ownerAuthSet:\s+1/.test(properties),
    indices: [...indices.matchAll(/0x1A51A0[01]/gi)].map(([index]) => index.toLowerCase()).sort(),
  };
}

/** Each starts anew for every `stride`-th write, and gives the number of writes without a cut. */
export async function cutFirstBoot(stride: number): Promise<number> {
  await using machine = await sealedMachine();
  await machine.boot({}, () => undefined);
  const empty = machine.save();
  const { writes } = await machine.start();
  for (let count = 0; count < writes; count += stride) {
    await machine.restore(empty);
    await assertCut(machine, { writes: count });
    const opened = await machine.start();
    assert.equal(opened.settled.sealing?.generation, 1);
    assert.deepEqual(tpmState(machine), { isOwned: true, indices: ['0x1a51a00'] }, `after a cut at write ${count + 1}`);
  }
  return writes;
}

/** To the epoch of a newer image, or to its policy key. */
export async function cutResealing(stride: number, image: Boot = { epoch: 2 }): Promise<number> {
  await using machine = await sealedMachine();
  const provisioned = await machine.start();
  machine.request(provisioned, { reason: 'a new image' });
  const before = machine.save();
  const { writes, settled } = await machine.start(image);
  assert.match(
    settled.sealing?.resealed ?? '',
    /^generation 2 for ashlar-epoch-[12] and PCR 7 [0-9a-f]{64}: a new image$/,
  );
  for (let count = 0; count < writes; count += stride) {
    await machine.restore(before);
    await assertCut(machine, { ...image, writes: count });
    const opened = await machine.start(image);
    assert.deepEqual(opened.volumeKey, provisioned.volumeKey, `the same volume after a cut at write ${count + 1}`);
    await assertOneGeneration(machine, image, 2);
    machine.device.write(0, before.disk.subarray(0, 2 * 1024 * 1024));
    for (const boot of [{}, image]) await assert.rejects(machine.start(boot), /keeps no anchor/);
  }
  return writes;
}

/** To a PCR 7 that comes with the boot after the next. */
export async function cutPrediction(stride: number): Promise<number> {
  await using machine = await sealedMachine();
  const provisioned = await machine.start();
  machine.request(provisioned, { reason: 'a new dbx', pcr7: machine.pcr7('new dbx') });
  const before = machine.save();
  const { writes } = await machine.start();
  for (let count = 0; count < writes; count += stride) {
    await machine.restore(before);
    await assertCut(machine, { writes: count });
    const opened = await machine.start();
    assert.equal(opened.settled.sealing?.generation, 1, `the PCR 7 of before opens after a cut at write ${count + 1}`);
    assert.deepEqual(opened.settled.warnings, []);
    const changed = await machine.start({ firmware: 'new dbx' });
    assert.deepEqual(changed.volumeKey, provisioned.volumeKey);
    // A request that was carried out and not yet forgotten when the power went is carried out again.
    await assertOneGeneration(machine, { firmware: 'new dbx' }, 2, 3);
  }
  return writes;
}

async function assertCut(machine: SealedMachine, boot: Boot): Promise<void> {
  const end = await machine.start(boot).catch((error: unknown) => error);
  assert.ok(end instanceof PowerCut, String(end));
}

async function assertOneGeneration(machine: SealedMachine, boot: Boot, ...numbers: number[]): Promise<void> {
  const { settled, writes } = await machine.start(boot);
  assert.deepEqual(settled.warnings, []);
  assert.ok(numbers.includes(settled.sealing?.generation ?? 0), `generation ${settled.sealing?.generation}`);
  assert.equal(settled.header.accepted.slotAreas.length, 2);
  assert.equal(writes, 0, 'nothing is left to do');
  const { isOwned, indices } = tpmState(machine);
  assert.ok(isOwned);
  assert.equal(indices.length, 1);
}
