/**
 * Boots, and how long each stage took: the host's clock at the lines of the console, so that firmware counts and no
 * node is asked to measure itself.
 */
import { rm } from 'node:fs/promises';
import { loadavg } from 'node:os';
import { bootTimeline, nodeConsole, type TimelineEntry } from '../qemu-tests/lab/node-console.ts';
import { createMachine, type Machine, type MachineOptions } from '../qemu-tests/machine/machine.ts';
import { formatSpread, type Spread, spread } from './statistics.ts';
import { renderTable } from './table.ts';

const BOOT_DEADLINE_MS = 600_000;
const SHUTDOWN_DEADLINE_MS = 120_000;

export interface BootRun {
  readonly boot: 'first' | 'later';
  readonly timeline: readonly TimelineEntry[];
  /** The host's load average of one minute as the machine was switched on. */
  readonly load: number;
  readonly timerPanics: number;
}

export interface StageSummary {
  readonly stage: string;
  /** Seconds since power-on. */
  readonly first?: Spread;
  readonly later?: Spread;
}

/** A first boot and one later boot of the same disk and TPM. */
export async function bootTwice(options: MachineOptions): Promise<BootRun[]> {
  await using machine = await createMachine(options);
  const runs = [await boot(machine, 'first'), await boot(machine, 'later')];
  await machine.powerCut();
  await rm(options.directory, { recursive: true, force: true });
  return runs;
}

async function boot(machine: Machine, kind: BootRun['boot']): Promise<BootRun> {
  const load = loadavg()[0] ?? 0;
  await machine.powerOn();
  await machine.waitForLine(nodeConsole.ready, { deadlineMs: BOOT_DEADLINE_MS });
  const timeline = bootTimeline(machine.linesSinceMark());
  await machine.pressPowerButton();
  await machine.waitForPowerOff(SHUTDOWN_DEADLINE_MS);
  return { boot: kind, timeline, load, timerPanics: machine.timerPanics };
}

/** `count` pairs of a first and a later boot. */
export async function benchBoot(
  machineOptions: (name: string) => MachineOptions,
  count: number,
  report: (fraction: number) => void,
): Promise<BootRun[]> {
  const runs: BootRun[] = [];
  for (let index = 0; index < count; index++) {
    report(index / count);
    runs.push(...(await bootTwice(machineOptions(`boot-${index}`))));
  }
  return runs;
}

export function summariseBoots(runs: readonly BootRun[]): StageSummary[] {
  const stages = [...new Set(runs.flatMap((run) => run.timeline.map((entry) => entry.stage)))];
  const seconds = (stage: string, kind: BootRun['boot']): Spread | undefined => {
    const values = runs
      .filter((run) => run.boot === kind)
      .flatMap((run) => run.timeline.filter((entry) => entry.stage === stage).map((entry) => entry.atMs / 1000));
    return values.length === 0 ? undefined : spread(values);
  };
  return stages.map((stage) => {
    const first = seconds(stage, 'first');
    const later = seconds(stage, 'later');
    return { stage, ...(first !== undefined && { first }), ...(later !== undefined && { later }) };
  });
}

export function renderBoots(summary: readonly StageSummary[]): string {
  return renderTable(
    ['seconds since power-on', 'first boot', 'later boot'],
    summary.map(({ stage, first, later }) => [
      stage,
      first === undefined ? '' : formatSpread(first),
      later === undefined ? '' : formatSpread(later),
    ]),
  );
}
