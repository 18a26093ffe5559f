/** Partition tables of real disks: reading both copies, and writing a changed table so that a power cut loses none. */
import { closeSync, fsyncSync, openSync, readSync, writeSync } from 'node:fs';
import {
  type DecodedGpt,
  decodeGpt,
  encodeGpt,
  type Gpt,
  type GptCopy,
  gptHeadSize,
  gptTailSize,
} from '../formats/gpt.ts';
import { type Disk, listDisks, listPartitions } from '../linux/block.ts';
import type { DiskState } from './data-partition-plan.ts';
import { systemDiskTable } from './system-disk.ts';

/** The disk that the running system was read from, and no other. Throws as {@link systemDiskTable}. */
export function readSystemDisk(systemDisk: string, partitionUuid: string): DiskState {
  const disks = listDisks();
  const gpt = systemDiskTable(
    disks.map((disk) => ({ path: disk.path, table: attemptTable(disk) })),
    systemDisk,
    partitionUuid,
  );
  return { path: systemDisk, gpt, kernelPartitions: listPartitions(systemDisk.slice('/dev/'.length)) };
}

/** The device of a partition, `/dev/vda4`, as the kernel knows it. */
export function partitionPath(diskPath: string, number: number): string {
  const found = listPartitions(diskPath.slice('/dev/'.length)).find((partition) => partition.number === number);
  if (found === undefined) throw new Error(`cannot find partition ${number} of ${diskPath} in /sys`);
  return found.path;
}

function attemptTable(disk: Disk): DecodedGpt | Error {
  try {
    return readTable(disk);
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error));
  }
}

function readTable({ path, sizeBytes, logicalBlockBytes }: Disk): DecodedGpt {
  const fd = openSync(path, 'r');
  try {
    const head = readAt(fd, 0, gptHeadSize(logicalBlockBytes));
    const tailBytes = gptTailSize(logicalBlockBytes);
    const tail = readAt(fd, sizeBytes - tailBytes, tailBytes);
    return decodeGpt({ head, tail, sectorSize: logicalBlockBytes, diskSectors: sizeBytes / logicalBlockBytes });
  } finally {
    closeSync(fd);
  }
}

/** Writes a table, `first` being the copy that is durable before the other is touched. */
export function writeTable(path: string, gpt: Gpt, first: GptCopy): void {
  const fd = openSync(path, 'r+');
  try {
    for (const { offset, bytes } of encodeGpt(gpt, first)) {
      writeAt(fd, offset, bytes);
      fsyncSync(fd);
    }
  } finally {
    closeSync(fd);
  }
}

/** Reads exactly so many bytes. */
export function readAt(fd: number, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let done = 0; done < length; ) {
    const count = readSync(fd, bytes, done, length - done, offset + done);
    if (count === 0) throw new Error(`cannot read ${length} bytes at ${offset}: the device ends at ${offset + done}`);
    done += count;
  }
  return bytes;
}

/** Writes all bytes. */
export function writeAt(fd: number, offset: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, offset + done);
}
