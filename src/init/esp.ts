/** The EFI system partition of the disk that the system came from: untrusted, mounted read-only for a moment. */
import { open } from 'node:fs/promises';
import { listPartitions } from '../linux/block.ts';
import { isErrno } from '../linux/libc.ts';
import { MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, mount, unmount } from '../linux/mount.ts';
import type { Logger } from '../supervisor/log-store.ts';

/** The ESP is the first partition (docs/architecture.md). */
const ESP_NUMBER = 1;
const ESP_MOUNT = '/efi';

/** Calls `use` with the mount point; null when there is no ESP or it cannot be mounted, which is logged. */
export async function withEsp<T>(disk: string, log: Logger, use: (directory: string) => Promise<T>): Promise<T | null> {
  const esp = listPartitions(disk).find(({ number }) => number === ESP_NUMBER);
  if (esp === undefined) return null;
  const flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
  try {
    mount({ source: esp.path, target: ESP_MOUNT, type: 'vfat', flags });
  } catch (error) {
    log.warning(`cannot look at the ESP ${esp.path}: ${String(error)}`);
    return null;
  }
  try {
    return await use(ESP_MOUNT);
  } finally {
    unmount(ESP_MOUNT);
  }
}

/** A file's content, cut after `maxBytes` and at most 64 KiB more; null when there is no such file. */
export async function readLimited(path: string, maxBytes: number): Promise<Buffer | null> {
  try {
    await using file = await open(path, 'r');
    const chunks: Buffer[] = [];
    for (let length = 0; length < maxBytes; ) {
      const chunk = Buffer.alloc(64 * 1024);
      const { bytesRead } = await file.read(chunk, 0, chunk.length, null);
      if (bytesRead === 0) break;
      chunks.push(chunk.subarray(0, bytesRead));
      length += bytesRead;
    }
    return Buffer.concat(chunks);
  } catch (error) {
    if (isErrno(error, 'ENOENT', 'ENOTDIR')) return null;
    throw error;
  }
}
