/** Block devices as the kernel shows them: /sys/block, and the ioctls of linux/fs.h and linux/blkpg.h. */
import { closeSync, openSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ioctl } from './ioctl.ts';
import { addressOf } from './libc.ts';

const BLKGETSIZE64 = 0x80081272;
const BLKPG = 0x1269;
const BLKPG_ADD_PARTITION = 1;
const BLKPG_RESIZE_PARTITION = 3;
/** /sys counts in units of 512 bytes whatever the device's own block is. */
const SYSFS_SECTOR_BYTES = 512;

export interface Disk {
  /** Kernel name, `vda`. */
  readonly name: string;
  /** `/dev/vda`. */
  readonly path: string;
  readonly sizeBytes: number;
  readonly logicalBlockBytes: number;
  readonly readOnly: boolean;
  readonly removable: boolean;
}

export interface DiskPartition {
  /** Kernel name, `vda2`. */
  readonly name: string;
  readonly path: string;
  /** 1-based, as in the partition table. */
  readonly number: number;
  readonly startBytes: number;
  readonly sizeBytes: number;
}

/** Size of an open block device in bytes. */
export function blockDeviceSizeBytes(fd: number): number {
  const size = Buffer.alloc(8);
  ioctl(fd, BLKGETSIZE64, size);
  return Number(size.readBigUInt64LE());
}

/** The machine's disks that have a medium, without loop, RAM, optical and mapped devices. Sorted by name. */
export function listDisks(sysfs = '/sys'): Disk[] {
  const disks: Disk[] = [];
  for (const name of readdirSync(join(sysfs, 'block')).sort()) {
    if (/^(loop|ram|zram|dm-|md|sr|fd|nbd)/.test(name)) continue;
    const directory = join(sysfs, 'block', name);
    const sizeBytes = readNumber(join(directory, 'size')) * SYSFS_SECTOR_BYTES;
    if (sizeBytes === 0) continue;
    disks.push({
      name,
      path: `/dev/${name}`,
      sizeBytes,
      logicalBlockBytes: readNumber(join(directory, 'queue/logical_block_size')),
      readOnly: readNumber(join(directory, 'ro')) === 1,
      removable: readNumber(join(directory, 'removable')) === 1,
    });
  }
  return disks;
}

/** The partitions the kernel knows on a disk, by number. */
export function listPartitions(diskName: string, sysfs = '/sys'): DiskPartition[] {
  const directory = join(sysfs, 'block', diskName);
  const partitions: DiskPartition[] = [];
  for (const name of readdirSync(directory)) {
    if (!name.startsWith(diskName)) continue;
    partitions.push({
      name,
      path: `/dev/${name}`,
      number: readNumber(join(directory, name, 'partition')),
      startBytes: readNumber(join(directory, name, 'start')) * SYSFS_SECTOR_BYTES,
      sizeBytes: readNumber(join(directory, name, 'size')) * SYSFS_SECTOR_BYTES,
    });
  }
  return partitions.sort((a, b) => a.number - b.number);
}

/**
 * Tells the kernel of a partition that was just written to the table, while others of the disk are in use (re-reading
 * the table, BLKRRPART, refuses that with EBUSY). devtmpfs makes its node at once. Throws `LinuxError` (`EBUSY`: the
 * number or the range is taken).
 */
export function addPartition(
  diskPath: string,
  partition: { readonly number: number; readonly startBytes: number; readonly sizeBytes: number },
): void {
  changePartition(diskPath, BLKPG_ADD_PARTITION, partition);
}

/** Tells the kernel that a partition has grown or shrunk; its start stays. */
export function resizePartition(
  diskPath: string,
  partition: { readonly number: number; readonly startBytes: number; readonly sizeBytes: number },
): void {
  changePartition(diskPath, BLKPG_RESIZE_PARTITION, partition);
}

function changePartition(
  diskPath: string,
  operation: number,
  { number, startBytes, sizeBytes }: { number: number; startBytes: number; sizeBytes: number },
): void {
  // struct blkpg_partition { s64 start; s64 length; int pno; char devname[64]; char volname[64]; }, names unused.
  const partition = Buffer.alloc(152);
  partition.writeBigInt64LE(BigInt(startBytes), 0);
  partition.writeBigInt64LE(BigInt(sizeBytes), 8);
  partition.writeInt32LE(number, 16);
  // struct blkpg_ioctl_arg { int op; int flags; int datalen; void *data; }
  const argument = Buffer.alloc(24);
  argument.writeInt32LE(operation, 0);
  argument.writeInt32LE(partition.length, 8);
  argument.writeBigUInt64LE(addressOf(partition), 16);
  const fd = openSync(diskPath, 'r');
  try {
    ioctl(fd, BLKPG, argument);
  } finally {
    closeSync(fd);
  }
}

function readNumber(path: string): number {
  return Number(readFileSync(path, 'ascii').trim());
}
