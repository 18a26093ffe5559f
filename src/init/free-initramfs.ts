/** The initramfs lives in memory until its files are unlinked; the running program stays mapped until execve. */
import { type Dirent, lstatSync, readdirSync, statfsSync, unlinkSync } from 'node:fs';
import { join } from 'node:path';

const RAMFS_MAGIC = 0x858458f6;
const TMPFS_MAGIC = 0x01021994;

/**
 * Unlinks every file below `root` on its own file system. Refuses when that is not a file system in memory: this must
 * never meet a disk.
 */
export function freeInitramfs(root: string, except: string): void {
  const { type } = statfsSync(root);
  if (type !== RAMFS_MAGIC && type !== TMPFS_MAGIC)
    throw new Error(`cannot free ${root}: its file system (0x${type.toString(16)}) is not in memory`);
  freeBelow(root, lstatSync(root).dev, except);
}

function freeBelow(directory: string, device: number, except: string): void {
  for (const entry of readdirSync(directory, { withFileTypes: true }) satisfies Dirent[]) {
    const path = join(directory, entry.name);
    if (path === except || lstatSync(path).dev !== device) continue;
    if (entry.isDirectory()) freeBelow(path, device, except);
    else unlinkSync(path);
  }
}
