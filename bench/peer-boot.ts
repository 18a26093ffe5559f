/** Boots of the peer and of the floor, in the same machines as ours. */
import { rm } from 'node:fs/promises';
import { loadavg } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { kernelTimeMs, type TimelineEntry } from '../qemu-tests/lab/node-console.ts';
import { createMachine, type Machine, type MachineOptions } from '../qemu-tests/machine/machine.ts';
import type { BootRun } from './boot.ts';
import { FLOOR_LINE } from './floor-image.ts';

const BOOT_DEADLINE_MS = 600_000;
const REPORT_DEADLINE_MS = 900_000;
const POLL_MS = 200;
const ETCD_PORT = 2379;

export interface PeerRun extends BootRun {
  /** MemTotal − MemAvailable, 75 s after the kernel's start. */
  readonly usedMib: number;
  readonly pid1RssMib: number;
}

/** A first boot and one later boot of the peer, each until it has reported and switched itself off. */
export async function bootPeerTwice(options: MachineOptions): Promise<PeerRun[]> {
  await using machine = await createMachine({ ...options, network: { kind: 'user', guestPorts: [ETCD_PORT] } });
  const runs = [await bootPeer(machine, 'first'), await bootPeer(machine, 'later')];
  await machine.powerCut();
  await rm(options.directory, { recursive: true, force: true });
  return runs;
}

async function bootPeer(machine: Machine, boot: BootRun['boot']): Promise<PeerRun> {
  const load = loadavg()[0] ?? 0;
  await machine.powerOn();
  const healthy = untilEtcdAnswers(machine);
  const deadline = { deadlineMs: REPORT_DEADLINE_MS, failOn: /Kernel panic/ };
  const kernel = await machine.waitForLine(/Linux version/, deadline);
  const init = await machine.waitForLine(/systemd\[1\]|Welcome to/, deadline);
  const memory = await machine.waitForLine(/PEER up \S+ .*used_kb (\d+)/, deadline);
  const pid1 = await machine.waitForLine(/PEER proc 1 rss_kb (\d+)/, deadline);
  await machine.waitForLine(/PEER-REPORT-END/, deadline);
  const etcdAtMs = await healthy;
  await machine.waitForPowerOff(BOOT_DEADLINE_MS);
  const number = (text: string, pattern: RegExp) => Number(pattern.exec(text)?.[1]) / 1024;
  return {
    boot,
    load,
    timerPanics: machine.timerPanics,
    timeline: [
      { stage: 'firmware', atMs: kernel.atMs - (kernelTimeMs(kernel.text) ?? 0) },
      { stage: 'stage 1', atMs: init.atMs },
      { stage: 'etcd healthy', atMs: etcdAtMs },
    ],
    usedMib: number(memory.text, /used_kb (\d+)/),
    pid1RssMib: number(pid1.text, /rss_kb (\d+)/),
  };
}

/** When the peer's etcd first says that it is healthy, asked from outside. */
async function untilEtcdAnswers(machine: Machine): Promise<number> {
  const port = await machine.hostPort(ETCD_PORT);
  while (machine.isOn) {
    const answer = await fetch(`http://127.0.0.1:${port}/health`, { signal: AbortSignal.timeout(2000) }).then(
      (response) => response.text(),
      () => '',
    );
    if (/"health":"?true/.test(answer)) return machine.console.sincePowerOnMs;
    await sleep(POLL_MS);
  }
  throw new Error('cannot measure the peer: it switched itself off before its etcd was healthy');
}

/** The floor: when the kernel began, and when init's first and only line came. */
export async function bootFloor(options: MachineOptions): Promise<BootRun> {
  const load = loadavg()[0] ?? 0;
  await using machine = await createMachine({ ...options, network: { kind: 'none' } });
  await machine.powerOn();
  const line = await machine.waitForLine(new RegExp(FLOOR_LINE), { deadlineMs: BOOT_DEADLINE_MS });
  await machine.powerCut();
  await rm(options.directory, { recursive: true, force: true });
  const timeline: TimelineEntry[] = [{ stage: 'stage 1', atMs: line.atMs }];
  return { boot: 'first', timeline, load, timerPanics: machine.timerPanics };
}
