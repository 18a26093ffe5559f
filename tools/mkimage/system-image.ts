/**
 * The system partition: erofs, then dm-verity's superblock and hash tree behind it in the same file.
 *
 * The salt and the superblock's UUID come from the content, and the partition's UUID from the root hash: so the same
 * tree gives the same bytes, and the UKI that carries the root hash finds its partition in either slot.
 */
import { createHash } from 'node:crypto';
import { chmod, link, lstat, mkdir, readdir, readFile, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join, relative } from 'node:path';
import { cachedDirectory, fileSha256, inputHash } from '../host/cache.ts';
import type { Progress } from '../host/progress.ts';
import { contentOf, type TreeEntry } from './file-tree.ts';
import { describe } from './initramfs.ts';
import { runInToolRoot, type ToolRoot } from './tool-root.ts';

export interface SystemImage {
  path: string;
  sizeBytes: number;
  partitionUuid: string;
  rootHash: string;
  salt: string;
  dataBlocks: number;
  hashStartBlock: number;
  /** Of the whole file. */
  sha256: string;
}

const BLOCK = 4096;
/**
 * 16 KiB of compressed data together: a tenth smaller than 4 KiB, and no slower at boot than uncompressed. Output is the
 * same for one worker thread and for many (but another one without any).
 */
const EROFS = ['-b4096', '-zlz4hc,9', '-C16384', '-x-1', '--all-root', '--quiet'] as const;

export async function buildSystemImage(options: {
  entries: readonly TreeEntry[];
  toolRoot: ToolRoot;
  /** Seconds since 1970: the time of every file. */
  buildTime: number;
  progress: Progress;
  signal?: AbortSignal | undefined;
}): Promise<SystemImage> {
  const { entries, toolRoot, buildTime, progress, signal } = options;
  const key = inputHash('system-3', toolRoot.key, ...EROFS, String(buildTime), describe(entries));
  const directory = await cachedDirectory(
    'objects',
    `system-${key.slice(0, 32)}`,
    (temporary) =>
      progress.step('system partition: erofs and dm-verity', async (report) => {
        const tree = join(temporary, 'tree');
        const image = join(temporary, 'system.img');
        await mkdir(tree);
        // The root directory too has a mode in the image, and not the one that the builder's umask leaves.
        await chmod(tree, 0o755);
        await writeTree(tree, entries);
        await refuseUnlisted(tree, entries);
        report({ detail: 'compressing' });
        await makeErofs({ toolRoot, tree, image, uuid: uuidFrom(key), buildTime, signal });
        await rm(tree, { recursive: true });
        report({ detail: 'hashing' });
        const verity = await addVerity(toolRoot, image, signal);
        await writeFile(join(temporary, 'verity.json'), JSON.stringify(verity));
      }),
    { signal, isChecked: true },
  );
  const path = join(directory, 'system.img');
  const verity = JSON.parse(await readFile(join(directory, 'verity.json'), 'utf8')) as Verity;
  return { path, sizeBytes: (await stat(path)).size, partitionUuid: uuidFrom(verity.rootHash), ...verity };
}

type Verity = Pick<SystemImage, 'rootHash' | 'salt' | 'dataBlocks' | 'hashStartBlock' | 'sha256'>;

/** Writes the tree, equal files once. Owners and times are mkfs's to set. */
async function writeTree(root: string, entries: readonly TreeEntry[]): Promise<void> {
  const written = new Map<string, string>();
  for (const entry of entries) {
    const path = join(root, entry.path);
    switch (entry.type) {
      case 'directory':
        await mkdir(path);
        await chmod(path, entry.mode);
        break;
      case 'link':
        await symlink(entry.target, path);
        break;
      case 'device':
        throw new Error(`cannot put ${entry.path} into the system partition: devices come from devtmpfs`);
      case 'file': {
        const identity = `${entry.sha256} ${entry.mode}`;
        const same = written.get(identity);
        if (same !== undefined) {
          await link(same, path);
          break;
        }
        await writeFile(path, await contentOf(entry));
        await chmod(path, entry.mode);
        written.set(identity, path);
      }
    }
  }
}

