/**
 * What a machine's TPM says after a boot equals what was predicted before it was switched on, in every way in which an
 * image can be booted. The actual values are the TPM's own (tpm-recording.ts), so a boot that the node refuses counts as
 * much as one that it completes.
 */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { predictPcr4 } from '../src/measure/pcr4.ts';
import { predictPcr7 } from '../src/measure/pcr7.ts';
import { predictPcr11OfUki } from '../src/measure/pcr11.ts';
import { bootEntriesNamed, bootOrder, encodeBootEntry, putFirst, setBootOrder } from './lab/boot-entries.ts';
import { moveSystemToSlotB, partitionOf } from './lab/disk-edits.ts';
import { type Lab, vmTest } from './lab/lab.ts';
import { nodeConsole } from './lab/node-console.ts';
import { provisionedNode } from './lab/provisioned-node.ts';
import type { Machine } from './machine/machine.ts';
import { openPrivateNetwork } from './machine/private-network.ts';
import { type FirmwareState, secureBootVariablesIn } from './machine/secure-firmware.ts';

const ZERO = '0'.repeat(64);
const OWN_ENTRY = 0x0a5;
const NETBOOT_MEMORY_MIB = 2048;

/** PCR 4, 7, 11 (capped) and 12 of a machine that is still off, from its UKI and the variables in its flash. */
async function predict(lab: Lab, machine: Machine, isSecureBootOn: boolean): Promise<Record<string, string>> {
  const uki = await readFile(lab.image.ukiPath);
  const variables = secureBootVariablesIn(await readFile(machine.variablesPath));
  const hex = ({ value }: { value: Uint8Array }) => Buffer.from(value).toString('hex');
  return {
    '4': hex(predictPcr4(uki, { isSecureBootOn })),
    '7': hex(predictPcr7({ variables, isSecureBootOn })),
    '11': hex(predictPcr11OfUki(uki)['leave-initrd']),
    '12': ZERO,
  };
}

/** Switches on, waits until the unlock is over, and compares. @returns the line that ended the unlock */
async function bootAsPredicted(lab: Lab, machine: Machine, isSecureBootOn = true): Promise<string> {
  const predicted = await predict(lab, machine, isSecureBootOn);
  await machine.powerOn();
  const end = await machine.waitForLine(nodeConsole.unlockOver, { deadlineMs: lab.bootDeadlineMs, failOn: 'nothing' });
  const actual = await machine.pcrs();
  assert.deepEqual(Object.fromEntries(Object.keys(predicted).map((index) => [index, actual[index]])), predicted);
  lab.context.diagnostic(end.text);
  await machine.powerCut();
  return end.text;
}

/** The provisioned node's disk and TPM behind firmware in another state. */
async function behindFirmware(lab: Lab, state: FirmwareState): Promise<Machine> {
  const { snapshot } = await provisionedNode(lab);
  const firmware = await lab.firmwareIn(state);
  const machine = await lab.machine({ snapshot, firmware });
  const variables = await readFile(firmware.variablesPath);
  await machine.changeVariables(() => variables);
  return machine;
}

vmTest('the TPM of a first boot was told exactly what the node reports over its API', async (lab) => {
  const { node, recordedPcrs } = await provisionedNode(lab);
  const static_ = ([index]: [string, string]) => Number(index) < 17;
  assert.deepEqual(
    Object.fromEntries(Object.entries(recordedPcrs).filter(static_)),
    Object.fromEntries(Object.entries(node.pcrs).filter(static_)),
  );
});

vmTest('slot B, by a boot entry of its own, is as predicted and opens the data', async (lab) => {
  const { snapshot } = await provisionedNode(lab);
  const machine = await lab.machine({ snapshot });
  await moveSystemToSlotB(machine, lab.image);
  const esp = await partitionOf(machine, 'ESP');
  const entry = encodeBootEntry({ description: 'Ashlar B', esp, path: '\\EFI\\ashlar\\b.efi' });
  await machine.changeVariables((image) => putFirst(image, OWN_ENTRY, entry));
  assert.match(await bootAsPredicted(lab, machine), nodeConsole.dataOpen);
  const said = machine.linesSinceMark().map(({ text }) => text);
  assert.ok(
    said.some((text) => /starting Boot00A5 "Ashlar B"/.test(text)),
    'the firmware must have used the entry',
  );
  assert.ok(said.some((text) => /slot B\b/.test(text)));
});

vmTest('the same UKI by UEFI HTTP boot is as predicted and opens the data', async (lab) => {
  const { snapshot } = await provisionedNode(lab);
  await using network = await openPrivateNetwork({ directory: lab.directory, bootFilePath: lab.image.ukiPath });
  const machine = await lab.machine({
    snapshot,
    network: network.machineNetwork,
    memoryMib: NETBOOT_MEMORY_MIB,
    smbiosStrings: [],
  });
  // The firmware makes an entry for what it finds; it has not seen this network yet.
  await machine.powerOn();
  await machine.waitForLine(/BdsDxe: starting Boot/, { deadlineMs: lab.bootDeadlineMs });
  await machine.powerCut();
  await machine.changeVariables((image) => {
    const [http, ...others] = bootEntriesNamed(image, 'HTTPv4');
    assert.ok(http !== undefined && others.length === 0, 'the firmware must offer one HTTP boot over IPv4');
    return setBootOrder(image, [http, ...bootOrder(image).filter((number) => number !== http)]);
  });
  assert.match(await bootAsPredicted(lab, machine), nodeConsole.dataOpen);
  assert.match(await readFile(network.logPath, 'utf8'), /^GET \/ashlar-.*\.efi$/m);
});

vmTest('with Secure Boot off, the keys in place, all is as predicted, and the data stays closed', async (lab) => {
  const machine = await behindFirmware(lab, { secureBoot: 'off' });
  assert.match(await bootAsPredicted(lab, machine, false), /FAILED data: .*PCR 7 is .*Secure Boot was switched off/);
});

vmTest('in Setup Mode, without keys, all is as predicted, and the data stays closed', async (lab) => {
  const machine = await behindFirmware(lab, { secureBoot: 'setup-mode' });
  assert.match(await bootAsPredicted(lab, machine, false), /FAILED data: .*PCR 7 is /);
});

vmTest('on the older OVMF 2022.11 all is as predicted, and the data opens', async (lab) => {
  const machine = await behindFirmware(lab, { release: 'bookworm' });
  assert.match(await bootAsPredicted(lab, machine), nodeConsole.dataOpen);
});

vmTest('with a revocation list all is as predicted, and the data stays closed', async (lab) => {
  const machine = await behindFirmware(lab, { dbx: 'dummy' });
  assert.match(await bootAsPredicted(lab, machine), /FAILED data: .*PCR 7 is .*revocation list changed/);
});
