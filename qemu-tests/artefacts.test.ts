/** What independent tools say of the files that `mkimage build` made, and of the disk a node left. */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { runProcess } from '../tools/host/run-process.ts';
import { developmentKeys } from '../tools/mkimage/keys.ts';
import { extractPartition, partitionNamed, readPartitions } from './lab/disk-partitions.ts';
import { vmTest } from './lab/lab.ts';
import { provisionedNode } from './lab/provisioned-node.ts';

const VERITY_BLOCK = 4096;

vmTest('sbverify accepts the UKI', async (lab) => {
  const { directory } = await developmentKeys();
  const { stdout } = await runProcess('sbverify', ['--cert', join(directory, 'db.crt'), lab.image.ukiPath]);
  assert.match(stdout, /Signature verification OK/);
});

vmTest('sgdisk finds no problem in the partition table', async (lab) => {
  const { stdout } = await runProcess('sgdisk', ['-v', lab.image.diskImagePath]);
  assert.match(stdout, /No problems found/);
});

vmTest('fsck.vfat finds no problem in the ESP', async (lab) => {
  const partition = partitionNamed(await readPartitions(lab.image.diskImagePath), 'ESP');
  const path = join(lab.directory, 'esp.img');
  await extractPartition(lab.image.diskImagePath, partition, path);
  await runProcess('fsck.vfat', ['-n', path]);
});

vmTest('fsck.erofs and veritysetup accept the system partition, with the root hash in the manifest', async (lab) => {
  const partition = partitionNamed(await readPartitions(lab.image.diskImagePath), 'SYSTEM-A');
  const path = join(lab.directory, 'system.img');
  await extractPartition(lab.image.diskImagePath, partition, path);
  await runProcess('fsck.erofs', [path]);
  const manifest = JSON.parse(await readFile(join(lab.image.directory, 'manifest.json'), 'utf8')) as {
    system: { rootHash: string; dataBlocks: number };
  };
  const { rootHash, dataBlocks } = manifest.system;
  const verify = ['verify', path, path, rootHash, `--hash-offset=${dataBlocks * VERITY_BLOCK}`];
  await runProcess('veritysetup', verify);
  // The oracle must be able to say no.
  const wrong = verify.with(3, '0'.repeat(64));
  assert.notEqual((await runProcess('veritysetup', wrong, { allowFailure: true })).code, 0);
});

vmTest('cryptsetup reads the data partition of a node: LUKS2, one segment, our key slots, PBKDF2', async (lab) => {
  const { diskPath } = await provisionedNode(lab);
  const raw = join(lab.directory, 'disk.raw');
  await runProcess('qemu-img', ['convert', '-O', 'raw', diskPath, raw]);
  const partition = partitionNamed(await readPartitions(raw), 'DATA');
  const header = join(lab.directory, 'data.img');
  await extractPartition(raw, partition, header, 32 << 20);
  const { stdout } = await runProcess('cryptsetup', ['luksDump', '--dump-json-metadata', header]);
  const metadata = JSON.parse(stdout) as {
    keyslots: Record<string, { kdf: { type: string } }>;
    segments: Record<string, { type: string; encryption: string }>;
  };
  assert.deepEqual(
    Object.values(metadata.segments).map(({ type, encryption }) => ({ type, encryption })),
    [{ type: 'crypt', encryption: 'aes-xts-plain64' }],
  );
  assert.deepEqual(
    Object.values(metadata.keyslots).map((slot) => slot.kdf.type),
    ['pbkdf2', 'pbkdf2'],
  );
  assert.match((await runProcess('sgdisk', ['-v', raw])).stdout, /No problems found/);
});

vmTest('SHA256SUMS names every file of the image', async (lab) => {
  const sums = await readFile(join(lab.image.directory, 'SHA256SUMS'), 'utf8');
  await runProcess('sha256sum', ['--check', '--strict', '--quiet', 'SHA256SUMS'], { cwd: lab.image.directory });
  for (const path of [lab.image.diskImagePath, lab.image.ukiPath])
    assert.ok(sums.includes(path.slice(path.lastIndexOf('/') + 1)));
});
