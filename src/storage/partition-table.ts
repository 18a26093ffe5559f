/** Partition tables of real disks: reading both copies, and writing a changed table so that a power cut loses none. */
import { closeSync, fsyncSync, openSync, readSync, writeSync } from 'node:fs';
import { decodeGpt, encodeGpt, type Gpt, type GptPartition, gptHeadSize, gptTailSize } from '../formats/gpt.ts';
import { type Disk, listDisks, listPartitions } from '../linux/block.ts';
import type { DiskState } from './data-partition-plan.ts';

/** The disk with the partition of that PARTUUID. Throws when no disk has it, with what each disk has instead. */
export function findDiskWithPartition(partitionUuid: string): DiskState {
  const findings: string[] = [];
  for (const disk of listDisks()) {
    try {
      const gpt = readTable(disk);
      if (gpt.partitions.some(({ uniqueGuid }: GptPartition) => uniqueGuid === partitionUuid)) {
        return { path: disk.path, gpt, kernelPartitions: listPartitions(disk.name) };
      }
      findings.push(`${disk.name}: no partition with it`);
    } catch (error) {
      findings.push(`${disk.name}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
  const seen = findings.join('; ') || 'the machine has no disk';
  throw new Error(`cannot find the disk with system partition ${partitionUuid} (${seen})`);
}

function readTable({ path, sizeBytes, logicalBlockBytes }: Disk): ReturnType<typeof decodeGpt> {
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

/** Writes a table, each copy durable before the next is touched. */
export function writeTable(path: string, gpt: Gpt): void {
  const fd = openSync(path, 'r+');
  try {
    for (const { offset, bytes } of encodeGpt(gpt)) {
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
