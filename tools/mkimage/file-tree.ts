/**
 * A tree of files as data: what goes into the system partition and the initramfs. It is put together here, judged by
 * tree-rules.ts, and only then written.
 */
import { posix } from 'node:path';
import { decodeElf, type ElfDependencies, isElf } from '../../src/formats/elf.ts';
import { type ImagePackages, type PackageFile, readIndexed } from './image-packages.ts';

export type FileContent =
  | { readonly kind: 'host-file'; readonly hostPath: string }
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array };

export type TreeEntry = {
  /** Absolute. */
  readonly path: string;
  readonly mode: number;
} & (
  | { readonly type: 'directory' }
  | { readonly type: 'link'; readonly target: string }
  | { readonly type: 'device'; readonly major: number; readonly minor: number }
  | {
      readonly type: 'file';
      readonly content: FileContent;
      readonly sha256: string;
      readonly size: number;
      /** A package's name, or `ashlar`. */
      readonly origin: string;
    }
);

export type TreeFile = Extract<TreeEntry, { type: 'file' }>;

const LIBRARY_DIRECTORY = '/usr/lib/x86_64-linux-gnu';

/** What a file asks of the dynamic linker; undefined when it is no ELF file. Each content is read once. */
export type ElfReader = (entry: TreeFile) => Promise<ElfDependencies | undefined>;

export function createElfReader(): ElfReader {
  const known = new Map<string, Promise<ElfDependencies | undefined>>();
  return (entry) => {
    const found =
      known.get(entry.sha256) ?? contentOf(entry).then((bytes) => (isElf(bytes) ? decodeElf(bytes) : undefined));
    known.set(entry.sha256, found);
    return found;
  };
}

/** Collects entries; the same file twice is one, two different files at one path are an error. */
export class FileTree {
  readonly #entries = new Map<string, TreeEntry>();
  readonly #packages: ImagePackages;
  readonly #readElf: ElfReader;

  constructor(packages: ImagePackages, readElf: ElfReader) {
    this.#packages = packages;
    this.#readElf = readElf;
  }

  /** By path, parents first. */
  entries(): TreeEntry[] {
    return [...this.#entries.values()].sort((a, b) => (a.path < b.path ? -1 : 1));
  }

  add(entry: TreeEntry): void {
    const before = this.#entries.get(entry.path);
    if (before !== undefined) {
      if (isSame(before, entry)) return;
      throw new Error(
        `cannot put ${entry.path} into the image twice: once as ${before.type}, once as ${entry.type}, and not the same`,
      );
    }
    this.#addParents(entry.path);
    this.#entries.set(entry.path, entry);
  }

  directory(path: string, mode = 0o755): void {
    if (path !== '/') this.add({ type: 'directory', path, mode });
  }

  link(path: string, target: string): void {
    this.add({ type: 'link', path, target, mode: 0o777 });
  }

  /** @param from path in the package, when it is another than in the image */
  packageFile(path: string, options: { mode?: number; from?: string; package?: string } = {}): TreeFile {
    const from = options.from ?? path;
    const found = this.#packages.find(from);
    if (found === undefined) {
      throw new Error(
        `cannot find ${from}: no locked package has it; name its package in image/packages.json and run: mkimage lock`,
      );
    }
    if (options.package !== undefined && found.package !== options.package) {
      throw new Error(`cannot take ${from} from ${options.package}: ${found.package} has it`);
    }
    const entry = treeFile(path, options.mode ?? (found.mode & 0o111 ? 0o755 : 0o644), found);
    this.add(entry);
    return entry;
  }

  /** Every regular file that a package has below a directory. */
  packageDirectory(path: string, options: { mode: number; package: string }): void {
    const files = this.#packages.below(path).filter((file) => file.package === options.package);
    if (files.length === 0) throw new Error(`cannot find ${path}: ${options.package} has nothing there`);
    for (const file of files) this.add(treeFile(file.path, options.mode, file));
  }

  /** A library by the name that programs ask for, with all that it needs. @param root '' or a service's rootfs */
  async library(name: string, root: string, neededBy: string): Promise<void> {
    const path = `${LIBRARY_DIRECTORY}/${name}`;
    if (this.#entries.has(root + path)) return;
    const found = this.#packages.find(path);
    if (found === undefined) {
      throw new Error(
        `cannot find ${name}, which ${neededBy} needs: no locked package has ${path}; add its package to image/packages.json and run: mkimage lock`,
      );
    }
    // Programs ask for the short name; what Debian's links lead to is not needed under its long one.
    const entry = treeFile(root + path, 0o644, found);
    this.add(entry);
    await this.#needs(entry, root);
  }

  /** Adds what the ELF files among the entries below `root` need. */
  async closeOverLibraries(root = ''): Promise<void> {
    for (const entry of this.entries()) {
      const inRoot = entry.path.startsWith(`${root}/`) && (root !== '' || !entry.path.startsWith('/services/'));
      if (inRoot && entry.type === 'file' && (entry.mode & 0o111) !== 0) await this.#needs(entry, root);
    }
  }

  async #needs(entry: TreeFile, root: string): Promise<void> {
    const elf = await this.#readElf(entry);
    if (elf === undefined) return;
    const { interpreter, needed } = elf;
    if (interpreter !== undefined) this.#interpreter(interpreter, root);
    for (const name of needed) {
      // The dynamic linker is in memory by then; it knows itself by this name.
      if (!name.startsWith('ld-linux')) await this.library(name, root, entry.path);
    }
  }

  #interpreter(path: string, root: string): void {
    const found = this.#packages.find(path);
    if (found === undefined)
      throw new Error(`cannot find the dynamic linker ${path}: libc6 is not among the locked packages`);
    this.add(treeFile(root + path.replace(/^\/lib64\//, '/usr/lib64/'), 0o755, found));
  }

  #addParents(path: string): void {
    const parent = posix.dirname(path);
    if (parent === '/' || this.#entries.has(parent)) return;
    this.directory(parent);
  }
}

export async function contentOf(entry: TreeFile): Promise<Uint8Array> {
  const { content, path, sha256 } = entry;
  return content.kind === 'bytes' ? content.bytes : readIndexed({ path, sha256, hostPath: content.hostPath });
}

function treeFile(path: string, mode: number, file: PackageFile): TreeFile {
  return {
    type: 'file',
    path,
    mode,
    content: { kind: 'host-file', hostPath: file.hostPath },
    sha256: file.sha256,
    size: file.size,
    origin: file.package,
  };
}

function isSame(a: TreeEntry, b: TreeEntry): boolean {
  if (a.type !== b.type || a.mode !== b.mode) return false;
  if (a.type === 'file' && b.type === 'file') return a.sha256 === b.sha256;
  if (a.type === 'link' && b.type === 'link') return a.target === b.target;
  return a.type === 'directory';
}
