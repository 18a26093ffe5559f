/** The partition table of a disk or disk image that an operator names. */
import { open } from 'node:fs/promises';
import { type DecodedGpt, decodeGpt, gptHeadSize, gptTailSize } from '../../src/formats/gpt.ts';

const sectorSize = 512;

/** @throws Error, one sentence, when there is no table of 512-byte sectors. */
export async function readDiskGpt(path: string): Promise<DecodedGpt> {
  try {
    await using file = await open(path, 'r');
    const status = await file.stat();
    if (status.isDirectory()) throw new Error('it is a directory');
    if (!status.isFile()) throw new Error('it is no file; copy the disk, or its image');
    const diskSectors = Math.floor(status.size / sectorSize);
    const part = async (offset: number, length: number): Promise<Uint8Array> => {
      const { bytesRead, buffer } = await file.read(Buffer.alloc(length), 0, length, offset);
      return buffer.subarray(0, bytesRead);
    };
    const tail = gptTailSize(sectorSize);
    if (status.size < gptHeadSize(sectorSize) + tail) throw new Error(`${status.size} bytes hold no partition table`);
    return decodeGpt({
      head: await part(0, gptHeadSize(sectorSize)),
      tail: await part(diskSectors * sectorSize - tail, tail),
      sectorSize,
      diskSectors,
    });
  } catch (error) {
    throw new Error(
      `cannot read the partition table of ${path}: ${error instanceof Error ? error.message : String(error)}`,
      {
        cause: error,
      },
    );
  }
}
