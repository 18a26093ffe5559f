/** `npm run bench -- boot|memory|build|tpm|peer`: what a boot, a node, a build and the TPM cost, as a table or as JSON. */
import { mkdir, stat } from 'node:fs/promises';
import { cpus, loadavg } from 'node:os';
import { join } from 'node:path';
import { detectAccelerator } from '../qemu-tests/machine/accelerator.ts';
import { type CommandContext, command, commandGroup, runCommandLine } from '../tools/host/command-line.ts';
import { type BenchLab, openBenchLab } from './bench-lab.ts';
import { benchBoot, renderBoots, summariseBoots } from './boot.ts';
import { comparePeer, renderComparison } from './compare.ts';
import { benchEventLog } from './event-log.ts';
import { findSmallestMemory, measureIdleMemory } from './memory.ts';
import { benchRebuild } from './rebuild.ts';
import { formatSpread, spread } from './statistics.ts';
import { renderTable } from './table.ts';
import { benchTpm } from './tpm.ts';

const LEAST_MIB = 256;

const json = { type: 'boolean', summary: 'print JSON instead of a table' } as const;
const runs = (summary: string, count: number) =>
  ({ type: 'integer', value: 'N', default: count, minimum: 1, maximum: 50, summary }) as const;

const bootCommand = command({
  name: 'boot',
  summary: 'The timeline of first and later boots, stage by stage',
  options: { runs: runs('pairs of a first and a later boot', 3), json },
  run: async ({ runs: count, json: asJson }, context) => {
    await using lab = await openLab(context);
    const done = await context.progress.step(`boot ${count} times twice`, (report) =>
      benchBoot(
        (directory) => lab.machineOptions(directory),
        count,
        (fraction) => report({ fraction }),
      ),
    );
    const stages = summariseBoots(done);
    const result = { ...(await environment()), sizes: await sizes(lab), stages, runs: done };
    if (asJson) context.print(JSON.stringify(result, undefined, 2));
    else {
      context.print(renderBoots(stages));
      context.print('');
      context.print(
        describeEnvironment(
          result,
          done.map(({ load }) => load),
        ),
      );
      context.print(
        renderTable(
          ['size', 'MB'],
          Object.entries(result.sizes).map(([name, bytes]) => [name, megabytes(bytes)]),
        ),
      );
    }
  },
});

const memoryCommand = command({
  name: 'memory',
  summary: 'Memory that a resting node uses, and the least with which it boots',
  options: {
    runs: runs('nodes to measure at rest', 3),
    least: { type: 'boolean', summary: 'also search the least memory (about six boots)' },
    json,
  },
  run: async ({ runs: count, least, json: asJson }, context) => {
    await using lab = await openLab(context);
    const idle = [];
    for (let run = 0; run < count; run++) {
      idle.push(
        await context.progress.step(`node at rest, ${run + 1} of ${count}`, () => measureIdleMemory(lab, 1024)),
      );
    }
    const smallest = least
      ? await context.progress.step('least memory', (report) =>
          findSmallestMemory(lab, LEAST_MIB, 1024, (detail) => report({ detail })),
        )
      : undefined;
    const result = { ...(await environment()), idle, ...(smallest !== undefined && { smallest }) };
    if (asJson) context.print(JSON.stringify(result, undefined, 2));
    else {
      const rows = [
        ['used at rest, of 1024 MiB', formatSpread(spread(idle.map(({ usedMib }) => usedMib)))],
        ['PID 1 resident', formatSpread(spread(idle.map(({ pid1RssMib }) => pid1RssMib)))],
        ...(smallest === undefined ? [] : [['least that reaches a healthy etcd', String(smallest.smallestMib)]]),
      ];
      context.print(renderTable(['memory', 'MiB'], rows));
    }
  },
});

const buildCommand = command({
  name: 'build',
  summary: 'An image rebuild after a one-line change in src/',
  options: { runs: runs('rebuilds', 3), json },
  run: async ({ runs: count, json: asJson }, { progress, signal, print }) => {
    await mkdir(join(import.meta.dirname, '..', 'out'), { recursive: true });
    const milliseconds = await progress.step('rebuild', (report) =>
      benchRebuild(count, signal, (detail) => report({ detail })),
    );
    const seconds = spread(milliseconds.map((duration) => duration / 1000));
    if (asJson) print(JSON.stringify({ ...(await environment()), rebuildSeconds: seconds }, undefined, 2));
    else print(renderTable(['build', 'seconds'], [['after a one-line change', formatSpread(seconds)]]));
  },
});

