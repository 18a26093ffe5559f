/** Where partitions lie on a disk, for tests that put a fault at a place and oracles that look at one part. */
import { open } from 'node:fs/promises';
import { decodeGpt, type Gpt, type GptPartition, gptHeadSize, gptTailSize } from '../../src/formats/gpt.ts';

const SECTOR = 512;

export interface PartitionExtent extends GptPartition {
  readonly offset: number;
  readonly sizeBytes: number;
}

/** Partitions of a raw disk image, by name. */
export async function readPartitions(path: string): Promise<Map<string, PartitionExtent>> {
  return byName((await readRawTable(path)).partitions);
}

/** The partition table of a raw disk image. */
export async function readRawTable(path: string): Promise<Gpt> {
  await using file = await open(path, 'r');
  const { size } = await file.stat();
  const head = Buffer.alloc(gptHeadSize(SECTOR));
  const tail = Buffer.alloc(gptTailSize(SECTOR));
  await file.read(head, 0, head.length, 0);
  await file.read(tail, 0, tail.length, size - tail.length);
  return decodeGpt({ head, tail, sectorSize: SECTOR, diskSectors: Math.floor(size / SECTOR) });
}

/** Partitions of a machine's disk; `read` reads bytes from it. */
export async function readPartitionsWith(
  read: (offset: number, length: number) => Promise<Uint8Array>,
  sizeBytes: number,
): Promise<Map<string, PartitionExtent>> {
  const head = await read(0, gptHeadSize(SECTOR));
  const tail = await read(sizeBytes - gptTailSize(SECTOR), gptTailSize(SECTOR));
  return byName(decodeGpt({ head, tail, sectorSize: SECTOR, diskSectors: sizeBytes / SECTOR }).partitions);
}

function byName(partitions: readonly GptPartition[]): Map<string, PartitionExtent> {
  return new Map(
    partitions.map((partition) => [
      partition.name,
      {
        ...partition,
        offset: partition.startLba * SECTOR,
        sizeBytes: (partition.endLba - partition.startLba + 1) * SECTOR,
      },
    ]),
  );
}

/** The extent called `name`. @throws Error that lists what there is */
export function partitionNamed(partitions: ReadonlyMap<string, PartitionExtent>, name: string): PartitionExtent {
  const found = partitions.get(name);
  if (found === undefined)
    throw new Error(`cannot find partition ${name}: there are ${[...partitions.keys()].join(', ')}`);
  return found;
}

/** Copies a partition of a raw image, or its first bytes, to a file of its own. */
export async function extractPartition(
  imagePath: string,
  partition: PartitionExtent,
  targetPath: string,
  lengthBytes = partition.sizeBytes,
): Promise<void> {
  await using image = await open(imagePath, 'r');
  await using target = await open(targetPath, 'w');
  const buffer = Buffer.alloc(4 << 20);
  await target.truncate(lengthBytes);
  for (let done = 0; done < lengthBytes; ) {
    const wanted = Math.min(buffer.length, lengthBytes - done);
    const { bytesRead } = await image.read(buffer, 0, wanted, partition.offset + done);
    if (bytesRead === 0) throw new Error(`cannot read partition ${partition.name}: the image ends in it`);
    const chunk = buffer.subarray(0, bytesRead);
    if (!isZero(chunk)) await target.write(chunk, 0, bytesRead, done);
    done += bytesRead;
  }
}

function isZero(bytes: Buffer): boolean {
  return bytes.every((byte) => byte === 0);
}
