/** What a first boot must have shown. One boot serves all of these; see lab/provisioned-node.ts. */
import assert from 'node:assert/strict';
import { runProcess } from '../tools/host/run-process.ts';
import { vmTest } from './lab/lab.ts';
import { nodeConsole } from './lab/node-console.ts';
import { provisionedNode } from './lab/provisioned-node.ts';
import { assertShutdownOrder } from './lab/shutdown-order.ts';

vmTest('a first boot passes every stage in order and ends with a node that is ready', async (lab) => {
  const { boot, nodeId } = await provisionedNode(lab);
  const stages = [
    nodeConsole.stage1,
    nodeConsole.systemVerified,
    nodeConsole.stage2,
    nodeConsole.dataOpen,
    nodeConsole.etcd,
    nodeConsole.curator,
    nodeConsole.ready,
  ];
  const found = stages.map((pattern) => boot.findIndex((line) => pattern.test(line.text)));
  assert.ok(!found.includes(-1), `missing: ${stages.filter((_, index) => found[index] === -1).join(', ')}`);
  assert.deepEqual(
    found,
    found.toSorted((a, b) => a - b),
  );
  assert.ok(boot.some((line) => line.text.includes(nodeId)));
});

vmTest('a node that was taken ownership of is UP, with every service healthy', async (lab) => {
  const { node } = await provisionedNode(lab);
  assert.equal(node.state, 'UP');
  assert.ok(node.roles.includes('control'));
  assert.deepEqual(
    node.services.filter((service) => service.state !== 'HEALTHY'),
    [],
  );
  for (const name of ['agent', 'chrony', 'curator', 'dhcpcd', 'etcd']) {
    assert.ok(
      node.services.some((service) => service.name === name),
      `no service ${name}`,
    );
  }
});

vmTest('PCR 4, 7 and 11 of the booted machine are those predicted before it was switched on', async (lab) => {
  const { node } = await provisionedNode(lab);
  const predicted = lab.image.predictedPcrs;
  const actual = Object.fromEntries(Object.keys(predicted).map((index) => [index, node.pcrs[index]]));
  assert.deepEqual(actual, predicted);
  assert.match(node.pcrs['12'] ?? '', /^0{64}$/, 'nothing may have been injected');
  assert.doesNotMatch(node.pcrs['14'] ?? '', /^0{64}$/, 'node parameters are measured');
  assert.doesNotMatch(node.pcrs['15'] ?? '', /^0{64}$/, 'the volume is measured');
});

vmTest('tpm2_eventlog reads the event log of the node, and finds the same PCR 4 and 7 in it', async (lab) => {
  const { eventLogPath, node } = await provisionedNode(lab);
  const { stdout } = await runProcess('tpm2_eventlog', [eventLogPath]);
  const pcrs = stdout.slice(stdout.lastIndexOf('\npcrs:'));
  for (const index of ['4', '7']) {
    const replayed = new RegExp(`^\\s+${index}\\s*: 0x([0-9a-f]{64})$`, 'm').exec(pcrs)?.[1];
    assert.equal(replayed, node.pcrs[index], `PCR ${index}`);
  }
});

vmTest('a power-off over the API stops services first, closes the data partition, and says so', async (lab) => {
  const { shutdown } = await provisionedNode(lab);
  assertShutdownOrder(shutdown.map((line) => line.text));
});
