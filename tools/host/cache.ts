/**
 * A cache of build products and downloads, keyed by their inputs and shared by every checkout and every concurrent run.
 *
 *     KIND/KEY                 a finished product: complete, never changed again
 *     KIND/.tmp@KEY@RANDOM     being made; renamed to KIND/KEY when complete
 *     KIND/.locks/KEY          flock'ed by whoever makes KEY
 *     KIND/.sums/KEY           what a product that is checked at each use must hash to
 *
 * Whoever holds KEY's lock owns all of KEY's temporaries: so those of a killed process can be told from those of a
 * living one without asking who is alive.
 */
import { execFile } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises';
import { dirname, join, relative, sep } from 'node:path';
import { promisify } from 'node:util';
import { lockFile, tryLockFile } from './file-lock.ts';
import { xdgCacheDirectory } from './xdg.ts';

export interface CacheOptions {
  /** Told when another process is making the same thing. @default a line on stderr */
  note?: (text: string) => void;
  /** Ends the wait for another process; what `produce` does with it is its own business. */
  signal?: AbortSignal | undefined;
  /**
   * Hashes the product when it is made and compares it at each use; one that is damaged is made again. For what is signed:
   * a key that names the inputs says nothing of what a disk has made of the output since. @default false
   */
  isChecked?: boolean;
}

/** The root of the cache: `${XDG_CACHE_HOME:-~/.cache}/ashlar`. */
export function cacheDirectory(): string {
  return xdgCacheDirectory();
}

/**
 * The path of the file KIND/KEY, made by `produce` at a temporary path when it is not there yet.
 * What `produce` throws is passed on and leaves nothing behind.
 */
export async function cachedFile(
  kind: string,
  key: string,
  produce: (temporaryPath: string) => Promise<void>,
  options: CacheOptions = {},
): Promise<string> {
  return cached(kind, key, options, async (temporaryPath) => {
    await produce(temporaryPath);
    const found = await stat(temporaryPath).catch(() => undefined);
    if (!found?.isFile()) throw new Error(`cannot cache ${kind}/${key}: its maker left no file at ${temporaryPath}`);
    // A rename can reach the disk before the content does; after a power cut the name would promise what is not there.
    await using file = await open(temporaryPath, 'r');
    await file.sync();
  });
}

/** The path of the directory KIND/KEY, made by `produce` in an empty temporary directory when it is not there yet. */
export async function cachedDirectory(
  kind: string,
  key: string,
  produce: (temporaryDirectory: string) => Promise<void>,
  options: CacheOptions = {},
): Promise<string> {
  return cached(kind, key, options, async (temporaryPath) => {
    await mkdir(temporaryPath);
    await produce(temporaryPath);
    await syncFilesystem(temporaryPath);
  });
}

/**
 * SHA-256 in hex over the parts, each preceded by its type and length, so that no two different lists of parts give the
 * same bytes to hash.
 */
export function inputHash(...parts: (string | Uint8Array)[]): string {
  const hash = createHash('sha256');
  for (const part of parts) {
    const bytes = typeof part === 'string' ? Buffer.from(part, 'utf8') : part;
    const prefix = Buffer.alloc(9);
    prefix[0] = typeof part === 'string' ? 0x73 : 0x62;
    prefix.writeBigUInt64LE(BigInt(bytes.byteLength), 1);
    hash.update(prefix).update(bytes);
  }
  return hash.digest('hex');
}

