/**
 * A service that dies at once, whenever it is started. No image of ours has one; this one is built from a copy of the
 * checkout with one manifest more.
 */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { readBuiltImage } from './lab/built-image.ts';
import { copyCheckout } from './lab/checkout-copy.ts';
import { vmTest } from './lab/lab.ts';
import { nodeConsole } from './lab/node-console.ts';

const WATCH_MS = 25_000;

/** chronyd with an option it does not know: it says so and exits with 1. */
const CRASHER = {
  name: 'crasher',
  description: 'Ends at once, again and again',
  roles: ['node'],
  after: [],
  process: { args: ['/usr/sbin/chronyd', '--no-such-option'] },
  uid: 299,
  gid: 299,
  capabilities: [],
  network: 'host',
  seccomp: 'default',
  mounts: { tmpfs: [], binds: [] },
  devices: [],
  limits: { memoryMaxBytes: 33554432, memoryHighBytes: 25165824, pidsMax: 16, cpuWeight: 100 },
  readiness: { kind: 'started' },
  stop: { signal: 'SIGTERM', deadlineMs: 3000 },
  listens: [],
  rootfs: { binaries: ['/usr/sbin/chronyd'], libraries: [], files: [], directories: [] },
};

interface ListedService {
  readonly name: string;
  readonly state: string;
  readonly restarts: number;
  readonly lastExit: string;
}

vmTest('a service that crashes is restarted with growing pauses, and harms no other', async (lab) => {
  const copy = await copyCheckout(join(lab.directory, 'checkout'));
  await writeFile(join(copy.directory, 'image/system/services/crasher.json'), JSON.stringify(CRASHER));
  const imageDirectory = join(lab.directory, 'image');
  await copy.build(imageDirectory);
  const image = await readBuiltImage(imageDirectory);
  const machine = await lab.machine({ image: { path: image.diskImagePath, format: 'raw' } });
  await machine.powerOn();
  await machine.waitForLine(nodeConsole.curator, { deadlineMs: lab.bootDeadlineMs });
  const agent = machine.waitForLine(nodeConsole.agent, { deadlineMs: lab.bootDeadlineMs });
  const said = machine.linesSinceMark().map((line) => line.text);
  const fingerprint = said.map((text) => nodeConsole.fingerprint.exec(text)?.[1]).find((found) => found !== undefined);
  const nodeId = said.map((text) => nodeConsole.identity.exec(text)?.[1]).find((found) => found !== undefined);
  assert.ok(fingerprint !== undefined && nodeId !== undefined);
  await agent;

  const operator = await lab.operator(machine);
  await operator.takeOwnership(fingerprint);
  const services = async () => (await operator.run('node', 'services', nodeId)) as ListedService[];
  const crasher = async () => (await services()).find(({ name }) => name === CRASHER.name);
  const before = await crasher();
  assert.ok(before !== undefined);
  assert.match(before.lastExit, /1/);
  const restarts: number[] = [];
  for (const start = performance.now(); performance.now() - start < 2 * WATCH_MS; await sleep(WATCH_MS / 2)) {
    restarts.push((await crasher())?.restarts ?? -1);
  }
  lab.context.diagnostic(`restarts over time: ${restarts.join(', ')}`);
  const gained = restarts.slice(1).map((count, index) => count - (restarts[index] ?? 0));
  assert.ok((restarts.at(-1) ?? 0) > 1, 'it must be restarted');
  assert.ok((gained.at(-1) ?? 0) <= (gained[0] ?? 0), `later pauses must not be shorter: ${gained.join(', ')}`);
  const others = (await services()).filter(({ name }) => name !== CRASHER.name);
  assert.deepEqual(
    others.filter(({ state }) => state !== 'HEALTHY'),
    [],
  );
});
