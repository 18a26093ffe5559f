/** Fetching against the real archive: what happens to broken files and to versions that are gone. */
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { Progress } from '../host/progress.ts';
import { fetchPackages, type LockedPackage, type PackageLock, readPackageLock } from './packages.ts';

// A small package that the image really has.
const NAME = 'libyajl2';
let cache = '';
let lock: PackageLock;
let entry: LockedPackage;
let warnings: string[] = [];

const progress: Progress = {
  step: async (_title, work) => work(() => {}),
  note: () => {},
  warn: (text) => void warnings.push(text),
};

before(async () => {
  cache = await mkdtemp(join(tmpdir(), 'ashlar-packages-'));
  process.env['XDG_CACHE_HOME'] = cache;
  const whole = await readPackageLock();
  const found = whole.packages.find(({ name }) => name === NAME);
  assert.ok(found);
  entry = found;
  lock = { ...whole, packages: [entry] };
});
after(() => rm(cache, { recursive: true, force: true }));

const cached = () => join(cache, 'ashlar', 'packages', `${entry.sha256}.deb`);
const broken = (change: (path: string) => Promise<void>) => async () => {
  warnings = [];
  const packages = await fetchPackages(lock, ['image'], { progress });
  const good = await readFile(await packages.file(entry));
  await change(cached());
  const again = await fetchPackages(lock, ['image'], { progress });
  assert.ok((await readFile(await again.file(entry))).equals(good));
  assert.equal(warnings.length, 1);
  assert.match(warnings[0] ?? '', new RegExp(`the cached ${NAME} .* is broken .*: fetching it anew`));
};

test(
  'a truncated package in the cache is noticed, said and fetched anew',
  broken((path) => truncate(path, 1000)),
);

test(
  'a package with a flipped bit is noticed, said and fetched anew',
  broken(async (path) => {
    const bytes = await readFile(path);
    bytes[5000] = (bytes[5000] ?? 0) ^ 1;
    await writeFile(path, bytes);
  }),
);

test('a version that the mirror no longer has is refused by name, with the ways out', async () => {
  const gone = { ...entry, version: '1.0-1', sha256: '0'.repeat(64) };
  await assert.rejects(
    fetchPackages({ ...lock, packages: [gone] }, ['image'], { progress }),
    /cannot fetch libyajl2 1\.0-1: the mirror no longer has that version; .*mkimage lock, .*--allow-drift/,
  );
});

test('with allowDrift the newest is taken, with a warning and a record', async () => {
  warnings = [];
  const gone = { ...entry, version: '1.0-1', sha256: '0'.repeat(64) };
  const packages = await fetchPackages({ ...lock, packages: [gone] }, ['image'], { progress, allowDrift: true });
  assert.deepEqual(packages.drift, [{ name: NAME, locked: '1.0-1', used: entry.version }]);
  assert.equal(packages.packages[0]?.sha256, entry.sha256);
  assert.match(warnings.join('\n'), /DRIFT: libyajl2 1\.0-1 is locked but gone; this image takes /);
});

test('a mirror that cannot be reached is an error that names it', async () => {
  const empty = { ...entry, sha256: '1'.repeat(64) };
  await assert.rejects(
    fetchPackages({ ...lock, packages: [empty] }, ['image'], { progress, mirror: 'http://127.0.0.1:9/debian' }),
    /127\.0\.0\.1:9/,
  );
});
