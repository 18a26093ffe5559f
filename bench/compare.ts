/** Ashlar, the peer and the floor: boots in turns, so that a change of the host's load meets all of them. */
import { readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { diskWithUki } from '../qemu-tests/lab/disk-with-uki.ts';
import { unpackLockedPackage } from '../qemu-tests/machine/locked-package.ts';
import { decodePe, findPeSection, peSectionContent } from '../src/formats/pe.ts';
import type { CommandContext } from '../tools/host/command-line.ts';
import { developmentKeys } from '../tools/mkimage/keys.ts';
import { assembleUki } from '../tools/mkimage/uki.ts';
import type { BenchLab } from './bench-lab.ts';
import { type BootRun, bootTwice } from './boot.ts';
import { floorInitramfs } from './floor-image.ts';
import { measureIdleMemory } from './memory.ts';
import { bootFloor, bootPeerTwice, type PeerRun } from './peer-boot.ts';
import { buildPeer, type PeerImage } from './peer-image.ts';
import { benchRebuild } from './rebuild.ts';
import { formatSpread, type Spread, spread } from './statistics.ts';
import { renderTable } from './table.ts';

/** The peer's services need more than ours; both get what neither is short of. */
const MEMORY_MIB = 2048;

export interface Figure {
  readonly figure: string;
  readonly unit: string;
  readonly ashlar: Spread;
  readonly peer?: Spread;
  readonly floor?: Spread;
}

export interface Comparison {
  readonly figures: readonly Figure[];
  readonly boots: { readonly ashlar: BootRun[]; readonly peer: PeerRun[]; readonly floor: BootRun[] };
}

export async function comparePeer(lab: BenchLab, count: number, context: CommandContext): Promise<Comparison> {
  const { progress, signal } = context;
  const keys = await developmentKeys();
  const peer = await buildPeer({
    directory: lab.directory,
    dbKeyPath: join(keys.directory, 'db.key'),
    dbCertificatePath: join(keys.directory, 'db.crt'),
    progress,
    signal,
  });
  const rebuildMs = await progress.step('ashlar: rebuild after a one-line change', (report) =>
    benchRebuild(1, signal, (detail) => report({ detail })),
  );
  const floorDisk = await makeFloorDisk(lab, context);
  const boots: Comparison['boots'] = { ashlar: [], peer: [], floor: [] };
  const used: number[] = [];
  const pid1: number[] = [];
  for (let run = 0; run < count; run++) {
    signal.throwIfAborted();
    const title = (what: string) => `${what}, ${run + 1} of ${count}`;
    const options = (name: string, path: string) =>
      lab.machineOptions(`${name}-${run}`, { memoryMib: MEMORY_MIB, image: { path, format: 'raw' } });
    boots.floor.push(await progress.step(title('floor'), () => bootFloor(options('floor', floorDisk))));
    boots.ashlar.push(
      ...(await progress.step(title('ashlar'), () => bootTwice(options('ashlar', lab.image.diskImagePath)))),
    );
    const idle = await progress.step(title('ashlar at rest'), () => measureIdleMemory(lab, MEMORY_MIB));
    used.push(idle.usedMib);
    pid1.push(idle.pid1RssMib);
    boots.peer.push(...(await progress.step(title('peer'), () => bootPeerTwice(options('peer', peer.diskPath)))));
  }
  const figures = [
    ...bootFigures(boots),
    figure(
      'memory used at rest',
      'MiB',
      used,
      boots.peer.map(({ usedMib }) => usedMib),
    ),
    figure(
      'PID 1 resident',
      'MiB',
      pid1,
      boots.peer.map(({ pid1RssMib }) => pid1RssMib),
    ),
    ...(await sizeFigures(lab, peer)),
    figure('rebuild after a one-line change', 's', rebuildMs.map(inSeconds), [inSeconds(peer.rebuildMs)]),
  ];
  return { figures, boots };
}

/** The copy of our disk that boots the floor: same stub, same kernel, signed with the same key. */
async function makeFloorDisk(lab: BenchLab, { progress }: CommandContext): Promise<string> {
  const uki = await readFile(lab.image.ukiPath);
  const section = (name: string) => {
    const found = findPeSection(decodePe(uki), name);
    if (found === undefined) throw new Error(`cannot make the floor: the UKI has no section ${name}`);
    return Buffer.from(peSectionContent(uki, found));
  };
  const stub = join(
    await unpackLockedPackage('boot', 'systemd-boot-efi', { progress, allowDrift: true }),
    'usr/lib/systemd/boot/efi/linuxx64.efi.stub',
  );
  const floor = assembleUki({
    stub: await readFile(stub),
    kernel: section('.linux'),
    initrd: floorInitramfs(),
    cmdline: `${section('.cmdline')
      .toString('ascii')
      .replaceAll(/\brdinit=\S+/g, '')
      .trim()} rdinit=/init`,
    osRelease: section('.osrel').toString('utf8'),
    uname: section('.uname').toString('ascii'),
    epoch: 1,
    keys: await developmentKeys(),
  });
  const ukiPath = join(lab.directory, 'floor.efi');
  const diskPath = join(lab.directory, 'floor.disk.img');
  await writeFile(ukiPath, floor.uki);
  await diskWithUki(lab.image.diskImagePath, ukiPath, diskPath);
  return diskPath;
}

function bootFigures({ ashlar, peer, floor }: Comparison['boots']): Figure[] {
  const at = (runs: readonly BootRun[], stage: string, boot: BootRun['boot']) =>
    runs
      .filter((run) => run.boot === boot)
      .flatMap((run) => run.timeline.filter((entry) => entry.stage === stage).map(({ atMs }) => inSeconds(atMs)));
  return [
    figure('power-on → kernel', 's', at(ashlar, 'firmware', 'first'), at(peer, 'firmware', 'first')),
    figure(
      'power-on → init’s first line',
      's',
      at(ashlar, 'stage 1', 'first'),
      at(peer, 'stage 1', 'first'),
      at(floor, 'stage 1', 'first'),
    ),
    figure(
      'power-on → etcd healthy, first boot',
      's',
      at(ashlar, 'etcd healthy', 'first'),
      at(peer, 'etcd healthy', 'first'),
    ),
    figure(
      'power-on → etcd healthy, later boot',
      's',
      at(ashlar, 'etcd healthy', 'later'),
      at(peer, 'etcd healthy', 'later'),
    ),
  ];
}

async function sizeFigures(lab: BenchLab, peer: PeerImage): Promise<Figure[]> {
  const size = async (path: string) => [(await stat(path)).size / 1e6];
  return [
    figure('UKI', 'MB', await size(lab.image.ukiPath), [peer.ukiBytes / 1e6]),
    figure('system image', 'MB', await size(lab.image.systemImagePath), [peer.systemBytes / 1e6]),
  ];
}

function figure(
  name: string,
  unit: string,
  ashlar: readonly number[],
  peer: readonly number[],
  floor: readonly number[] = [],
): Figure {
  return {
    figure: name,
    unit,
    ashlar: spread(ashlar),
    ...(peer.length > 0 && { peer: spread(peer) }),
    ...(floor.length > 0 && { floor: spread(floor) }),
  };
}

function inSeconds(milliseconds: number): number {
  return milliseconds / 1000;
}

export function renderComparison({ figures }: Comparison): string {
  return renderTable(
    ['figure', 'unit', 'Ashlar', 'peer', 'floor', 'Ashlar ÷ peer'],
    figures.map(({ figure: name, unit, ashlar, peer, floor }) => [
      name,
      unit,
      formatSpread(ashlar),
      peer === undefined ? '' : formatSpread(peer),
      floor === undefined ? '' : formatSpread(floor),
      peer === undefined ? '' : (ashlar.median / peer.median).toFixed(2),
    ]),
  );
}
