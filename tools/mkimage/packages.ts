/**
 * The packages that images are made of.
 *
 *     image/packages.json   what is asked for, in groups        (written by people)
 *           │  mkimage lock: apt resolves, Debian's signatures vouch
 *           ▼
 *     image/lock.json       exactly which files, by SHA-256     (reviewed, committed)
 *           │  fetchPackages: from the cache, else from the mirror; the hash decides
 *           ▼
 *     packages/SHA256.deb   in the cache
 *
 * The lock names no host: any mirror that has these bytes will do.
 */
import { mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { type Check, type Checked, integer, list, object, oneOf, text } from '../../src/formats/json-shape.ts';
import { cacheDirectory, cachedFile, fileSha256 } from '../host/cache.ts';
import type { Progress } from '../host/progress.ts';
import { type ArchivePackage, type DebianArchive, openDebianArchive } from './debian-archive.ts';

/** What image/packages.json asks for. */
export type PackageRequest = Checked<typeof requestShape>;
export type PackageGroup = keyof PackageRequest['groups'];

export interface LockedPackage extends ArchivePackage {
  /** The groups of image/packages.json that need it. */
  groups: string[];
}

export interface PackageLock {
  /** Seconds since 1970: the image's build time and the date of everything in it. */
  lockedAt: number;
  packages: LockedPackage[];
}

/** A package taken in another version than the locked one. */
export interface Drift {
  name: string;
  locked: string;
  used: string;
}

export interface FetchedPackages {
  lockedAt: number;
  /** As locked, except for what drifted. */
  packages: LockedPackage[];
  drift: Drift[];
  /** The verified .deb of a package. A broken copy in the cache is fetched anew. */
  file(entry: LockedPackage): Promise<string>;
}

export interface PackageOptions {
  progress: Progress;
  /** Base URI of the archive to use instead of the host's. */
  mirror?: string | undefined;
  /** Suites that the locked packages are of. @default those of image/packages.json */
  suites?: readonly string[] | undefined;
  signal?: AbortSignal | undefined;
}

export const LOCK_FILE = join(import.meta.dirname, '../../image/lock.json');
const REQUEST_FILE = join(import.meta.dirname, '../../image/packages.json');
const LOCK_ANEW = 'make a new lock with: mkimage lock';

const line = text({ min: 1, max: 500 });
const groupShape = object({
  why: line,
  closure: oneOf('all', 'libraries', 'none'),
  packages: list(line, { max: 1000 }),
});
const requestShape = object({
  suites: list(line, { max: 20 }),
  components: list(line, { max: 20 }),
  groups: object({
    tools: groupShape,
    kernel: groupShape,
    boot: groupShape,
    firmware: groupShape,
    image: groupShape,
    test: groupShape,
  }),
});

const lockShape: Check<PackageLock> = object({
  lockedAt: integer({ min: 0, max: Number.MAX_SAFE_INTEGER }),
  packages: list(
    object({
      name: line,
      version: line,
      architecture: line,
      suite: line,
      path: line,
      sha256: text({ max: 64, pattern: /^[0-9a-f]{64}$/ }),
      size: integer({ min: 1, max: Number.MAX_SAFE_INTEGER }),
      groups: list(line, { max: 20 }),
    }),
    { max: 10_000 },
  ),
});

export function readPackageRequest(path = REQUEST_FILE): Promise<PackageRequest> {
  return readShape(path, requestShape, 'correct it');
}

/** @throws when the file is no lock, or not one of all that is requested */
export async function readPackageLock(path = LOCK_FILE, requestPath = REQUEST_FILE): Promise<PackageLock> {
  const lock = await readShape(path, lockShape, LOCK_ANEW);
  const { groups } = await readPackageRequest(requestPath);
  const missing = Object.entries(groups).flatMap(([group, { packages }]) =>
    packages
      .filter((name) => !lock.packages.some((entry) => entry.name === name && entry.groups.includes(group)))
      .map((name) => `${name} (${group})`),
  );
  if (missing.length > 0)
    throw new Error(`cannot use ${path}: ${requestPath} asks for ${missing.join(', ')}, not in it; ${LOCK_ANEW}`);
  return lock;
}

async function readShape<T>(path: string, shape: Check<T>, wayOut: string): Promise<T> {
  try {
    return shape(JSON.parse(await readFile(path, 'utf8')), '');
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new Error(`cannot use ${path}: ${reason}; ${wayOut}`, { cause: error });
  }
}

/** Resolves image/packages.json to exact files. Nothing is downloaded but the archive's lists. */
export async function lockPackages(options: PackageOptions): Promise<PackageLock> {
  const request = await readPackageRequest();
  return options.progress.step('packages: resolve', async (report) => {
    const archive = await openArchive(options);
    report({ detail: 'reading the archive’s lists' });
    await archive.update();
    const groupsOf = new Map<string, Set<string>>();
    const versions = new Map<string, string>();
    for (const [group, { packages, closure }] of Object.entries(request.groups)) {
      report({ detail: group });
      for (const { name, version } of await resolveGroup(archive, packages, closure)) {
        versions.set(name, version);
        groupsOf.set(name, (groupsOf.get(name) ?? new Set()).add(group));
      }
    }
    const asked = [...versions].map(([name, version]) => ({ name, version }));
    const described = await archive.describe(asked);
    const missing = asked.filter(({ name }) => !described.some((entry) => entry.name === name));
    if (missing.length > 0) {
      throw new Error(
        `cannot lock ${missing.map(({ name }) => name).join(', ')}: the archive's index has no file for it`,
      );
    }
    return {
      lockedAt: Math.floor(Date.now() / 1000),
      packages: described
        .map((entry) => ({ ...entry, groups: [...(groupsOf.get(entry.name) ?? [])].sort() }))
        .sort((a, b) => (a.name < b.name ? -1 : 1)),
    };
  });
}

/** Keeps `lockedAt` when the packages are the same: locking twice is then no change, and neither is the image. */
export async function writePackageLock(lock: PackageLock, path = LOCK_FILE): Promise<{ changed: boolean }> {
  const before = await readPackageLock(path).catch(() => undefined);
  const changed = !isDeepStrictEqual(before?.packages, lock.packages);
  if (!changed) return { changed };
  const temporary = `${path}.${process.pid}`;
  await writeFile(temporary, `${JSON.stringify(lock, undefined, 2)}\n`);
  await rename(temporary, path);
  return { changed };
}

async function resolveGroup(
  archive: DebianArchive,
  names: readonly string[],
  closure: PackageRequest['groups'][PackageGroup]['closure'],
): Promise<{ name: string; version: string }[]> {
  if (closure === 'none') {
    const found = await archive.newest(names);
    const missing = names.filter((name) => !found.some((entry) => entry.name === name));
    if (missing.length > 0) throw new Error(`cannot lock ${missing.join(', ')}: the suite has no package of that name`);
    return found;
  }
  const all = await archive.closure(names);
  if (closure === 'all') return all;
  // Of an image's packages only chosen files are taken, and the libraries these need: not the maintainer scripts'
  // interpreters and account tools, which are most of the closure.
  return all.filter(
    ({ name }) => names.includes(name) || /^lib(?!.*(-bin|-common|-modules.*|-data|-perl)$)/.test(name),
  );
}

/**
 * Sees to it that every package of the groups is in the cache.
 *
 * @throws when the mirror no longer has a locked version, unless `allowDrift`: then the suite's newest is taken, loudly
 */
export async function fetchPackages(
  lock: PackageLock,
  groups: readonly PackageGroup[],
  options: PackageOptions & { allowDrift?: boolean | undefined },
): Promise<FetchedPackages> {
  const wanted = lock.packages.filter((entry) => entry.groups.some((group) => groups.includes(group as PackageGroup)));
  const missing = [];
  for (const entry of wanted) if (!(await inCache(entry))) missing.push(entry);
  const replaced = missing.length === 0 ? [] : await download(missing, options);
  const packages = wanted.map((entry) => replaced.find(({ name }) => name === entry.name) ?? entry);
  return {
    lockedAt: lock.lockedAt,
    packages,
    drift: replaced.map((entry) => ({
      name: entry.name,
      locked: wanted.find(({ name }) => name === entry.name)?.version ?? '',
      used: entry.version,
    })),
    file: (entry) => verifiedFile(entry, options),
  };
}

/** Downloads what is missing in one go. Returns the packages that were taken in another version. */
async function download(
  missing: readonly LockedPackage[],
  options: PackageOptions & { allowDrift?: boolean | undefined },
): Promise<LockedPackage[]> {
  const archive = await openArchive(options);
  const title = `packages: fetch ${missing.length}`;
  return options.progress.step(title, async (report) => {
    report({ detail: 'reading the archive’s lists' });
    await archive.update();
    const available = await archive.describe(missing);
    const gone = missing.filter((entry) => !available.some(({ name, sha256 }) => sameFile(entry, name, sha256)));
    const replaced = gone.length === 0 ? [] : await drift(archive, gone, options);
    const wanted = missing.map((entry) => replaced.find(({ name }) => name === entry.name) ?? entry);
    const absent = [];
    for (const entry of wanted) if (!(await inCache(entry))) absent.push(entry);
    if (absent.length === 0) return replaced;
    const totalBytes = absent.reduce((sum, { size }) => sum + size, 0);
    await using directory = await temporaryDirectory();
    await archive.download(absent, directory.path, (percent) =>
      report({
        fraction: percent / 100,
        detail: `${megabytes((totalBytes * percent) / 100)} of ${megabytes(totalBytes)}`,
      }),
    );
    await storeDownloaded(directory.path, absent);
    return replaced;
  });
}

async function drift(
  archive: DebianArchive,
  gone: readonly LockedPackage[],
  options: PackageOptions & { allowDrift?: boolean | undefined },
): Promise<LockedPackage[]> {
  const list = gone.map(({ name, version }) => `${name} ${version}`).join(', ');
  if (options.allowDrift !== true) {
    throw new Error(
      `cannot fetch ${list}: the mirror no longer has ${gone.length === 1 ? 'that version' : 'those versions'}; ` +
        'lock what it has with: mkimage lock, or take the newest for this image with --allow-drift',
    );
  }
  const newest = await archive.describe(await archive.newest(gone.map(({ name }) => name)));
  return gone.map((entry) => {
    const found = newest.find(({ name }) => name === entry.name);
    if (found === undefined) {
      throw new Error(
        `cannot fetch ${entry.name} ${entry.version}: the suite no longer has any version; run: mkimage lock`,
      );
    }
    options.progress.warn(
      `DRIFT: ${entry.name} ${entry.version} is locked but gone; this image takes ${found.version} and differs from the locked one`,
    );
    return { ...found, groups: entry.groups };
  });
}

/** Files by what they contain, whatever apt calls them. */
async function storeDownloaded(directory: string, expected: readonly LockedPackage[]): Promise<void> {
  const bySha256 = new Map<string, string>();
  for (const name of await readdir(directory)) {
    if (name.endsWith('.deb')) bySha256.set(await fileSha256(join(directory, name)), join(directory, name));
  }
  for (const entry of expected) {
    const path = bySha256.get(entry.sha256);
    if (path === undefined) {
      throw new Error(
        `cannot use the download of ${entry.name} ${entry.version}: its SHA-256 is not ${entry.sha256}; try again, or another --mirror`,
      );
    }
    await cachedFile('packages', cacheKey(entry), (temporary) => rename(path, temporary));
  }
}

/** The file in the cache, hashed now. */
async function verifiedFile(entry: LockedPackage, options: PackageOptions): Promise<string> {
  const path = cachePath(entry);
  const found = await fileSha256(path).catch(() => undefined);
  if (found === entry.sha256) return path;
  if (found !== undefined) {
    options.progress.warn(
      `the cached ${entry.name} ${entry.version} is broken (SHA-256 ${found.slice(0, 16)}…, not ${entry.sha256.slice(0, 16)}…): fetching it anew`,
    );
    await rm(path);
  }
  await download([entry], options);
  const again = await fileSha256(path);
  if (again !== entry.sha256)
    throw new Error(`cannot keep ${entry.name} in ${path}: it reads back differently; check the disk`);
  return path;
}

function sameFile(entry: LockedPackage, name: string, sha256: string): boolean {
  return entry.name === name && entry.sha256 === sha256;
}

function cacheKey(entry: LockedPackage): string {
  return `${entry.sha256}.deb`;
}

function cachePath(entry: LockedPackage): string {
  return join(cacheDirectory(), 'packages', cacheKey(entry));
}

async function inCache(entry: LockedPackage): Promise<boolean> {
  return (await stat(cachePath(entry)).catch(() => undefined)) !== undefined;
}

async function openArchive(options: PackageOptions): Promise<DebianArchive> {
  const { components, suites: requested } = await readPackageRequest();
  const suites = options.suites ?? requested;
  return await openDebianArchive({ suites, components, mirror: options.mirror, signal: options.signal });
}

/** Beside the cache's packages, so that moving a file into it is a rename. */
async function temporaryDirectory(): Promise<{ path: string } & AsyncDisposable> {
  const path = await mkdtemp(join(cacheDirectory(), 'apt', 'download-'));
  return { path, [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }) };
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`;
}
