/**
 * The files of the locked packages that images take from: each package unpacked on its own, with an index, so that a
 * file is found by its path and its origin is known.
 */
import { createHash } from 'node:crypto';
import { lstat, readdir, readFile, readlink, writeFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { cachedDirectory, cacheEntryOf, fileSha256, inputHash } from '../host/cache.ts';
import type { Progress } from '../host/progress.ts';
import type { FetchedPackages, PackageGroup } from './packages.ts';
import { mergeUsr, unpackPackage } from './tool-root.ts';

export interface PackageFile {
  package: string;
  /** As in the package, with /lib, /bin … led to /usr. */
  path: string;
  mode: number;
  sha256: string;
  size: number;
  /** Where it lies on the host. */
  hostPath: string;
}

export interface ImagePackages {
  /** A regular file, links followed; undefined when no package has that path. */
  find(path: string): PackageFile | undefined;
  /** Regular files below a directory. */
  below(path: string): PackageFile[];
}

type IndexEntry =
  | { type: 'file'; package: string; mode: number; sha256: string; size: number }
  | { type: 'link'; package: string; target: string };
type Index = Record<string, IndexEntry>;

const NOT_INDEXED = /^\/usr\/share\/(?:doc|man|locale|info|lintian|bug)\//;
const LINKS_FOLLOWED_MAX = 8;

export async function openImagePackages(
  packages: FetchedPackages,
  groups: readonly PackageGroup[],
  progress: Progress,
): Promise<ImagePackages> {
  const wanted = packages.packages.filter((entry) =>
    entry.groups.some((group) => groups.includes(group as PackageGroup)),
  );
  const key = inputHash('image-packages-1', ...wanted.map(({ sha256 }) => sha256).sort());
  const directory = await cachedDirectory('objects', `packages-${key.slice(0, 32)}`, (temporary) =>
    progress.step('packages: unpack', async (report) => {
      const index: Index = {};
      for (const [number, entry] of wanted.entries()) {
        report({ fraction: number / wanted.length, detail: entry.name });
        const root = join(temporary, entry.name);
        await mergeUsr(root);
        await unpackPackage(packages, entry, root);
        await addToIndex(index, entry.name, root);
      }
      await writeFile(join(temporary, 'index.json'), JSON.stringify(index));
    }),
  );
  const index = JSON.parse(await readFile(join(directory, 'index.json'), 'utf8')) as Index;

  const find = (path: string): PackageFile | undefined => {
    let at = mergedPath(path);
    for (let followed = 0; followed < LINKS_FOLLOWED_MAX; followed += 1) {
      const entry = index[at];
      if (entry === undefined) return undefined;
      if (entry.type === 'file') {
        const { package: name, mode, sha256, size } = entry;
        return { package: name, path: at, mode, sha256, size, hostPath: join(directory, name, at) };
      }
      at = mergedPath(resolve(dirname(at), entry.target));
    }
    return undefined;
  };
  return {
    find,
    below: (path) =>
      Object.keys(index)
        .filter((candidate) => candidate.startsWith(`${path}/`) && index[candidate]?.type === 'file')
        .sort()
        .flatMap((candidate) => find(candidate) ?? []),
  };
}

/** A file's bytes. Throws when they are no longer those that were indexed, and says what to remove. */
export async function readIndexed(file: Pick<PackageFile, 'path' | 'sha256' | 'hostPath'>): Promise<Buffer> {
  const { path, sha256, hostPath } = file;
  const bytes = await readFile(hostPath);
  const found = createHash('sha256').update(bytes).digest('hex');
  if (found === sha256) return bytes;
  throw new Error(
    `cannot take ${path} from ${hostPath}: its SHA-256 is ${found}, not ${sha256}, so it was damaged or changed after it was made; remove ${cacheEntryOf(hostPath) ?? hostPath} and build again`,
  );
}

/** /lib/x → /usr/lib/x, as the links of a merged system lead. */
export function mergedPath(path: string): string {
  return path.replace(/^\/(bin|sbin|lib|lib64)\//, '/usr/$1/');
}

async function addToIndex(index: Index, name: string, root: string): Promise<void> {
  const walk = async (path: string): Promise<void> => {
    for (const child of (await readdir(join(root, path))).sort()) {
      const childPath = `${path}/${child}`;
      if (NOT_INDEXED.test(`${childPath}/`)) continue;
      const found = await lstat(join(root, childPath));
      if (found.isDirectory()) await walk(childPath);
      else if (found.isSymbolicLink() && path !== '') {
        add(index, childPath, { type: 'link', package: name, target: await readlink(join(root, childPath)) });
      } else if (found.isFile()) {
        const sha256 = await fileSha256(join(root, childPath));
        add(index, childPath, { type: 'file', package: name, mode: found.mode & 0o7777, sha256, size: found.size });
      }
    }
  };
  await walk('');
}

function add(index: Index, path: string, entry: IndexEntry): void {
  const before = index[path];
  if (before !== undefined) {
    throw new Error(`cannot use the packages: ${before.package} and ${entry.package} both have ${path}`);
  }
  index[path] = entry;
}
