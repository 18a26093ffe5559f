import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { cp, mkdir, mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { zstdCompressSync } from 'node:zlib';
import { encodeCpio } from '../../src/formats/cpio.ts';
import { minimalPe, mutations, skipWithout } from '../../src/formats/fixtures.ts';
import { encodeGpt } from '../../src/formats/gpt.ts';
import { formatUuid } from '../../src/formats/guid.ts';
import { computeVerityRootHash } from '../../src/formats/verity-tree.ts';
import { inspectImage } from './inspect.ts';
import { formatInspection } from './inspect-report.ts';
import { generateKeys, loadKeys } from './keys.ts';
import { formatMeasurements } from './measurements.ts';
import { assembleUki } from './uki.ts';

let directory: string;
let ukiPath: string;
let diskPath: string;
let uki: Uint8Array;
const at = (name: string) => join(directory, name);
const systemData = Buffer.alloc(40 * 4096, 'system');
const espSectors = 70_000;
const espStart = 2048;
const systemStart = espStart + espSectors;

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-inspect-'));
  await generateKeys(at('keys'), { isDevelopment: true });
  const salt = 'ab'.repeat(32);
  const rootHash = Buffer.from(
    await computeVerityRootHash([systemData], { salt: Buffer.from(salt, 'hex'), blockSize: 4096 }),
  );
  const partitionUuid = formatUuid(rootHash.subarray(0, 16));
  const system = {
    version: '0.1.0',
    buildTime: 1,
    partitionUuid,
    rootHash: rootHash.toString('hex'),
    salt,
    dataBlocks: 40,
    hashStartBlock: 41,
    blockSize: 4096,
    hashAlgorithm: 'sha256',
  };
  const archive = encodeCpio([
    { type: 'directory', path: 'etc', mode: 0o755 },
    { type: 'directory', path: 'etc/ashlar', mode: 0o755 },
    { type: 'file', path: 'etc/ashlar/system.json', mode: 0o644, data: Buffer.from(JSON.stringify(system)) },
  ]);
  const assembled = assembleUki({
    stub: minimalPe(),
    kernel: minimalPe({ text: Buffer.from('kernel') }),
    initrd: zstdCompressSync(Buffer.concat([...archive])),
    cmdline: 'quiet',
    osRelease: 'ID=ashlar\nPRETTY_NAME="Ashlar \u001b[31m"\n',
    uname: '6.12.1',
    epoch: 1,
    keys: await loadKeys(at('keys')),
  });
  uki = assembled.uki;
  ukiPath = at('ashlar.efi');
  await writeFile(ukiPath, uki);
  await writeFile(at('measurements.json'), formatMeasurements(assembled.measurements));
  const packages = [
    { name: 'etcd-server', version: '3.5', groups: ['image'] },
    { name: 'gcc-14', version: '14.2', groups: ['tools'] },
    { name: 'intel-microcode', version: '3.2025', groups: ['firmware'] },
    { name: 'libc6', version: '2.41', groups: ['image', 'tools'] },
    { name: 'libpam0g', version: '1.7', groups: ['image'] },
    { name: 'linux-source-6.12', version: '6.12', groups: ['kernel'] },
    { name: 'systemd-boot-efi', version: '257', groups: ['boot'] },
  ];
  const files = {
    system: [
      { path: '/etc', type: 'directory' },
      { path: '/usr/bin/etcd', type: 'file', origin: 'etcd-server' },
    ],
    initramfs: [
      { path: '/kernel/x86/microcode/GenuineIntel.bin', type: 'file', origin: 'intel-microcode' },
      { path: '/usr/lib/libc.so.6', type: 'file', origin: 'libc6' },
    ],
  };
  await writeFile(at('manifest.json'), JSON.stringify({ services: ['etcd'], packages, files }));
  diskPath = at('disk.img');
  await makeDisk(partitionUuid);
});
after(() => rm(directory, { recursive: true }));

