/**
 * The initramfs, as three members one after another, which the kernel unpacks in turn:
 *
 *     1. microcode, uncompressed: the kernel looks for it before it can decompress anything
 *     2. the executable and its libraries: 120 MB that change only with Node or Debian; compressed hard, kept in the cache
 *     3. our bundle and the description of the system partition: small, made anew with each change
 */
import { createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { type CpioEntry, encodeCpio } from '../../src/formats/cpio.ts';
import { cachedFile, inputHash } from '../host/cache.ts';
import type { Progress } from '../host/progress.ts';
import { contentOf, type ElfReader, FileTree, type TreeEntry } from './file-tree.ts';
import { addManifest, type BuiltFiles, readImageManifest } from './image-manifest.ts';
import type { ImagePackages } from './image-packages.ts';
import { type Microcode, readMicrocode } from './microcode.ts';
import { addMergedUsr } from './system-tree.ts';
import { runInToolRoot, type ToolRoot } from './tool-root.ts';
import { checkTree } from './tree-rules.ts';

export interface Initramfs {
  bytes: Buffer;
  entries: TreeEntry[];
}

// The kernel keeps a window's worth of memory while it unpacks: 32 MiB is what a node with 512 MB can spare. Level 22
// gains 0.3 %, in a third more time. zstd's output is the same for every number of threads.
const ZSTD = ['-19', '--zstd=wlog=25', '--no-progress', '--quiet', '--force'] as const;

export async function buildInitramfs(options: {
  packages: ImagePackages;
  toolRoot: ToolRoot;
  built: BuiltFiles;
  readElf: ElfReader;
  progress: Progress;
  signal?: AbortSignal | undefined;
}): Promise<Initramfs> {
  const { packages, toolRoot, built, readElf, progress, signal } = options;
  const manifest = await readImageManifest('initramfs');
  const constant = new FileTree(packages, readElf);
  addMergedUsr(constant, '');
  await addManifest(constant, manifest, built, 'constant');
  const ours = new FileTree(packages, readElf);
  await addManifest(ours, manifest, built, 'ours');

  const constantEntries = constant.entries();
  const known = new Set(constantEntries.map(({ path }) => path));
  // A member needs no directory that an earlier one has made.
  const ourEntries = ours.entries().filter(({ path }) => !known.has(path));
  const entries = [...constantEntries, ...ourEntries];
  await checkTree('initramfs', entries, readElf);

  const microcodeFiles = microcodeEntries(await readMicrocode(packages));
  const microcode = encodeAll(await Promise.all(microcodeFiles.map(cpioEntry)));
  const constantKey = inputHash('initramfs-1', toolRoot.key, ...ZSTD, describe(constantEntries));
  const constantFile = await cachedFile(
    'objects',
    `initramfs-${constantKey.slice(0, 32)}`,
    (temporary) =>
      progress.step('initramfs: compress', () =>
        writeCompressed(toolRoot, constantEntries, new Set(), temporary, signal),
      ),
    { signal, isChecked: true },
  );
  const oursKey = inputHash('initramfs-1', toolRoot.key, ...ZSTD, describe(ourEntries));
  const oursFile = await cachedFile(
    'objects',
    `initramfs-${oursKey.slice(0, 32)}`,
    (temporary) => writeCompressed(toolRoot, ourEntries, known, temporary, signal),
    { signal, isChecked: true },
  );
  const members = [microcode, await readFile(constantFile), await readFile(oursFile)];
  return { bytes: Buffer.concat(members.map(padTo4)), entries: [...microcodeFiles, ...entries] };
}

async function writeCompressed(
  toolRoot: ToolRoot,
  entries: readonly TreeEntry[],
  known: ReadonlySet<string>,
  output: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'ashlar-initramfs-'));
  try {
    await writeArchive(join(directory, 'archive'), entries, known);
    await writeFile(output, '');
    await runInToolRoot(toolRoot, 'zstd', [...ZSTD, `-T${availableParallelism()}`, '/in/archive', '-o', '/out'], {
      binds: [
        { source: directory, target: '/in' },
        { source: output, target: '/out', writable: true },
      ],
      signal,
    });
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** @param known directories of earlier members, which the archive's writer wants to see again */
async function writeArchive(path: string, entries: readonly TreeEntry[], known: ReadonlySet<string>): Promise<void> {
  const parents = new Set<string>();
  for (const entry of entries) {
    for (let at = entry.path.lastIndexOf('/'); at > 0; at = entry.path.lastIndexOf('/', at - 1)) {
      const parent = entry.path.slice(0, at);
      if (known.has(parent)) parents.add(parent);
    }
  }
  const again = [...parents].map((parent): CpioEntry => ({ path: parent.slice(1), mode: 0o755, type: 'directory' }));
  const archive = encodeCpio([...again, ...(await Promise.all(entries.map(cpioEntry)))]);
  await pipeline(Readable.from(archive), createWriteStream(path));
}

async function cpioEntry(entry: TreeEntry): Promise<CpioEntry> {
  const { mode } = entry;
  const path = entry.path.slice(1);
  switch (entry.type) {
    case 'file':
      return { path, mode, type: 'file', data: await contentOf(entry) };
    case 'link':
      return { path, mode, type: 'symlink', target: entry.target };
    case 'device':
      return { path, mode, type: 'character-device', major: entry.major, minor: entry.minor };
    case 'directory':
      return { path, mode, type: 'directory' };
  }
}

function microcodeEntries(files: readonly Microcode[]): TreeEntry[] {
  const directories = ['/kernel', '/kernel/x86', '/kernel/x86/microcode'];
  return [
    ...directories.map((path): TreeEntry => ({ path, mode: 0o755, type: 'directory' })),
    ...files.map(
      ({ name, data, origin }): TreeEntry => ({
        path: `/kernel/x86/microcode/${name}`,
        mode: 0o644,
        type: 'file',
        content: { kind: 'bytes', bytes: data },
        sha256: createHash('sha256').update(data).digest('hex'),
        size: data.length,
        origin,
      }),
    ),
  ];
}

function encodeAll(entries: readonly CpioEntry[]): Buffer {
  return Buffer.concat([...encodeCpio(entries)]);
}

/** The kernel skips zeros between members and wants each to begin at a multiple of four. */
function padTo4(bytes: Buffer): Buffer {
  const padding = (4 - (bytes.length % 4)) % 4;
  return padding === 0 ? bytes : Buffer.concat([bytes, Buffer.alloc(padding)]);
}

/** Everything that a tree's bytes depend on. */
export function describe(entries: readonly TreeEntry[]): string {
  return JSON.stringify(entries.map((entry) => (entry.type === 'file' ? { ...entry, content: undefined } : entry)));
}