/** What mkfs will read, compared with what was asked for. */
async function refuseUnlisted(root: string, entries: readonly TreeEntry[]): Promise<void> {
  const listed = new Map(entries.map((entry) => [entry.path, entry]));
  const links = entries.filter(({ type }) => type === 'link').map(({ path }) => path.slice(1));
  const names = (await readdir(root, { recursive: true, withFileTypes: true }))
    .map((found) => relative(root, join(found.parentPath, found.name)))
    // Node's listing goes on through links to directories.
    .filter((name) => !links.some((link) => name.startsWith(`${link}/`)));
  for (const name of names) {
    const entry = listed.get(`/${name}`);
    if (entry === undefined) throw new Error(`cannot build the system partition: /${name} has no manifest entry`);
    const found = await lstat(join(root, name));
    if (entry.type !== 'link' && (found.mode & 0o7777) !== entry.mode) {
      throw new Error(
        `cannot build the system partition: /${name} has mode ${(found.mode & 0o7777).toString(8)}, not ${entry.mode.toString(8)}`,
      );
    }
  }
  if (names.length !== entries.length) {
    throw new Error(
      `cannot build the system partition: ${entries.length} files are listed and ${names.length} were written`,
    );
  }
}

async function makeErofs(options: {
  toolRoot: ToolRoot;
  tree: string;
  image: string;
  uuid: string;
  buildTime: number;
  signal: AbortSignal | undefined;
}): Promise<void> {
  const { toolRoot, tree, image, uuid, buildTime, signal } = options;
  await writeFile(image, '');
  const args = [
    ...EROFS,
    `--workers=${availableParallelism()}`,
    `-T${buildTime}`,
    `-U${uuid}`,
    '/out/system.img',
    '/tree',
  ];
  const output = `${image}.d`;
  await mkdir(output);
  await runInToolRoot(toolRoot, 'mkfs.erofs', args, {
    binds: [
      { source: tree, target: '/tree' },
      { source: output, target: '/out', writable: true },
    ],
    signal,
  });
  await rename(join(output, 'system.img'), image);
  await rm(output, { recursive: true });
}

async function addVerity(toolRoot: ToolRoot, image: string, signal: AbortSignal | undefined): Promise<Verity> {
  const content = await readFile(image);
  if (content.length % BLOCK !== 0)
    throw new Error(`cannot add dm-verity: erofs made ${content.length} bytes, no multiple of ${BLOCK}`);
  const dataBlocks = content.length / BLOCK;
  const salt = createHash('sha256').update(content).digest('hex');
  const { stdout } = await runInToolRoot(
    toolRoot,
    'veritysetup',
    [
      'format',
      '--hash=sha256',
      `--data-block-size=${BLOCK}`,
      `--hash-block-size=${BLOCK}`,
      `--data-blocks=${dataBlocks}`,
      `--hash-offset=${content.length}`,
      `--salt=${salt}`,
      `--uuid=${uuidFrom(salt)}`,
      '/image',
      '/image',
    ],
    { binds: [{ source: image, target: '/image', writable: true }], signal },
  );
  const rootHash = /^Root hash:\s+([0-9a-f]{64})$/m.exec(stdout)?.[1];
  if (rootHash === undefined) throw new Error(`cannot add dm-verity: veritysetup told no root hash:\n${stdout}`);
  // The superblock fills one block; the tree's top is in the next.
  return { rootHash, salt, dataBlocks, hashStartBlock: dataBlocks + 1, sha256: await fileSha256(image) };
}

/** The first 16 bytes of a hash as a UUID, in reading order. */
export function uuidFrom(hex: string): string {
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20, 32)].join('-');
}