async function makeDisk(partitionUuid: string): Promise<void> {
  if (skipWithout('mformat') !== false) return;
  const diskSectors = systemStart + 2048 + 2048;
  await using file = await open(diskPath, 'w');
  await file.truncate(diskSectors * 512);
  const partitions = [
    {
      number: 1,
      typeGuid: 'c12a7328-f81f-11d2-ba4b-00a0c93ec93b',
      uniqueGuid: '11111111-1111-4111-8111-111111111111',
      name: 'ESP',
      startLba: espStart,
      endLba: systemStart - 1,
      attributes: 0n,
    },
    {
      number: 2,
      typeGuid: '6173686c-6172-4273-8973-74656d000001',
      uniqueGuid: partitionUuid,
      name: 'SYSTEM-A',
      startLba: systemStart,
      endLba: systemStart + 2047,
      attributes: 0n,
    },
  ];
  for (const { offset, bytes } of encodeGpt({
    diskGuid: '22222222-2222-4222-8222-222222222222',
    sectorSize: 512,
    diskSectors,
    partitions,
  })) {
    await file.write(bytes, 0, bytes.length, offset);
  }
  await file.write(systemData, 0, systemData.length, systemStart * 512);
  const run = (tool: string, ...args: string[]) =>
    execFileSync(tool, ['-i', `${diskPath}@@${espStart * 512}`, ...args], { stdio: 'pipe' });
  run('mformat', '-F', '-c', '1', '-T', String(espSectors), '::');
  run('mmd', '::/EFI', '::/EFI/BOOT', '::/EFI/ashlar');
  run('mcopy', ukiPath, '::/EFI/BOOT/BOOTX64.EFI');
  run('mcopy', ukiPath, '::/EFI/ashlar/a.efi');
}

