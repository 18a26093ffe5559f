/** A machine without Secure Boot keys: it enrols its owner's from its own ESP when it is told to, and never otherwise. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type SecureBootVariables, secureBootVariables } from '../src/formats/efi-signature-list.ts';
import { skipWithout } from '../src/formats/fixtures.ts';
import { createProgress } from '../tools/host/progress.ts';
import { runProcess } from '../tools/host/run-process.ts';
import { buildImage } from '../tools/mkimage/build.ts';
import { makeEnrolment, writeEnrolmentFiles } from '../tools/mkimage/enrolment-files.ts';
import { developmentKeys, generateKeys, loadPublicKeys, type PublicKeys } from '../tools/mkimage/keys.ts';
import { parseSigner } from '../tools/mkimage/signer.ts';
import { putOnEsp } from './lab/disk-edits.ts';
import { type Lab, vmTest } from './lab/lab.ts';
import { nodeConsole } from './lab/node-console.ts';
import type { Machine } from './machine/machine.ts';
import { makeSecureFirmware, putIntoState, secureBootVariablesIn } from './machine/secure-firmware.ts';

vmTest('in Setup Mode a node that may enrols its keys, restarts into Secure Boot, seals, and is ready', async (lab) => {
  const keys = await developmentKeys();
  // As an operator makes it: the files are on the ESP that `mkimage build --enrolment` wrote.
  const enrolmentDir = await writeEnrolment(lab, keys);
  const { diskImage } = await buildImage({ ...buildOptions, outDir: join(lab.directory, 'image'), enrolmentDir });
  const machine = await machineInSetupMode(lab, keys, diskImage);
  await machine.powerOn();
  await machine.waitForLine(/init\.stage2: Secure Boot keys are enrolled/, { deadlineMs: lab.bootDeadlineMs });
  assert.ok(
    !machine.linesSinceMark().some((line) => nodeConsole.dataOpen.test(line.text)),
    'nothing may be sealed yet',
  );
  await machine.waitForReset(lab.shutdownDeadlineMs);
  machine.mark();
  await machine.waitForLine(/Secure Boot enabled/, { deadlineMs: lab.bootDeadlineMs });
  await machine.waitForLine(nodeConsole.ready, { deadlineMs: lab.bootDeadlineMs });
  await machine.powerCut();
  assert.deepEqual(await enrolled(machine), hex(secureBootVariables(keys)));
  await assertReadByOthers(lab, machine, hex(secureBootVariables(keys)));

  // Somebody clears the keys. Enrolling them again would be for the owner to do: there is data now.
  await machine.changeVariables((image) => putIntoState(image, keys, { secureBoot: 'setup-mode' }));
  await machine.powerOn();
  const refusal = await machine.waitForLine(/FAILED secure-boot: .*this disk has data already/, {
    deadlineMs: lab.bootDeadlineMs,
    failOn: nodeConsole.unlockOver,
  });
  lab.context.diagnostic(refusal.text);
  await machine.powerCut();
  assert.equal((await enrolled(machine)).pk, '');
});

vmTest(
  'in Setup Mode nothing is enrolled unasked, nor keys under which the disk would not start again',
  async (lab) => {
    const keys = await developmentKeys();
    const machine = await machineInSetupMode(lab, keys);
    await putEnrolmentOnEsp(lab, machine, keys);
    machine.setNodeParameters(await lab.nodeParameters());
    await machine.powerOn();
    const asEver = await machine.waitForLine(/FAILED data: .*Setup Mode/i, {
      deadlineMs: lab.bootDeadlineMs,
      failOn: nodeConsole.unlockOver,
    });
    lab.context.diagnostic(asEver.text);
    await machine.powerCut();
    assert.deepEqual(await enrolled(machine), { pk: '', kek: '', db: '', dbx: '' });

    const others = join(lab.directory, 'other-keys');
    await generateKeys(others, { isDevelopment: true });
    await putEnrolmentOnEsp(lab, machine, await loadPublicKeys(others));
    machine.setNodeParameters(await mayEnrol(lab));
    await machine.powerOn();
    const refusal = await machine.waitForLine(
      /FAILED secure-boot: cannot enrol db\.auth: .*would never start it again/,
      {
        deadlineMs: lab.bootDeadlineMs,
        failOn: nodeConsole.unlockOver,
      },
    );
    lab.context.diagnostic(refusal.text);
    await machine.powerCut();
    assert.deepEqual(await enrolled(machine), { pk: '', kek: '', db: '', dbx: '' });
  },
);

const buildOptions = { progress: createProgress(), allowDrift: true };

/** With parameters that allow enrolment. */
async function machineInSetupMode(lab: Lab, keys: PublicKeys, diskImage = lab.image.diskImagePath): Promise<Machine> {
  const state = { secureBoot: 'setup-mode' } as const;
  const firmware = await makeSecureFirmware(join(lab.directory, 'setup-mode'), keys, buildOptions, state);
  const image = { path: diskImage, format: 'raw' } as const;
  return await lab.machine({ firmware, image, nodeParameters: await mayEnrol(lab) });
}

const mayEnrol = (lab: Lab) => lab.nodeParameters((parameters) => ({ ...parameters, secureBoot: { enrolKeys: true } }));

/** @returns the directory with the `.auth` files */
async function writeEnrolment(lab: Lab, keys: PublicKeys): Promise<string> {
  const directory = join(lab.directory, `enrolment-${keys.ownerGuid}`);
  const signer = (name: string) => parseSigner(join(keys.directory, name));
  const signers = { pk: signer('PK.key'), kek: signer('KEK.key') };
  await writeEnrolmentFiles(await makeEnrolment({ keys, signers, timestamp: new Date() }), directory);
  return directory;
}

async function putEnrolmentOnEsp(lab: Lab, machine: Machine, keys: PublicKeys): Promise<void> {
  const directory = await writeEnrolment(lab, keys);
  const files = ['PK', 'KEK', 'db'].map((name) => [`/EFI/ashlar/keys/${name}.auth`, join(directory, `${name}.auth`)]);
  await putOnEsp(machine, Object.fromEntries(files) as Record<string, string>);
}

/** virt-fw-vars, where it is installed, finds the same in the firmware's variables. */
async function assertReadByOthers(lab: Lab, machine: Machine, expected: ReturnType<typeof hex>): Promise<void> {
  const missing = skipWithout('virt-fw-vars');
  if (missing !== false) {
    lab.context.diagnostic(`not read by virt-fw-vars: ${missing}`);
    return;
  }
  const json = join(lab.directory, 'variables.json');
  await runProcess('virt-fw-vars', ['-i', machine.variablesPath, '--output-json', json]);
  const { variables } = JSON.parse(await readFile(json, 'utf8')) as { variables: { name: string; data: string }[] };
  const found = (wanted: string) => variables.find(({ name }) => name === wanted)?.data;
  assert.deepEqual([found('PK'), found('KEK'), found('db')], [expected.pk, expected.kek, expected.db]);
}

const enrolled = async (machine: Machine) => hex(secureBootVariablesIn(await readFile(machine.variablesPath)));

function hex({ pk, kek, db, dbx }: SecureBootVariables) {
  const of = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
  return { pk: of(pk), kek: of(kek), db: of(db), dbx: of(dbx) };
}
