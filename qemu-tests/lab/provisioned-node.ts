/**
 * The first boot that most tests start from, made once for a run: a new machine boots, its owner takes it, an operator
 * looks at it and switches it off. What was seen is kept for the tests that judge it, the disk and the TPM for those
 * that go on from there.
 */
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Lab } from './lab.ts';
import { nodeConsole } from './node-console.ts';
import type { DescribedNode } from './operator.ts';

export interface ConsoleLine {
  readonly text: string;
  readonly atMs: number;
}

export interface ProvisionedNode {
  /** Of disk, firmware variables and TPM, after an ordered shutdown. */
  readonly snapshot: { readonly directory: string };
  readonly nodeId: string;
  readonly clusterId: string;
  readonly fingerprint: string;
  readonly boot: readonly ConsoleLine[];
  readonly shutdown: readonly ConsoleLine[];
  readonly node: DescribedNode;
  /** Evidence that its owner took of it (docs/evidence.md). */
  readonly evidencePath: string;
  /** SHA-256 bank, when the node was UP, as its TPM was told (tpm-recording.ts). */
  readonly recordedPcrs: Readonly<Record<string, string>>;
  /** That recording, of the whole first boot. */
  readonly tpmTrafficPath: string;
  readonly eventLogPath: string;
  /** The machine's disk, as the node left it. */
  readonly diskPath: string;
}

const RECORD = 'record.json';

export async function provisionedNode(lab: Lab): Promise<ProvisionedNode> {
  const directory = await lab.run.shared('provisioned', (path) => provision(lab, path));
  const record = JSON.parse(await readFile(join(directory, RECORD), 'utf8')) as Omit<ProvisionedNode, 'snapshot'>;
  return { ...record, snapshot: { directory: join(directory, 'snapshot') } };
}

async function provision(lab: Lab, directory: string): Promise<void> {
  const machine = await lab.machine();
  await machine.powerOn();
  const ready = await machine.waitForLine(nodeConsole.ready, { deadlineMs: lab.bootDeadlineMs });
  const said = machine.linesSinceMark();
  const fingerprint = said
    .map((line) => nodeConsole.fingerprint.exec(line.text)?.[1])
    .find((found) => found !== undefined);
  if (fingerprint === undefined) throw new Error('cannot take ownership: the console showed no fingerprint');
  const nodeId = nodeConsole.ready.exec(ready.text)?.[1] as string;

  const operator = await lab.operator(machine);
  await operator.takeOwnership(fingerprint);
  const clusterId = await operator.clusterId();
  const node = await operator.waitForNode(nodeId);
  const eventLogPath = join(directory, 'event-log.bin');
  await operator.eventLog(nodeId, eventLogPath);
  const evidencePath = join(directory, 'evidence.json');
  await operator.run('node', 'attest', nodeId, '--out', evidencePath);
  const recordedPcrs = await machine.pcrs();
  const tpmTrafficPath = join(directory, 'tpm-traffic.log');
  await copyFile(machine.tpmTrafficPath, tpmTrafficPath);

  machine.mark();
  await operator.run('node', 'poweroff', nodeId);
  await machine.waitForPowerOff(lab.shutdownDeadlineMs);
  const shutdown = machine.linesSinceMark();
  await machine.snapshot(join(directory, 'snapshot'));
  const record: Omit<ProvisionedNode, 'snapshot'> = {
    nodeId,
    clusterId,
    fingerprint,
    boot: said.map(({ text, atMs }) => ({ text, atMs })),
    shutdown: shutdown.map(({ text, atMs }) => ({ text, atMs })),
    node,
    evidencePath,
    recordedPcrs,
    tpmTrafficPath,
    eventLogPath,
    diskPath: join(directory, 'snapshot', 'disk.qcow2'),
  };
  await writeFile(join(directory, RECORD), JSON.stringify(record));
}
