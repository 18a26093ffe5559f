import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { prepareOutDirectory } from './finish-image.ts';

let directory: string;
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-out-'));
});
after(() => rm(directory, { recursive: true }));

describe('the directory that an image goes to', () => {
  it('is made, with its parents', async () => {
    await prepareOutDirectory(join(directory, 'a/b'));
    assert.deepEqual(await readdir(join(directory, 'a')), ['b']);
  });

  it('loses what a killed build left, and not what another build is making', async () => {
    const { pid } = spawnSync('true');
    const [dead, living] = [`.build-${pid}-0123456789ab`, `.build-${process.pid}-0123456789ab`];
    for (const name of [dead, living]) await mkdir(join(directory, 'a/b', name));
    await prepareOutDirectory(join(directory, 'a/b'));
    assert.deepEqual(await readdir(join(directory, 'a/b')), [living]);
  });

  it('is refused before any work when it cannot be', async () => {
    await writeFile(join(directory, 'file'), '');
    await assert.rejects(
      prepareOutDirectory(join(directory, 'file')),
      /cannot write the image to .*file is no directory/,
    );
    // Node's own recursive mkdir never comes back from here.
    await assert.rejects(
      prepareOutDirectory('/proc/foo/bar'),
      /cannot write the image to \/proc\/foo\/bar: .*choose another/,
    );
  });
});
