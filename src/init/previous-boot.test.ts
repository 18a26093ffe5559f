import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { takePreviousBootEnd } from './previous-boot.ts';

const parts = {
  'dmesg-efi_pstore-176364000002001': 'Panic#1 Part2\n<6>[    1.1] older line\n<6>[    1.2] EXT4-fs mounted\n',
  'dmesg-efi_pstore-176364000001001':
    'Panic#1 Part1\n<3>[    2.1] device-mapper: verity: 254:2: data block 7 is corrupted\n' +
    '<0>[    2.2] Kernel panic - not syncing: dm-verity device corrupted\n<4>[    2.3] CPU: 0 PID: 1 Comm: init\n',
};

function pstore(files: Readonly<Record<string, string>>): string {
  const directory = mkdtempSync(join(tmpdir(), 'pstore-'));
  for (const [name, content] of Object.entries(files)) writeFileSync(join(directory, name), content, 'latin1');
  return directory;
}

test('a panic is summed up with the verity error that led to it', async () => {
  const end = await takePreviousBootEnd(pstore(parts));
  assert.equal(
    end?.summary,
    'a kernel panic: dm-verity device corrupted (device-mapper: verity: 254:2: data block 7 is corrupted)',
  );
  assert.equal(end?.tail[0], '[    1.1] older line');
});

test('records are removed once read, so that the next panic has room', async () => {
  const directory = pstore(parts);
  await takePreviousBootEnd(directory);
  assert.deepEqual(readdirSync(directory), []);
  assert.equal(await takePreviousBootEnd(directory), null);
});

test('a record that is damaged is still shown', async () => {
  const end = await takePreviousBootEnd(pstore({ 'dmesg-efi_pstore-1': '\u0001\u0002garbage' }));
  assert.match(end?.summary ?? '', /a kernel crash: .*garbage/);
});
