import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  checkDataFilesystem,
  FilesystemDamagedError,
  makeDataFilesystem,
  needsCheck,
  type RunProgram,
} from './data-filesystem.ts';

const run: RunProgram = (program, args) => {
  const { status, stdout, stderr } = spawnSync(program, args, { encoding: 'utf8' });
  return Promise.resolve({ code: status, output: `${stdout}${stderr}` });
};

function device(): Disposable & { path: string } {
  const directory = mkdtempSync(join(tmpdir(), 'ashlar-ext4-'));
  const path = join(directory, 'device');
  const fd = openSync(path, 'w');
  ftruncateSync(fd, 32 * 1024 * 1024);
  closeSync(fd);
  return { path, [Symbol.dispose]: () => rmSync(directory, { recursive: true }) };
}

test('a new file system is clean and needs no check', async () => {
  using file = device();
  await makeDataFilesystem(file.path, run);
  assert.equal(await checkDataFilesystem(file.path, () => assert.fail('checked a clean file system')), undefined);
});

test('a file system that was not left clean is checked and repaired', async () => {
  using file = device();
  await makeDataFilesystem(file.path, run);
  // debugfs keeps the superblock's checksum right.
  spawnSync('/usr/sbin/debugfs', ['-w', '-R', 'set_super_value state 0', file.path]);
  assert.ok(needsCheck(readFileSync(file.path).subarray(1024, 2048)));
  assert.match((await checkDataFilesystem(file.path, run)) ?? '', /DATA/);
  assert.ok(!needsCheck(readFileSync(file.path).subarray(1024, 2048)));
});

test('what is no file system is damaged, and is not made anew', async () => {
  using file = device();
  await assert.rejects(checkDataFilesystem(file.path, run), FilesystemDamagedError);
});

test('a program that fails is an error with what it said', async () => {
  using file = device();
  const failing: RunProgram = () => Promise.resolve({ code: 1, output: 'no space' });
  await assert.rejects(makeDataFilesystem(file.path, failing), /mkfs.ext4 ended with 1: no space/);
});
