/** What a node keeps: over a reboot, over a power cut, and when the power goes in the middle of its first boot. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { vmTest } from './lab/lab.ts';
import { nodeConsole } from './lab/node-console.ts';
import { operatorEndpoints } from './lab/operator.ts';
import { provisionedNode } from './lab/provisioned-node.ts';
import { assertShutdownOrder } from './lab/shutdown-order.ts';

vmTest('a node comes back from a reboot and from a power cut as the same node of the same cluster', async (lab) => {
  const before = await provisionedNode(lab);
  const machine = await lab.machine({ snapshot: before.snapshot });
  await machine.powerOn();
  await machine.waitForLine(nodeConsole.ready, { deadlineMs: lab.bootDeadlineMs });
  const operator = await lab.operator(machine);
  // Ownership can be taken again: an operator who lost his certificate is not locked out.
  await operator.takeOwnership(before.fingerprint);
  assert.equal(await operator.clusterId(), before.clusterId);
  const node = await operator.waitForNode(before.nodeId);
  assert.equal(node.data.createdThisBoot, false);

  await machine.powerCut();
  await machine.powerOn();
  const ready = await machine.waitForLine(nodeConsole.ready, { deadlineMs: lab.bootDeadlineMs });
  assert.equal(nodeConsole.ready.exec(ready.text)?.[1], before.nodeId);
  await operator.useEndpoints(await operatorEndpoints(machine));
  assert.equal(await operator.clusterId(), before.clusterId);

  machine.mark();
  await machine.pressPowerButton();
  await machine.waitForPowerOff(lab.shutdownDeadlineMs);
  assertShutdownOrder(machine.linesSinceMark().map((line) => line.text));
});

vmTest('a reboot over the API ends in order and comes back by itself', async (lab) => {
  const before = await provisionedNode(lab);
  const machine = await lab.machine({ snapshot: before.snapshot });
  await machine.powerOn();
  await machine.waitForLine(nodeConsole.ready, { deadlineMs: lab.bootDeadlineMs });
  const operator = await lab.operator(machine);
  await operator.takeOwnership(before.fingerprint);
  machine.mark();
  await operator.run('node', 'reboot', before.nodeId);
  await machine.waitForLine(nodeConsole.shutdownComplete, { deadlineMs: lab.shutdownDeadlineMs });
  await machine.waitForReset(lab.shutdownDeadlineMs);
  machine.mark();
  await machine.waitForLine(nodeConsole.dataOpen, { deadlineMs: lab.bootDeadlineMs });
});

vmTest(
  'a first boot that loses its power while it makes the data partition is repeated, until it succeeds',
  async (lab) => {
    const machine = await lab.machine();
    // Each cut finds the disk as the cut before left it.
    const moments: readonly (readonly [line: RegExp, thenMs: number])[] = [
      [/init\.data: .*writing the partition table/, 0],
      [/init\.data: .*making the file system/, 0],
      [/init\.data: .*making the file system/, 700],
    ];
    for (const [moment, thenMs] of moments) {
      await machine.powerOn();
      const line = await machine.waitForLine(moment, {
        deadlineMs: lab.bootDeadlineMs,
        failOn: nodeConsole.unlockOver,
      });
      await sleep(thenMs);
      await machine.powerCut();
      lab.context.diagnostic(`power cut at: ${line.text}`);
    }
    await machine.powerOn();
    await machine.waitForLine(nodeConsole.ready, { deadlineMs: lab.bootDeadlineMs });
  },
);
