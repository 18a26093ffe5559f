/** Finding the partition that the UKI belongs to: the one whose PARTUUID is the start of the root hash. */
import { open } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { decodeGpt, gptHeadSize, gptTailSize } from '../formats/gpt.ts';
import { blockDeviceSizeBytes, type Disk, listDisks, listPartitions } from '../linux/block.ts';

const POLL_MS = 50;

export interface SystemPartition {
  /** `/dev/vda2` */
  readonly path: string;
  readonly disk: Disk;
  /** The name in the partition table, `SYSTEM-A`. */
  readonly name: string;
}

/**
 * Waits until a disk with that partition is there. Rejects after `deadlineMs` with what was found instead: drivers probe
 * on their own time, and a disk that is missing then is missing for good.
 */
export async function findSystemPartition(partitionUuid: string, deadlineMs: number): Promise<SystemPartition> {
  const startMs = performance.now();
  const seen = new Map<string, string>();
  for (;;) {
    for (const disk of listDisks()) {
      // A table does not change under us in stage 1, so each disk is read once.
      if (seen.has(disk.name)) continue;
      try {
        const found = await findOnDisk(disk, partitionUuid);
        if (found !== null) return found;
        seen.set(disk.name, 'no partition with it');
      } catch (error) {
        seen.set(disk.name, error instanceof Error ? error.message : String(error));
      }
    }
    if (performance.now() - startMs > deadlineMs) {
      const disks = [...seen].map(([name, finding]) => `${name}: ${finding}`).join('; ') || 'the machine has no disk';
      throw new Error(`cannot find the system partition ${partitionUuid} within ${deadlineMs / 1000} s (${disks})`);
    }
    await sleep(POLL_MS);
  }
}

async function findOnDisk(disk: Disk, partitionUuid: string): Promise<SystemPartition | null> {
  await using file = await open(disk.path, 'r');
  const sizeBytes = blockDeviceSizeBytes(file.fd);
  const sectorSize = disk.logicalBlockBytes;
  const head = Buffer.alloc(gptHeadSize(sectorSize));
  const tail = Buffer.alloc(gptTailSize(sectorSize));
  if (sizeBytes < head.length + tail.length) return null;
  await file.read(head, 0, head.length, 0);
  await file.read(tail, 0, tail.length, sizeBytes - tail.length);
  const gpt = decodeGpt({ head, tail, sectorSize, diskSectors: sizeBytes / sectorSize });
  const entry = gpt.partitions.find(({ uniqueGuid }) => uniqueGuid === partitionUuid);
  if (entry === undefined) return null;
  const device = listPartitions(disk.name).find(({ number }) => number === entry.number);
  if (device === undefined || device.startBytes !== entry.startLba * sectorSize)
    throw new Error(`the kernel does not show partition ${entry.number} where the table has it`);
  return { path: device.path, disk, name: entry.name };
}
