/**
 * The reaper as the PID 1 of a machine: the image's own executable and kernel, with a storm in place of init's code and
 * a shell to raise it with. Both are in one more member of the initramfs, which the kernel unpacks over the others.
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type CpioEntry, encodeCpio } from '../src/formats/cpio.ts';
import { decodePe, findPeSection, peSectionContent } from '../src/formats/pe.ts';
import { createProgress } from '../tools/host/progress.ts';
import { bundle } from '../tools/mkimage/bundle.ts';
import { developmentKeys } from '../tools/mkimage/keys.ts';
import { assembleUki } from '../tools/mkimage/uki.ts';
import { diskWithUki } from './lab/disk-with-uki.ts';
import { type Lab, vmTest } from './lab/lab.ts';
import { unpackLockedPackage } from './machine/locked-package.ts';

const STORM_DEADLINE_MS = 600_000;

vmTest(
  'PID 1 of a machine reaps every orphan of a fork storm, and loses no exit event of its children',
  async (lab) => {
    const machine = await lab.machine({ image: { path: await stormDisk(lab), format: 'raw' } });
    await machine.powerOn();
    await machine.waitForLine(/reaper storm: begins/, { deadlineMs: lab.bootDeadlineMs });
    const line = await machine.waitForLine(/reaper storm: \{/, { deadlineMs: STORM_DEADLINE_MS });
    const result: unknown = JSON.parse(line.text.slice(line.text.indexOf('{')));
    lab.context.diagnostic(line.text);
    assert.ok(typeof result === 'object' && result !== null && 'reaped' in result && 'expected' in result);
    assert.partialDeepStrictEqual(result, { pid: 1, wrong: [], zombies: 0 });
    assert.ok(Number(result.reaped) >= Number(result.expected), line.text);
  },
);

async function stormDisk(lab: Lab): Promise<string> {
  const uki = await readFile(lab.image.ukiPath);
  const section = (name: string) => {
    const found = findPeSection(decodePe(uki), name);
    if (found === undefined) throw new Error(`cannot make the storm: the UKI has no section ${name}`);
    return Buffer.from(peSectionContent(uki, found));
  };
  const stub = join(await unpack('boot', 'systemd-boot-efi'), 'usr/lib/systemd/boot/efi/linuxx64.efi.stub');
  const storm = assembleUki({
    stub: await readFile(stub),
    kernel: section('.linux'),
    initrd: Buffer.concat([section('.initrd'), await stormMember()]),
    cmdline: section('.cmdline').toString('ascii'),
    osRelease: section('.osrel').toString('utf8'),
    uname: section('.uname').toString('ascii'),
    epoch: 1,
    keys: await developmentKeys(),
  });
  const ukiPath = join(lab.directory, 'storm.efi');
  const diskPath = join(lab.directory, 'storm.disk.img');
  await writeFile(ukiPath, storm.uki);
  await diskWithUki(lab.image.diskImagePath, ukiPath, diskPath);
  return diskPath;
}

async function stormMember(): Promise<Buffer> {
  const { code } = await bundle('init.js', 'qemu-tests/lab/reaper-storm-init.ts');
  const coreutils = join(await unpack('tools', 'coreutils'), 'usr/bin');
  // Each needs only the C library, which the initramfs has for Node, of the same release.
  const programs = {
    sh: join(await unpack('tools', 'dash'), 'usr/bin/dash'),
    sleep: join(coreutils, 'sleep'),
    true: join(coreutils, 'true'),
  };
  const files: CpioEntry[] = [{ path: 'usr/lib/ashlar/init.js', type: 'file', mode: 0o644, data: Buffer.from(code) }];
  for (const [name, path] of Object.entries(programs)) {
    files.push({ path: `usr/bin/${name}`, type: 'file', mode: 0o755, data: await readFile(path) });
  }
  const directories = ['usr', 'usr/bin', 'usr/lib', 'usr/lib/ashlar'].map(
    (path): CpioEntry => ({ path, type: 'directory', mode: 0o755 }),
  );
  return Buffer.concat([...encodeCpio([...directories, ...files])]);
}

function unpack(group: 'boot' | 'tools', name: string): Promise<string> {
  return unpackLockedPackage(group, name, { progress: createProgress(), allowDrift: true });
}
