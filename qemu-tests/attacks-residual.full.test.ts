/**
 * What is not refused, shown as it is: attacks that no single machine can tell from its own normal life. Each test names
 * what somebody outside the machine can see (docs/attacks.md, "Residual"). A TPM taken out of its machine is in
 * attacks-bus.full.test.ts.
 */
import assert from 'node:assert/strict';
import { setPartitionAttribute } from '../src/formats/gpt.ts';
import { diskLayout, initialisedAttributeBit } from '../src/storage/disk-layout.ts';
import { runProcess } from '../tools/host/run-process.ts';
import { readTable, writeTable } from './lab/disk-edits.ts';
import { type Lab, vmTest } from './lab/lab.ts';
import { nodeConsole } from './lab/node-console.ts';
import { provisionedNode } from './lab/provisioned-node.ts';
import type { Machine } from './machine/machine.ts';

/** Boots until the node says who it is. */
async function identityOf(lab: Lab, machine: Machine): Promise<string> {
  await machine.powerOn();
  const line = await machine.waitForLine(nodeConsole.identity, { deadlineMs: lab.bootDeadlineMs });
  return nodeConsole.identity.exec(line.text)?.[1] ?? '';
}

vmTest('an older copy of the whole disk, of the same epoch, opens as if nothing had happened since', async (lab) => {
  const { snapshot, nodeId } = await provisionedNode(lab);
  const machine = await lab.machine({ snapshot });
  assert.equal(await identityOf(lab, machine), nodeId);
  await machine.powerCut();

  const older = await lab.machine({ snapshot });
  await older.changeTpm(machine.tpmDirectory);
  assert.equal(await identityOf(lab, older), nodeId);
});

vmTest(
  'on a TPM that somebody cleared, a new volume makes another node, and both keys and PCR 15 tell',
  async (lab) => {
    const { snapshot, nodeId, recordedPcrs } = await provisionedNode(lab);
    const machine = await lab.machine({ snapshot });
    // The firmware's menu does this for whoever stands before the machine.
    await machine.withTpm(async (tcti) => void (await runProcess('tpm2_clear', ['-T', tcti, '-c', 'p'])));
    const table = await readTable(machine);
    await writeTable(machine, setPartitionAttribute(table, diskLayout.data.number, initialisedAttributeBit, false));

    assert.notEqual(await identityOf(lab, machine), nodeId, 'nothing of the old node may be left');
    const pcrs = await machine.pcrs();
    for (const same of ['4', '7', '11', '12']) assert.equal(pcrs[same], recordedPcrs[same], `PCR ${same}`);
    assert.notEqual(pcrs['15'], recordedPcrs['15'], 'the volume is another, and measured');
  },
);
