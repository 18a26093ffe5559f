/** Parameters and surroundings that a new node cannot begin in: it says what is wrong, and stays up where that helps. */
import assert from 'node:assert/strict';
import { readPartitions } from './lab/disk-partitions.ts';
import { vmTest } from './lab/lab.ts';
import { nodeConsole } from './lab/node-console.ts';
import { provisionedNode } from './lab/provisioned-node.ts';

vmTest('node parameters that are malformed, too large or of another version are refused by name', async (lab) => {
  const good = new TextDecoder().decode(await lab.nodeParameters());
  const cases: readonly (readonly [bytes: string, reason: RegExp])[] = [
    [good.slice(0, -10), /not JSON/],
    [good.padEnd(70_000), /70000 bytes/],
    [good.replace('"version": 1', '"version": 2'), /version/],
    [good.replace('"recovery"', '"recovry"'), /recovry/],
  ];
  const machine = await lab.machine();
  for (const [bytes, reason] of cases) {
    machine.setNodeParameters(new TextEncoder().encode(bytes));
    await machine.powerOn();
    const refusal = await machine.waitForLine(/FAILED parameters: cannot use the node parameters/, {
      deadlineMs: lab.bootDeadlineMs,
      failOn: nodeConsole.unlockOver,
    });
    assert.match(refusal.text, reason);
    await machine.powerCut();
  }
});

vmTest('a disk too small for a data partition is refused with what is needed', async (lab) => {
  const imageMib = Math.ceil((await readPartitionsEnd(lab.image.diskImagePath)) / (1 << 20));
  const machine = await lab.machine({ diskMib: imageMib + 64 });
  await machine.powerOn();
  const refusal = await machine.waitForLine(/FAILED data: .*disk too small: .*512 MiB are needed/, {
    deadlineMs: lab.bootDeadlineMs,
    failOn: nodeConsole.unlockOver,
  });
  lab.context.diagnostic(refusal.text);
});

vmTest(
  'with a silent DHCP server the node opens its data, says that it waits for an address, and stays up',
  async (lab) => {
    const { snapshot } = await provisionedNode(lab);
    const machine = await lab.machine({ snapshot, network: { kind: 'silent' } });
    await machine.powerOn();
    await machine.waitForLine(nodeConsole.dataOpen, { deadlineMs: lab.bootDeadlineMs });
    await machine.waitForLine(/init\.network: no address after \d+ s, still asking by DHCP/, {
      deadlineMs: lab.bootDeadlineMs,
    });
    // Longer than the watchdog's patience of 60 s: an unfed watchdog would reset the machine.
    await machine.assertStaysUp(75_000);
  },
);

async function readPartitionsEnd(path: string): Promise<number> {
  const ends = [...(await readPartitions(path)).values()].map((partition) => partition.offset + partition.sizeBytes);
  return Math.max(...ends);
}
