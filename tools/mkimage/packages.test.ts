import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { LOCK_FILE, type PackageLock, readPackageLock, readPackageRequest, writePackageLock } from './packages.ts';

let directory = '';
let lockText = '';
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-lock-'));
  lockText = await readFile(LOCK_FILE, 'utf8');
});
after(() => rm(directory, { recursive: true }));

async function written(name: string, content: string): Promise<string> {
  const path = join(directory, name);
  await writeFile(path, content);
  return path;
}

/** The error has the file's whole path and the way out. */
async function refusesLock(content: string, problem: RegExp): Promise<void> {
  const path = await written('lock.json', content);
  await assert.rejects(readPackageLock(path), ({ message }: Error) => {
    assert.ok(message.startsWith(`cannot use ${path}: `) && message.endsWith('with: mkimage lock'), message);
    assert.match(message, problem);
    return true;
  });
}

test('a lock with a mistyped, an unknown or a missing key is refused by file and key', async () => {
  await refusesLock(lockText.replace('"version"', '"verison"'), /packages\[0\]\.verison is not a key/);
  await refusesLock(lockText.replace('"lockedAt"', '"extra": 1, "lockedAt"'), /: extra is not a key/);
  await refusesLock('{}', /lockedAt is missing/);
  await refusesLock(lockText.replace(/"lockedAt": \d+/, '"lockedAt": "x"'), /lockedAt must be a whole number/);
  await refusesLock(lockText.replace(/"sha256": ".*"/, '"sha256": "12"'), /packages\[0\]\.sha256 must match/);
});

test('a lock that is no JSON, or not there, is refused by file', async () => {
  await refusesLock('{', /JSON/);
  await assert.rejects(readPackageLock(join(directory, 'none.json')), /cannot use .*none\.json: ENOENT.*mkimage lock/);
});

test('a lock without a package that is requested, or without it in that group, is refused by its name', async () => {
  const lock = JSON.parse(lockText) as PackageLock;
  const without = { ...lock, packages: lock.packages.filter(({ name }) => name !== 'crun') };
  await refusesLock(JSON.stringify(without), /packages\.json asks for crun \(image\), not in it/);
  const elsewhere = lock.packages.map((entry) => (entry.name === 'crun' ? { ...entry, groups: ['test'] } : entry));
  await refusesLock(JSON.stringify({ ...lock, packages: elsewhere }), /asks for crun \(image\), not in it/);
});

test('a lock is written anew over one that cannot be used, and left alone where its packages are the same', async () => {
  const lock = await readPackageLock();
  const path = await written('kept.json', lockText);
  const later = { ...lock, lockedAt: lock.lockedAt + 1 };
  assert.deepEqual(await writePackageLock(later, path), { changed: false });
  assert.equal(await readFile(path, 'utf8'), lockText);
  await writeFile(path, '{');
  assert.deepEqual(await writePackageLock(lock, path), { changed: true });
  assert.equal(await readFile(path, 'utf8'), lockText);
});

test('a request with a mistyped or an unknown key is refused by file and key', async () => {
  const text = await readFile(join(LOCK_FILE, '../packages.json'), 'utf8');
  const refuses = async (content: string, problem: RegExp) =>
    assert.rejects(readPackageRequest(await written('packages.json', content)), problem);
  await refuses(
    text.replace('"closure"', '"colsure"'),
    /cannot use .*packages\.json: groups\.tools\.colsure is not a key/,
  );
  await refuses(text.replace('"suites"', '"extra": 1, "suites"'), /packages\.json: extra is not a key/);
  await refuses(text.replace('"libraries"', '"library"'), /groups\.image\.closure must be one of all, libraries, none/);
  await refuses('{', /cannot use .*packages\.json: .*JSON/);
});
