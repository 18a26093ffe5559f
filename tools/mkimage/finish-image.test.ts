import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { holdOutDirectory, prepareOutDirectory } from './finish-image.ts';

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
    const out = join(directory, 'a/b');
    const unfinished = join(out, '.build-0123456789ab');
    {
      await using _held = await holdOutDirectory(out, undefined);
      await mkdir(unfinished);
      await assert.rejects(holdOutDirectory(out, AbortSignal.timeout(50)), /aborted/i);
      assert.deepEqual(await readdir(out), ['.build-0123456789ab', '.lock']);
    }
    await using _held = await holdOutDirectory(out, undefined);
    assert.deepEqual(await readdir(out), ['.lock']);
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
