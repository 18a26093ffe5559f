/**
 * Going back: an image of an older epoch or of the policy key before, by itself and with everything that the disk held when that image was the
 * newest. The anchor in the TPM remembers what the disk forgets (docs/attacks.md).
 */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createProgress } from '../tools/host/progress.ts';
import { buildImage } from '../tools/mkimage/build.ts';
import { developmentKeys, rotatePolicyKey } from '../tools/mkimage/keys.ts';
import { putOnEsp } from './lab/disk-edits.ts';
import { type Lab, vmTest } from './lab/lab.ts';
import { readLuksHeader, writeLuksHeader } from './lab/luks-edits.ts';
import { nodeConsole } from './lab/node-console.ts';
import { provisionedNode } from './lab/provisioned-node.ts';
import type { Machine } from './machine/machine.ts';

const UKI = '/EFI/BOOT/BOOTX64.EFI';

async function imageEpoch(): Promise<number> {
  const text = await readFile(join(import.meta.dirname, '../image/epoch.json'), 'utf8');
  return (JSON.parse(text) as { epoch: number }).epoch;
}

/** Boots with this UKI, until the unlock is over. @returns the line that ended it */
async function bootWith(lab: Lab, machine: Machine, ukiPath: string): Promise<string> {
  await putOnEsp(machine, { [UKI]: ukiPath });
  await machine.powerOn();
  const end = await machine.waitForLine(nodeConsole.unlockOver, { deadlineMs: lab.bootDeadlineMs, failOn: 'nothing' });
  for (const { text } of machine.linesSinceMark()) if (/init\.data:/.test(text)) lab.context.diagnostic(text);
  lab.context.diagnostic(end.text);
  await machine.powerCut();
  return end.text;
}

interface NewerImage {
  readonly what: string;
  readonly build: (lab: Lab) => Promise<{ readonly uki: string }>;
  /** What the node says when it has sealed anew. */
  readonly resealed: RegExp;
  /** What it says under the older image from then on. */
  readonly refusal: RegExp;
}

const buildOptions = ({ directory }: Lab) => ({
  outDir: join(directory, 'newer'),
  allowDrift: true,
  progress: createProgress(),
});

const newerImages: readonly NewerImage[] = [
  {
    what: 'the next epoch',
    build: async (lab) => buildImage({ ...buildOptions(lab), epoch: (await imageEpoch()) + 1 }),
    resealed: /init\.data: resealed: generation 2 for ashlar-epoch-\d+ .*: a newer image/,
    refusal: /FAILED data: .*the key is sealed for images of "ashlar-epoch-\d+" and later, this image is of/,
  },
  {
    what: 'a new policy key, which the one before approves too,',
    build: async (lab) => {
      const keysDir = join(lab.directory, 'keys');
      await rotatePolicyKey((await developmentKeys()).directory, keysDir);
      return buildImage({ ...buildOptions(lab), keysDir });
    },
    resealed: /init\.data: resealed: generation 2 for ashlar-epoch-\d+ .*: a newer image/,
    refusal: /FAILED data: .*the key is sealed for images of another policy key than this image's/,
  },
];

for (const { what, build, resealed, refusal } of newerImages) {
  vmTest(`after an image of ${what} the older image opens nothing, nor with the disk as it was`, async (lab) => {
    const { snapshot, nodeId, fingerprint } = await provisionedNode(lab);
    const machine = await lab.machine({ snapshot });
    const oldHeader = await readLuksHeader(machine);
    const newer = await build(lab);

    // The newer image opens what is sealed for the older one, and leaves it so until it is asked to seal anew.
    await putOnEsp(machine, { [UKI]: newer.uki });
    await machine.powerOn();
    await machine.waitForLine(nodeConsole.ready, { deadlineMs: lab.bootDeadlineMs });
    const operator = await lab.operator(machine);
    await operator.takeOwnership(fingerprint);
    await operator.run('node', 'reseal', nodeId, '--reason', 'a newer image');
    machine.mark();
    await operator.run('node', 'reboot', nodeId);
    await machine.waitForReset(lab.shutdownDeadlineMs);
    machine.mark();
    await machine.waitForLine(resealed, { deadlineMs: lab.bootDeadlineMs, failOn: nodeConsole.failed });
    await machine.waitForLine(nodeConsole.dataOpen, { deadlineMs: lab.bootDeadlineMs });
    await machine.powerCut();
    const newHeader = await readLuksHeader(machine);
    assert.ok(!newHeader.equals(oldHeader), 'the key must have been sealed anew');

    assert.match(await bootWith(lab, machine, lab.image.ukiPath), refusal);
    await writeLuksHeader(machine, oldHeader);
    assert.match(
      await bootWith(lab, machine, lab.image.ukiPath),
      /FAILED data: .*the TPM keeps no anchor 0x01a51a00 for this key: it was retired, and an older copy/,
    );
    // What was there is not lost: with its own header the newer image opens it.
    await writeLuksHeader(machine, newHeader);
    assert.match(await bootWith(lab, machine, newer.uki), nodeConsole.dataOpen);
  });
}
