/** What a node uses of its memory when it rests, and how little it can live with. */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { nodeConsole } from '../qemu-tests/lab/node-console.ts';
import { Operator, operatorEndpoints } from '../qemu-tests/lab/operator.ts';
import { createMachine } from '../qemu-tests/machine/machine.ts';
import type { BenchLab } from './bench-lab.ts';

const BOOT_DEADLINE_MS = 600_000;
/** As the peer's report does: 75 s after the kernel's start. */
const SETTLED_MS = 75_000;
const STEP_MIB = 32;
/** A node that needs longer than this under too little memory does not work, whatever it says in the end. */
const TIGHT_BOOT_DEADLINE_MS = 300_000;

const MIB = 1024 * 1024;

export interface IdleMemory {
  readonly memoryMib: number;
  /** MemTotal − MemAvailable. */
  readonly usedMib: number;
  readonly pid1RssMib: number;
}

/** Boots a node, lets it rest, and asks it. */
export async function measureIdleMemory(lab: BenchLab, memoryMib: number): Promise<IdleMemory> {
  const options = lab.machineOptions(`memory-${memoryMib}`, { memoryMib });
  await using machine = await createMachine(options);
  await machine.powerOn();
  const ready = await machine.waitForLine(nodeConsole.ready, { deadlineMs: BOOT_DEADLINE_MS });
  const fingerprint = machine
    .linesSinceMark()
    .map((line) => nodeConsole.fingerprint.exec(line.text)?.[1])
    .find((found) => found !== undefined);
  if (fingerprint === undefined) throw new Error('cannot measure memory: the console shows no fingerprint');
  const operator = new Operator({
    ownerDirectory: lab.ownerDirectory,
    home: join(options.directory, 'config'),
    endpoints: await operatorEndpoints(machine),
  });
  await operator.takeOwnership(fingerprint);
  await sleep(Math.max(0, SETTLED_MS - machine.console.sincePowerOnMs));
  const node = await operator.waitForNode(nodeConsole.ready.exec(ready.text)?.[1] ?? '');
  await machine.powerCut();
  await rm(options.directory, { recursive: true, force: true });
  return {
    memoryMib,
    usedMib: (node.memory.totalBytes - node.memory.availableBytes) / MIB,
    pid1RssMib: node.pid1RssBytes / MIB,
  };
}

/**
 * The least memory, in steps of 32 MiB above `low`, with which a first boot reaches a healthy etcd.
 *
 * @throws Error when `high` does not suffice
 */
export async function findSmallestMemory(
  lab: BenchLab,
  low: number,
  high: number,
  report: (text: string) => void,
): Promise<{ readonly smallestMib: number; readonly tried: readonly { memoryMib: number; boots: boolean }[] }> {
  const tried: { memoryMib: number; boots: boolean }[] = [];
  const boots = async (memoryMib: number) => {
    report(`${memoryMib} MiB`);
    const result = await reachesEtcd(lab, memoryMib);
    tried.push({ memoryMib, boots: result });
    return result;
  };
  if (!(await boots(high))) throw new Error(`cannot find the least memory: ${high} MiB do not suffice`);
  let sufficient = high;
  let insufficient = low;
  while (sufficient - insufficient > STEP_MIB) {
    const middle = Math.round((sufficient + insufficient) / 2 / STEP_MIB) * STEP_MIB;
    if (await boots(middle)) sufficient = middle;
    else insufficient = middle;
  }
  return { smallestMib: sufficient, tried };
}

async function reachesEtcd(lab: BenchLab, memoryMib: number): Promise<boolean> {
  const options = lab.machineOptions(`least-${memoryMib}`, { memoryMib });
  await using machine = await createMachine(options);
  await machine.powerOn();
  try {
    await machine.waitForLine(nodeConsole.etcd, { deadlineMs: TIGHT_BOOT_DEADLINE_MS });
    return true;
  } catch {
    // It panicked, gave up or hung: which of them makes no difference here.
    return false;
  } finally {
    await machine.powerCut();
    await rm(options.directory, { recursive: true, force: true });
  }
}
