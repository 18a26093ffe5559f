/**
 * What a machine's TPM says after a boot equals what was predicted before it was switched on, in every way in which an
 * image can be booted. The actual values are the TPM's own (tpm-recording.ts), so a boot that the node refuses counts as
 * much as one that it completes.
 */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import type { Gpt } from '../src/formats/gpt.ts';
import { predictPcr4 } from '../src/measure/pcr4.ts';
import { predictPcr5 } from '../src/measure/pcr5.ts';
import { predictPcr7 } from '../src/measure/pcr7.ts';
import { predictPcr9 } from '../src/measure/pcr9.ts';
import { predictPcr11OfUki } from '../src/measure/pcr11.ts';
import { predictPcr12 } from '../src/measure/pcr12.ts';
import { bootEntriesNamed, bootOrder, encodeBootEntry, putFirst, setBootOrder } from './lab/boot-entries.ts';
import { moveSystemToSlotB, partitionOf, readTable } from './lab/disk-edits.ts';
import { readRawTable } from './lab/disk-partitions.ts';
import { type Lab, vmTest } from './lab/lab.ts';
import { nodeConsole } from './lab/node-console.ts';
import { provisionedNode } from './lab/provisioned-node.ts';
import type { Machine } from './machine/machine.ts';
import { openPrivateNetwork } from './machine/private-network.ts';
import { type FirmwareState, secureBootVariablesIn } from './machine/secure-firmware.ts';

const OWN_ENTRY = 0x0a5;
const NETBOOT_MEMORY_MIB = 2048;

interface BootWay {
  readonly isSecureBootOn?: boolean;
  /** @default the machine's disk, with its table as it is now */
  readonly bootedFrom?: Gpt | 'network';
}

/** What firmware and node will measure, of a machine that is still off: from its UKI, its flash and its disk. */
async function predict(lab: Lab, machine: Machine, way: BootWay): Promise<Record<string, string>> {
  const { isSecureBootOn = true, bootedFrom = await readTable(machine) } = way;
  const uki = await readFile(lab.image.ukiPath);
  const variables = secureBootVariablesIn(await readFile(machine.variablesPath));
  const predictions = {
    '4': predictPcr4(uki, { isSecureBootOn }),
    '5': predictPcr5({ bootedFrom }),
    '7': predictPcr7({ variables, isSecureBootOn }),
    '9': predictPcr9(uki),
    '11': predictPcr11OfUki(uki)['leave-initrd'],
    '12': predictPcr12(),
  };
  return Object.fromEntries(
    Object.entries(predictions).map(([index, { value }]) => [index, Buffer.from(value).toString('hex')]),
  );
}

/** Switches on, waits until the unlock is over, and compares. @returns the line that ended the unlock */
async function bootAsPredicted(lab: Lab, machine: Machine, way: BootWay = {}): Promise<string> {
  const predicted = await predict(lab, machine, way);
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

vmTest('a first boot is as predicted', async (lab) => {
  const { node } = await provisionedNode(lab);
  const untouched = await lab.machine();
  // The image's table, not yet fitted to the larger disk.
  const predicted = await predict(lab, untouched, { bootedFrom: await readRawTable(lab.image.diskImagePath) });
  assert.deepEqual(Object.fromEntries(Object.keys(predicted).map((index) => [index, node.pcrs[index]])), predicted);
});

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
  assert.match(await bootAsPredicted(lab, machine, { bootedFrom: 'network' }), nodeConsole.dataOpen);
  assert.match(await readFile(network.logPath, 'utf8'), /^GET \/ashlar-.*\.efi$/m);
});

vmTest('with Secure Boot off, the keys in place, all is as predicted, and the data stays closed', async (lab) => {
  const machine = await behindFirmware(lab, { secureBoot: 'off' });
  assert.match(
    await bootAsPredicted(lab, machine, { isSecureBootOn: false }),
    /FAILED data: .*PCR 7 is .*Secure Boot was switched off/,
  );
});

vmTest('in Setup Mode, without keys, all is as predicted, and the data stays closed', async (lab) => {
  const machine = await behindFirmware(lab, { secureBoot: 'setup-mode' });
  assert.match(await bootAsPredicted(lab, machine, { isSecureBootOn: false }), /FAILED data: .*PCR 7 is /);
});

vmTest('on the older OVMF 2022.11 all is as predicted, and the data opens', async (lab) => {
  const machine = await behindFirmware(lab, { release: 'bookworm' });
  assert.match(await bootAsPredicted(lab, machine), nodeConsole.dataOpen);
});

vmTest('with a revocation list all is as predicted, and the data stays closed', async (lab) => {
  const machine = await behindFirmware(lab, { dbx: 'dummy' });
  assert.match(await bootAsPredicted(lab, machine), /FAILED data: .*PCR 7 is .*revocation list changed/);
});