describe('mkimage inspect', () => {
  it('shows sections, signer, policy, system and registers of a UKI', async () => {
    const inspection = await inspectImage(ukiPath);
    assert.deepEqual(inspection.problems, []);
    assert.equal(inspection.kind, 'uki');
    assert.equal(inspection.uki.signatures[0]?.isValid, true);
    assert.match(inspection.uki.signatures[0]?.signer ?? '', /Ashlar db/);
    assert.deepEqual(
      inspection.uki.pcrSignatures.map(({ isValid, policyRef }) => ({ isValid, policyRef })),
      [{ isValid: true, policyRef: 'ashlar-epoch-1' }],
    );
    const measurements = JSON.parse(await readFile(at('measurements.json'), 'utf8'));
    assert.deepEqual(inspection.uki.pcrs, { pcr4: measurements.pcr4, pcr11: measurements.pcr11 });
    assert.deepEqual(inspection.pcr7, measurements.pcr7);
    assert.deepEqual(inspection.services, ['etcd']);
    assert.deepEqual(inspection.missing, []);
  });

  it('counts a package to the image that has a file in it or is built in, and no other of the lock', async () => {
    const inspection = await inspectImage(ukiPath);
    const inImage = inspection.packages?.filter(({ isInImage }) => isInImage).map(({ name }) => name);
    assert.deepEqual(inImage, ['etcd-server', 'intel-microcode', 'libc6', 'linux-source-6.12', 'systemd-boot-efi']);
    const text = formatInspection(inspection);
    assert.match(text, /^ {2}linux-source-6\.12 {2}6\.12$/m);
    assert.doesNotMatch(text, /libpam0g|gcc-14/);
    assert.match(text, /^Of 2 more packages of the lock the image has no file; manifest\.json names them$/m);
  });

  it('says what it cannot show of an image away from what was built with it', async () => {
    await mkdir(at('away'));
    await cp(ukiPath, at('away/ashlar.efi'));
    const inspection = await inspectImage(at('away/ashlar.efi'));
    assert.deepEqual(inspection.missing, ['manifest.json', 'measurements.json']);
    assert.deepEqual(inspection.problems, []);
    assert.match(
      formatInspection(inspection),
      /^Not shown: services and packages \(manifest\.json is not beside the image\); PCR 7 \(measurements\.json is not beside the image\)$/m,
    );
    await cp(at('measurements.json'), at('away/measurements.json'));
    assert.deepEqual((await inspectImage(at('away/ashlar.efi'))).missing, ['manifest.json']);
    assert.doesNotMatch(formatInspection(await inspectImage(ukiPath)), /Not shown/);
  });

  it('finds the UKI on a disk and checks the system partition by its root hash', {
    skip: skipWithout('mformat'),
  }, async () => {
    const inspection = await inspectImage(diskPath);
    assert.deepEqual(inspection.problems, []);
    assert.deepEqual(
      inspection.disk?.partitions.map(({ name }) => name),
      ['ESP', 'SYSTEM-A'],
    );
    assert.equal(inspection.disk?.partitions[1]?.rootHash, inspection.uki.system?.rootHash);
  });

  it('notices one flipped bit in the system partition', { skip: skipWithout('mformat') }, async () => {
    const bytes = await readFile(diskPath);
    const offset = systemStart * 512 + 5000;
    bytes[offset] = (bytes[offset] ?? 0) ^ 1;
    await writeFile(at('flipped.img'), bytes);
    const { problems } = await inspectImage(at('flipped.img'));
    assert.equal(problems.length, 1);
    assert.match(problems[0] ?? '', /partition 2 \(SYSTEM-A\) has root hash [0-9a-f]{64}, the UKI expects/);
  });

  it('names an image that was changed or is of other measurements', async () => {
    const changed = uki.slice();
    const text = Buffer.from(changed.buffer);
    changed.set(Buffer.from('noisy'), text.indexOf('quiet'));
    await writeFile(at('changed.efi'), changed);
    const { problems } = await inspectImage(at('changed.efi'));
    assert.deepEqual(problems, [
      "the UKI's signature does not verify: the image was changed after it was signed",
      'a PCR signature approves another PCR 11 than this image will have',
      'measurements.json beside it is of another image',
    ]);
  });

  it('prints a table that cannot drive the terminal', async () => {
    const text = formatInspection(await inspectImage(ukiPath));
    assert.ok(!text.includes('\u001b'));
    assert.match(text, /Ashlar \\u\{1b\}\[31m/);
    assert.match(text, /Secure Boot {4}valid {2}CN=Ashlar db/);
    assert.match(text, /PCR 11 {2}leave-initrd +[0-9a-f]{64}/);
  });

  it('gives one clear error for what is no image', async () => {
    await writeFile(at('text'), 'hello');
    await writeFile(at('zeros'), Buffer.alloc(100_000));
    await writeFile(at('program.efi'), minimalPe());
    await assert.rejects(inspectImage(at('none')), /cannot inspect .*none: ENOENT/);
    await assert.rejects(inspectImage(at('text')), /neither a PE image nor a disk image/);
    await assert.rejects(inspectImage(at('zeros')), /cannot decode GPT: signature at offset 0x200/);
    await assert.rejects(inspectImage(at('program.efi')), /no UKI: there is no \.linux section/);
    await assert.rejects(inspectImage(directory), /it is a directory/);
    const erofs = Buffer.alloc(100_000);
    erofs.set([0xe2, 0xe1, 0xf5, 0xe0], 1024);
    await writeFile(at('ashlar.system.img'), erofs);
    await assert.rejects(
      inspectImage(at('ashlar.system.img')),
      /it is the content of a system partition \(erofs\).*: check it with veritysetup .*, and inspect the \.efi or \.disk\.img beside it$/,
    );
    execFileSync('mkfifo', [at('pipe')]);
    await assert.rejects(inspectImage(at('pipe')), /it is not a regular file/);
  });

  it('survives mutated images', async () => {
    for (const bytes of mutations(uki, { seed: 19, count: 150, window: 0x800 })) {
      await writeFile(at('mutated.efi'), bytes);
      try {
        await inspectImage(at('mutated.efi'));
      } catch (error) {
        assert.match(String(error), /^Error: cannot inspect /);
      }
    }
  });
});