/** SHA-256 in hex of a file's content, read as a stream. */
export async function fileSha256(path: string): Promise<string> {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

/** The finished product that a path lies in, for advice; undefined when it is not in the cache. */
export function cacheEntryOf(path: string): string | undefined {
  const [kind, key] = relative(cacheDirectory(), path).split(sep);
  if (kind === undefined || key === undefined || kind === '..') return undefined;
  return join(cacheDirectory(), kind, key);
}

/**
 * syncfs(2): everything at once, since a tree of sources has 80,000 files and fsync of each would take minutes. Through
 * sync(1), which waits in its own process.
 */
async function syncFilesystem(path: string): Promise<void> {
  await promisify(execFile)('sync', ['--file-system', path]);
}

async function cached(
  kind: string,
  key: string,
  options: CacheOptions,
  produce: (temporaryPath: string) => Promise<void>,
): Promise<string> {
  checkName('kind', kind);
  checkName('key', key);
  const directory = join(cacheDirectory(), kind);
  const path = join(directory, key);
  const sumsPath = join(directory, '.sums', key);
  const isThere = async () => (await exists(path)) && (options.isChecked !== true || (await isIntact(path, sumsPath)));
  if (await isThere()) return path;

  const note = options.note ?? ((text) => process.stderr.write(`${text}\n`));
  await using _lock = await lockFile(lockPath(directory, key), {
    signal: options.signal,
    onWait: () => note(`waiting for another build of ${kind}/${key}`),
  });
  if (await isThere()) return path;
  if (await exists(path)) {
    note(`${path} is damaged, or was made before its content was recorded; it is made again`);
    await removeTree(path);
  }

  await sweepTemporaries(directory, key);
  const temporaryPath = join(directory, `.tmp@${key}@${randomBytes(6).toString('hex')}`);
  try {
    await produce(temporaryPath);
    if (options.isChecked === true) await writeSums(sumsPath, await sumsOf(temporaryPath));
    await rename(temporaryPath, path);
  } catch (error) {
    await removeTree(temporaryPath);
    throw error;
  }
  return path;
}

/** SHA-256 of each file of a product, as text: the same for the same content. */
async function sumsOf(path: string): Promise<string> {
  const names = (await stat(path)).isDirectory()
    ? (await readdir(path, { recursive: true, withFileTypes: true }))
        .filter((entry) => entry.isFile())
        .map((entry) => relative(path, join(entry.parentPath, entry.name)))
        .sort()
    : [''];
  const lines: string[] = [];
  for (const name of names) lines.push(`${await fileSha256(join(path, name))}  ${name}\n`);
  return lines.join('');
}

async function isIntact(path: string, sumsPath: string): Promise<boolean> {
  const recorded = await readFile(sumsPath, 'utf8').catch(() => undefined);
  return recorded !== undefined && recorded === (await sumsOf(path));
}

/** Before the product has its name: whoever finds that finds this. */
async function writeSums(path: string, sums: string): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  const temporary = `${path}@${randomBytes(6).toString('hex')}`;
  {
    await using file = await open(temporary, 'wx');
    await file.writeFile(sums);
    await file.sync();
  }
  await rename(temporary, path);
}

/** Removes what dead processes left of any key of this kind. `ownKey` is locked by the caller. */
async function sweepTemporaries(directory: string, ownKey: string): Promise<void> {
  for (const name of await readdir(directory)) {
    const key = /^\.tmp@(.+)@[0-9a-f]{12}$/.exec(name)?.[1];
    if (key === undefined) continue;
    if (key === ownKey) {
      await removeTree(join(directory, name));
      continue;
    }
    await using lock = await tryLockFile(lockPath(directory, key));
    if (lock !== undefined) await removeTree(join(directory, name));
  }
}

function lockPath(directory: string, key: string): string {
  return join(directory, '.locks', key);
}

async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return false;
      throw error;
    },
  );
}

async function removeTree(path: string): Promise<void> {
  await rm(path, { recursive: true, force: true });
}

function checkName(what: string, name: string): void {
  // The characters of Debian package names and versions, and of hex digests; no separator, no hidden file, no "@",
  // which divides a temporary's name.
  if (!/^[A-Za-z0-9_][A-Za-z0-9_.+~:%-]{0,199}$/.test(name)) {
    throw new Error(`cannot use ${JSON.stringify(name)} as a cache ${what}: it must be a plain file name`);
  }
}
