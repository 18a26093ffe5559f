/** The ext4 file system in the data volume: made once, checked after an unclean stop, mounted without setuid, devices or programs. */
import { closeSync, openSync } from 'node:fs';
import { MS_NOATIME, MS_NODEV, MS_NOEXEC, MS_NOSUID, mount } from '../linux/mount.ts';
import { readAt } from './partition-table.ts';

/** Runs a program to its end. PID 1's worker must not spawn, so whoever calls this flow brings the way to do it. */
export type RunProgram = (
  program: string,
  args: readonly string[],
) => Promise<{
  /** null when a signal ended it. */
  readonly code: number | null;
  /** What it wrote, standard output and error, bounded. */
  readonly output: string;
}>;

export const MKFS = '/usr/sbin/mkfs.ext4';
export const FSCK = '/usr/sbin/e2fsck';

const SUPERBLOCK_OFFSET = 1024;
const SUPERBLOCK_BYTES = 1024;
const EXT4_MAGIC = 0xef53;
const STATE_CLEAN = 0x1;
const STATE_ERRORS = 0x2;
const FEATURE_NEEDS_RECOVERY = 0x4;
/** e2fsck(8): errors were corrected, the system should be restarted (it was not mounted, so need not). */
const FSCK_ACCEPTABLE = 1 | 2;

/** Makes the file system; what the device holds is lost. Inode tables and journal are zeroed later, in the background. */
export async function makeDataFilesystem(device: string, run: RunProgram): Promise<void> {
  const options = ['-q', '-F', '-m', '0', '-b', '4096', '-L', 'DATA', '-e', 'remount-ro'];
  const extended = ['-E', 'lazy_itable_init=1,lazy_journal_init=1,nodiscard'];
  const { code, output } = await run(MKFS, [...options, ...extended, device]);
  if (code !== 0) throw new Error(`cannot make the file system on ${device}: mkfs.ext4 ended with ${code}: ${output}`);
}

/** A file system that an automatic check could not repair. */
export class FilesystemDamagedError extends Error {
  override readonly name = 'FilesystemDamagedError';
}

/**
 * Checks the file system when it was not left clean.
 *
 * @returns what e2fsck said, undefined when nothing was checked. Throws `FilesystemDamagedError`.
 */
export async function checkDataFilesystem(device: string, run: RunProgram): Promise<string | undefined> {
  const fd = openSync(device, 'r');
  try {
    if (!needsCheck(readAt(fd, SUPERBLOCK_OFFSET, SUPERBLOCK_BYTES))) return undefined;
  } finally {
    closeSync(fd);
  }
  const { code, output } = await run(FSCK, ['-p', device]);
  if (code === null || (code & ~FSCK_ACCEPTABLE) !== 0) {
    throw new FilesystemDamagedError(
      `the file system of the data partition is damaged and e2fsck -p did not repair it (${code}): ${output}`,
    );
  }
  return output;
}

/** True for anything but an ext4 superblock that was left clean, without errors and with an empty journal. */
export function needsCheck(superblock: Uint8Array): boolean {
  const view = new DataView(superblock.buffer, superblock.byteOffset, superblock.byteLength);
  const state = view.getUint16(0x3a, true);
  const isClean = (state & STATE_CLEAN) !== 0 && (state & STATE_ERRORS) === 0;
  const needsRecovery = (view.getUint32(0x60, true) & FEATURE_NEEDS_RECOVERY) !== 0;
  return view.getUint16(0x38, true) !== EXT4_MAGIC || !isClean || needsRecovery;
}

export function mountData(device: string, target: string): void {
  mount({
    source: device,
    target,
    type: 'ext4',
    flags: MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME,
    data: 'errors=remount-ro',
  });
}