const tpmCommand = command({
  name: 'tpm',
  summary: 'Unsealing, a quote, loading the TPM library and replaying a log, natively under swtpm',
  options: { runs: runs('times each', 20), json },
  run: async ({ runs: count, json: asJson }, { progress, print }) => {
    await mkdir(join(import.meta.dirname, '..', 'out'), { recursive: true });
    const costs = await progress.step('TPM', (report) => benchTpm(count, (detail) => report({ detail })));
    if (asJson) {
      print(JSON.stringify({ ...(await environment()), ...costs }, undefined, 2));
      return;
    }
    const row = (what: string, milliseconds: readonly number[], commands: readonly string[] = []) => [
      what,
      formatSpread(spread(milliseconds)),
      commands.length === 0 ? '' : String(commands.length),
    ];
    const rows = [
      row('unseal with the full policy', costs.unsealMs, costs.unsealCommands),
      row('attestation key and quote of 16 registers', costs.quoteMs, costs.quoteCommands),
      row('load the library', costs.loadCodeMs),
      row('open the first TPM (loads tpm2-tss)', costs.openMs),
      row('both, processor time', costs.loadProcessorMs),
      row('replay an event log of 100 kB', costs.replayMs),
    ];
    print(renderTable(['TPM', 'ms', 'TPM commands'], rows));
    print(`\nunseal: ${costs.unsealCommands.join(' ')}\nquote: ${costs.quoteCommands.join(' ')}`);
  },
});

const peerCommand = command({
  name: 'peer',
  summary: 'Ashlar, Debian with systemd, and the floor in the same machines: ratios from one run (needs root)',
  options: { runs: runs('pairs of a first and a later boot of each', 3), json },
  run: async ({ runs: count, json: asJson }, context) => {
    await using lab = await openLab(context);
    const comparison = await comparePeer(lab, count, context);
    const result = { ...(await environment()), ...comparison };
    context.print(asJson ? JSON.stringify(result, undefined, 2) : renderComparison(comparison));
  },
});

const eventLogCommand = command({
  name: 'event-log',
  summary: 'Decoding and replaying a TPM event log of 100 kB',
  options: { runs: runs('replays', 50), json },
  run: async ({ runs: count, json: asJson }, { print }) => {
    const { sizeBytes, events, milliseconds } = await benchEventLog(count);
    const replay = spread(milliseconds);
    if (asJson) print(JSON.stringify({ ...(await environment()), sizeBytes, events, replayMs: replay }, undefined, 2));
    else print(renderTable(['event log', 'ms'], [[`${events} events, ${sizeBytes} bytes`, formatSpread(replay)]]));
  },
});

async function openLab({ progress, signal }: CommandContext): Promise<BenchLab> {
  await mkdir(join(import.meta.dirname, '..', 'out'), { recursive: true });
  return openBenchLab(progress, signal);
}

interface Environment {
  readonly accelerator: string;
  readonly cpuModel: string;
  readonly cpuCount: number;
  readonly loadAtEnd: number;
}

async function environment(): Promise<Environment> {
  return {
    accelerator: await detectAccelerator(),
    cpuModel: cpus()[0]?.model ?? 'unknown',
    cpuCount: cpus().length,
    loadAtEnd: loadavg()[0] ?? 0,
  };
}

function describeEnvironment({ accelerator, cpuModel, cpuCount }: Environment, loads: readonly number[]): string {
  return `${accelerator} on ${cpuCount} × ${cpuModel}; load of the host at power-on ${formatSpread(spread(loads))}\n`;
}

async function sizes({ image }: BenchLab): Promise<Record<string, number>> {
  return {
    UKI: (await stat(image.ukiPath)).size,
    'system image': (await stat(image.systemImagePath)).size,
    'disk image, allocated': (await stat(image.diskImagePath)).blocks * 512,
  };
}

function megabytes(bytes: number): string {
  return (bytes / 1e6).toFixed(1);
}

const bench = commandGroup({
  name: 'bench',
  summary: 'What a boot, a node, a build and the TPM cost. Figures are of this machine, at its present load',
  commands: [bootCommand, memoryCommand, buildCommand, tpmCommand, peerCommand, eventLogCommand],
});

process.exitCode = await runCommandLine(bench, process.argv.slice(2));
