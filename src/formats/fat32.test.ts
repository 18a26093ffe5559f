import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { FormatError } from './byte-reader.ts';
import { openFat32 } from './fat32.ts';
import { mutations, skipWithout } from './fixtures.ts';

const directory = mkdtempSync(join(tmpdir(), 'ashlar-fat-'));
after(() => rmSync(directory, { recursive: true }));

const open = (bytes: Uint8Array) =>
  openFat32(async (offset, length) => bytes.subarray(offset, offset + length), bytes.length);

describe('openFat32', { skip: skipWithout('mformat') }, () => {
  let volume: Buffer;
  const big = Buffer.alloc(70_000, 'ashlar');
  before(() => {
    const image = join(directory, 'esp.img');
    writeFileSync(image, '');
    truncateSync(image, 34 * 1024 * 1024);
    const file = join(directory, 'big');
    writeFileSync(file, big);
    const run = (tool: string, ...args: string[]) => execFileSync(tool, ['-i', image, ...args], { stdio: 'pipe' });
    run('mformat', '-F', '-c', '1', '::');
    run('mmd', '::/EFI', '::/EFI/ashlar');
    run('mcopy', file, '::/EFI/ashlar/a-file-with-a-long-name.efi');
    run('mcopy', file, '::/EFI/BIG.TXT');
    volume = readFileSync(image);
  });

  it('reads files by path, long names too, whatever their case', async () => {
    const fat = await open(volume);
    assert.deepEqual(await fat.readFile('EFI/ashlar/A-FILE-with-a-long-name.efi'), big);
    assert.deepEqual(
      (await fat.list('EFI'))?.map(({ name, isDirectory }) => [name, isDirectory]),
      [
        ['ashlar', true],
        ['BIG.TXT', false],
      ],
    );
  });

  it('says undefined for what is not there', async () => {
    const fat = await open(volume);
    assert.equal(await fat.readFile('EFI/none'), undefined);
    assert.equal(await fat.readFile('EFI'), undefined);
    assert.equal(await fat.list('none'), undefined);
  });

  it('ends with a FormatError when a chain loops', async () => {
    const looping = Buffer.from(volume);
    const fatAt = looping.readUInt16LE(14) * 512;
    for (let entry = 2; entry < 500; entry++) looping.writeUInt32LE(entry, fatAt + entry * 4);
    await assert.rejects(async () => await (await open(looping)).readFile('EFI/BIG.TXT'), FormatError);
  });

  it('answers mutated volumes with contents, undefined or a FormatError', async () => {
    const head = volume.subarray(0, 2 * 1024 * 1024);
    let count = 0;
    for (const bytes of mutations(head, { seed: 18, count: 30, window: 64 })) {
      const whole = Buffer.concat([bytes, volume.subarray(bytes.length)]);
      try {
        const fat = await open(whole);
        await fat.readFile('EFI/BIG.TXT');
      } catch (error) {
        assert.ok(error instanceof FormatError, String(error));
        count += 1;
      }
    }
    assert.ok(count > 0);
  });
});
