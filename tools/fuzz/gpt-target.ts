/** Partition tables. An input is a header and the first entries; the rest of the disk is zeros. */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { crc32 } from 'node:zlib';
import { decodedOrRefused, dictionaryOf, type FuzzTarget, mustHold } from './fuzz-target.ts';

const sectorSize = 512;
const diskSectors = 4096;
const headerAt = sectorSize;
const entriesAt = 2 * sectorSize;
const entriesBytes = 128 * 128;
/** Of an input: where its entries begin. */
export const gptHeaderBytes = 92;
const tailBytes = entriesBytes + sectorSize;

export const gptTarget: FuzzTarget = {
  name: 'gpt',
  files: ['src/formats/gpt.ts'],
  maxBytes: gptHeaderBytes + 8 * 128,
  campaignExecutions: 30_000,
  dictionary: dictionaryOf('EFI PART', '0x00000100', '0x5c000000', '0x28732ac11ff8d211ba4b00a0c93ec93b'),
  load: async (tree) => {
    const url = pathToFileURL(join(tree, 'src/formats/gpt.ts')).href;
    const { decodeGpt, encodeGpt, encodeGptEvent } = (await import(url)) as typeof import('../../src/formats/gpt.ts');
    const tail = Buffer.alloc(tailBytes);
    return (input) => {
      const head = Buffer.alloc(entriesAt + entriesBytes);
      head.set(input.subarray(0, gptHeaderBytes), headerAt);
      head.set(input.subarray(gptHeaderBytes), entriesAt);
      // As it is: the check sums refuse. Then with true ones, so that what follows is tried too.
      decodedOrRefused(() => decodeGpt({ head, tail, sectorSize, diskSectors }));
      head.writeUInt32LE(crc32(head.subarray(entriesAt)), headerAt + 88);
      head.writeUInt32LE(0, headerAt + 16);
      head.writeUInt32LE(crc32(head.subarray(headerAt, headerAt + 92)), headerAt + 16);
      const table = decodedOrRefused(() => decodeGpt({ head, tail, sectorSize, diskSectors }));
      if (table === undefined) return;
      const sorted = table.partitions.toSorted((a, b) => a.startLba - b.startLba);
      for (const [index, { startLba, endLba }] of sorted.entries()) {
        mustHold(startLba <= endLba && endLba < diskSectors, 'a partition is within the disk');
        mustHold((sorted[index - 1]?.endLba ?? 0) < startLba, 'partitions do not overlap');
      }
      const again = decodedOrRefused(() => encodeGpt(table));
      if (again !== undefined)
        mustHold(encodeGptEvent(table).length === 100 + 128 * sorted.length, 'each is measured once');
    };
  },
};
