/**
 * GUID partition tables (UEFI specification §5.3). Everything is a pure function from bytes to a table and from a table
 * to writes: change a table with {@link relocateGpt}, {@link addPartition} or {@link setPartitionAttribute}, then apply
 * the writes of {@link encodeGpt} in their order.
 *
 * ```
 * LBA 0              1        2 …           first usable … last usable        …             last
 * | protective MBR | header | entries |          partitions          | entries | backup header |
 * ```
 */
import { crc32 } from 'node:zlib';
import { ByteReader, FormatError } from './byte-reader.ts';
import { decodeGuid, encodeGuid } from './guid.ts';

export interface GptPartition {
  /** Position in the table, from 1: what the kernel appends to the disk's name. */
  readonly number: number;
  readonly typeGuid: string;
  readonly uniqueGuid: string;
  /** At most 36 UTF-16 units. */
  readonly name: string;
  readonly startLba: number;
  /** The last sector that belongs to the partition. */
  readonly endLba: number;
  readonly attributes: bigint;
}

export interface Gpt {
  readonly diskGuid: string;
  /** 512 or 4096. */
  readonly sectorSize: number;
  readonly diskSectors: number;
  /** In ascending order of number. */
  readonly partitions: readonly GptPartition[];
}

export type GptCopy = 'primary' | 'backup';

/** A table as found on a disk. */
export interface DecodedGpt extends Gpt {
  /** The copy that counts: the primary, unless only the backup is whole. */
  readonly source: GptCopy;
  /** The partitions of the other copy, when it is whole too; otherwise none. */
  readonly otherPartitions: readonly GptPartition[];
  /** True when both copies are whole, agree, and the backup lies in the disk's last sector. */
  readonly isConsistent: boolean;
}

export interface DiskWrite {
  /** In bytes. */
  readonly offset: number;
  readonly bytes: Uint8Array;
}

const format = 'GPT';
const signature = Buffer.from('EFI PART', 'latin1');
const revision = 0x0001_0000;
const headerSize = 92;
const entrySize = 128;
const entryCount = 128;
const entriesSize = entrySize * entryCount;
const maxNameUnits = 36;

/** Bytes to read from the start of a disk for {@link decodeGpt}: MBR, header and entries. */
export const gptHeadSize = (sectorSize: number): number => 2 * sectorSize + entriesSize;
/** Bytes to read from the end of a disk: entries and header. */
export const gptTailSize = (sectorSize: number): number => entriesSize + sectorSize;

/** Sectors that partitions may use. */
export function usableLbas(disk: { sectorSize: number; diskSectors: number }): { first: number; last: number } {
  return {
    first: gptHeadSize(disk.sectorSize) / disk.sectorSize,
    last: disk.diskSectors - 1 - gptTailSize(disk.sectorSize) / disk.sectorSize,
  };
}

/**
 * The two writes that make a table: MBR and primary at the start of the disk, the backup at its end. As long as the copy
 * that is written second is whole before, one copy on the disk is whole at every moment, so a power cut between or inside
 * the writes loses nothing.
 *
 * @param first the copy to write first: a damaged one if there is one
 * @throws RangeError when partitions overlap, leave the disk, or repeat a number or GUID.
 */
export function encodeGpt(gpt: Gpt, first: GptCopy = 'backup'): DiskWrite[] {
  checkTable(gpt);
  const { sectorSize, diskSectors } = gpt;
  const entries = encodeEntries(gpt.partitions);
  const lastLba = diskSectors - 1;
  const backupEntriesLba = diskSectors - gptTailSize(sectorSize) / sectorSize;
  const head = new Uint8Array(gptHeadSize(sectorSize));
  head.set(encodeProtectiveMbr(diskSectors));
  head.set(encodeHeader(gpt, entries, { own: 1, alternate: lastLba, entries: 2 }), sectorSize);
  head.set(entries, 2 * sectorSize);
  const tail = new Uint8Array(gptTailSize(sectorSize));
  tail.set(entries);
  tail.set(encodeHeader(gpt, entries, { own: lastLba, alternate: 1, entries: backupEntriesLba }), entriesSize);
  const backup = { offset: backupEntriesLba * sectorSize, bytes: tail };
  const primary = { offset: 0, bytes: head };
  return first === 'backup' ? [backup, primary] : [primary, backup];
}

/** The same table for a disk that has grown (or a copy on a larger one): the backup moves to the new end. */
export function relocateGpt(gpt: Gpt, diskSectors: number): Gpt {
  const { diskGuid, sectorSize, partitions } = gpt;
  const moved = { diskGuid, sectorSize, diskSectors, partitions };
  checkTable(moved);
  return moved;
}

/** The table with one more partition. */
export function addPartition(gpt: Gpt, partition: GptPartition): Gpt {
  const partitions = [...gpt.partitions, partition].toSorted((a, b) => a.number - b.number);
  const { diskGuid, sectorSize, diskSectors } = gpt;
  const added = { diskGuid, sectorSize, diskSectors, partitions };
  checkTable(added);
  return added;
}

/** The table with one attribute bit (0–63) of one partition set or cleared. */
export function setPartitionAttribute(gpt: Gpt, number: number, bit: number, value: boolean): Gpt {
  if (!Number.isInteger(bit) || bit < 0 || bit > 63)
    throw new RangeError(`cannot set GPT attribute: bit ${bit} is not 0 to 63`);
  if (!gpt.partitions.some((partition) => partition.number === number)) {
    throw new RangeError(`cannot set GPT attribute: there is no partition ${number}`);
  }
  const mask = 1n << BigInt(bit);
  const partitions = gpt.partitions.map((partition) =>
    partition.number === number
      ? { ...partition, attributes: value ? partition.attributes | mask : partition.attributes & ~mask }
      : partition,
  );
  const { diskGuid, sectorSize, diskSectors } = gpt;
  return { diskGuid, sectorSize, diskSectors, partitions };
}

/**
 * Reads a table from the start and the end of a disk. The primary copy counts; the backup stands in when the primary is
 * damaged. On a disk that has grown the backup is not at the end: then `isConsistent` is false.
 *
 * @param disk `head`: the first {@link gptHeadSize} bytes; `tail`: the last {@link gptTailSize} bytes.
 * @throws FormatError when neither copy is whole. The message is about the primary.
 */
export function decodeGpt(disk: {
  head: Uint8Array;
  tail: Uint8Array;
  sectorSize: number;
  diskSectors: number;
}): DecodedGpt {
  const { head, tail, sectorSize, diskSectors } = disk;
  if (sectorSize !== 512 && sectorSize !== 4096)
    throw new RangeError(`cannot decode GPT: sector size ${sectorSize} is not 512 or 4096`);
  const attempt = (isPrimary: boolean): Copy | FormatError => {
    try {
      return isPrimary
        ? decodeCopy({
            header: head,
            headerAt: sectorSize,
            entries: head,
            entriesAt: 2 * sectorSize,
            ownLba: 1,
            base: 0,
            disk,
          })
        : decodeCopy({
            header: tail,
            headerAt: tail.length - sectorSize,
            entries: tail,
            entriesAt: 0,
            ownLba: diskSectors - 1,
            base: diskSectors * sectorSize - tail.length,
            disk,
          });
    } catch (error) {
      if (error instanceof FormatError) return error;
      throw error;
    }
  };
  const primary = attempt(true);
  const backup = attempt(false);
  const table = primary instanceof FormatError ? backup : primary;
  // Both are damaged: the primary's fault is the one to tell.
  if (table instanceof FormatError) throw primary instanceof FormatError ? primary : table;
  const isSame =
    !(primary instanceof FormatError) &&
    !(backup instanceof FormatError) &&
    primary.alternateLba === diskSectors - 1 &&
    primary.diskGuid === backup.diskGuid &&
    primary.entriesCrc === backup.entriesCrc;
  const { diskGuid, partitions } = table;
  const other = table === primary ? backup : primary;
  return {
    diskGuid,
    sectorSize,
    diskSectors,
    partitions,
    source: table === primary ? 'primary' : 'backup',
    otherPartitions: other instanceof FormatError ? [] : other.partitions,
    isConsistent: isSame,
  };
}

/** PCR 5's EV_EFI_GPT_EVENT data: header, count and used entries of the primary copy (TCG PC Client §9.4.1). */
export function encodeGptEvent(gpt: Gpt): Uint8Array {
  const head = encodeGpt(gpt, 'primary')[0]?.bytes ?? new Uint8Array(0);
  const count = Buffer.alloc(8);
  count.writeBigUInt64LE(BigInt(gpt.partitions.length));
  const entries = gpt.partitions.map(({ number }) => {
    const at = 2 * gpt.sectorSize + (number - 1) * entrySize;
    return head.subarray(at, at + entrySize);
  });
  return Buffer.concat([head.subarray(gpt.sectorSize, gpt.sectorSize + headerSize), count, ...entries]);
}

function checkTable(gpt: Gpt): void {
  const refuse = (reason: string): never => {
    throw new RangeError(`cannot encode GPT: ${reason}`);
  };
  if (gpt.sectorSize !== 512 && gpt.sectorSize !== 4096) refuse(`sector size ${gpt.sectorSize} is not 512 or 4096`);
  const usable = usableLbas(gpt);
  if (!Number.isSafeInteger(gpt.diskSectors * gpt.sectorSize) || usable.last < usable.first) {
    refuse(`a disk of ${gpt.diskSectors} sectors has no room for the table`);
  }
  const seen = new Set<string | number>();
  for (const { number, uniqueGuid, name, startLba, endLba } of gpt.partitions) {
    const label = `partition ${number} (${name})`;
    if (!Number.isInteger(number) || number < 1 || number > entryCount)
      refuse(`${label}: the number is not 1 to ${entryCount}`);
    if (seen.has(number)) refuse(`${label}: the number is taken`);
    if (seen.has(uniqueGuid.toLowerCase())) refuse(`${label}: GUID ${uniqueGuid} is taken`);
    seen.add(number).add(uniqueGuid.toLowerCase());
    if (name.length > maxNameUnits) refuse(`${label}: the name is over ${maxNameUnits} UTF-16 units`);
    if (
      !(
        Number.isInteger(startLba) &&
        Number.isInteger(endLba) &&
        startLba >= usable.first &&
        endLba >= startLba &&
        endLba <= usable.last
      )
    ) {
      refuse(`${label}: sectors ${startLba} to ${endLba} are not within ${usable.first} to ${usable.last}`);
    }
  }
  const overlap = findOverlap(gpt.partitions);
  if (overlap !== undefined) refuse(`partitions ${overlap[0].number} and ${overlap[1].number} overlap`);
}

function findOverlap(partitions: readonly GptPartition[]): [GptPartition, GptPartition] | undefined {
  const sorted = partitions.toSorted((a, b) => a.startLba - b.startLba);
  for (const [index, next] of sorted.entries()) {
    const previous = sorted[index - 1];
    if (previous !== undefined && previous.endLba >= next.startLba) return [previous, next];
  }
  return undefined;
}

/** One partition of type 0xEE over the whole disk, as far as 32 bits count it (UEFI §5.2.3). */
function encodeProtectiveMbr(diskSectors: number): Uint8Array {
  const mbr = Buffer.alloc(512);
  mbr.set([0x00, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff], 446);
  mbr.writeUInt32LE(1, 454);
  mbr.writeUInt32LE(Math.min(diskSectors - 1, 0xffff_ffff), 458);
  mbr.writeUInt16LE(0xaa55, 510);
  return mbr;
}

function encodeHeader(
  gpt: Gpt,
  entries: Uint8Array,
  lba: { own: number; alternate: number; entries: number },
): Uint8Array {
  const usable = usableLbas(gpt);
  const header = Buffer.alloc(headerSize);
  header.set(signature);
  header.writeUInt32LE(revision, 8);
  header.writeUInt32LE(headerSize, 12);
  header.writeBigUInt64LE(BigInt(lba.own), 24);
  header.writeBigUInt64LE(BigInt(lba.alternate), 32);
  header.writeBigUInt64LE(BigInt(usable.first), 40);
  header.writeBigUInt64LE(BigInt(usable.last), 48);
  header.set(encodeGuid(gpt.diskGuid), 56);
  header.writeBigUInt64LE(BigInt(lba.entries), 72);
  header.writeUInt32LE(entryCount, 80);
  header.writeUInt32LE(entrySize, 84);
  header.writeUInt32LE(crc32(entries), 88);
  header.writeUInt32LE(crc32(header), 16);
  return header;
}

function encodeEntries(partitions: readonly GptPartition[]): Uint8Array {
  const entries = Buffer.alloc(entriesSize);
  for (const partition of partitions) {
    const at = (partition.number - 1) * entrySize;
    entries.set(encodeGuid(partition.typeGuid), at);
    entries.set(encodeGuid(partition.uniqueGuid), at + 16);
    entries.writeBigUInt64LE(BigInt(partition.startLba), at + 32);
    entries.writeBigUInt64LE(BigInt(partition.endLba), at + 40);
    entries.writeBigUInt64LE(partition.attributes, at + 48);
    entries.write(partition.name, at + 56, 'utf16le');
  }
  return entries;
}

interface Copy {
  readonly diskGuid: string;
  readonly alternateLba: number;
  readonly entriesCrc: number;
  readonly partitions: GptPartition[];
}

function decodeCopy(source: {
  header: Uint8Array;
  headerAt: number;
  entries: Uint8Array;
  entriesAt: number;
  ownLba: number;
  base: number;
  disk: { sectorSize: number; diskSectors: number };
}): Copy {
  const { diskSectors, sectorSize } = source.disk;
  const reader = new ByteReader(source.header, format, source.base).seek(source.headerAt, 'header');
  const at = reader.offset;
  const raw = Buffer.from(reader.take(headerSize, 'header'));
  if (!raw.subarray(0, 8).equals(signature)) reader.fail('signature', 'not "EFI PART"', at);
  if (raw.readUInt32LE(8) !== revision)
    reader.fail('revision', `0x${raw.readUInt32LE(8).toString(16)} is not 1.0`, at + 8);
  if (raw.readUInt32LE(12) !== headerSize)
    reader.fail('HeaderSize', `${raw.readUInt32LE(12)} is not ${headerSize}`, at + 12);
  const storedCrc = raw.readUInt32LE(16);
  const zeroed = Buffer.from(raw);
  zeroed.writeUInt32LE(0, 16);
  if (crc32(zeroed) !== storedCrc) reader.fail('HeaderCRC32', 'does not match the header', at + 16);
  reader.seek(at + 24, 'MyLBA');
  if (reader.u64Number('MyLBA') !== source.ownLba) reader.fail('MyLBA', `is not ${source.ownLba}`, at + 24);
  const alternateLba = reader.u64Number('AlternateLBA');
  const first = reader.u64Number('FirstUsableLBA');
  const last = reader.u64Number('LastUsableLBA');
  if (first > last || last >= diskSectors)
    reader.fail('LastUsableLBA', `sectors ${first} to ${last} of a disk of ${diskSectors}`, at + 48);
  const diskGuid = decodeGuid(reader.take(16, 'DiskGUID'));
  const entriesLba = reader.u64Number('PartitionEntryLBA');
  const expectedLba = (source.base + source.entriesAt) / sectorSize;
  if (entriesLba !== expectedLba) reader.fail('PartitionEntryLBA', `${entriesLba} is not ${expectedLba}`, at + 72);
  if (reader.u32('NumberOfPartitionEntries') !== entryCount)
    reader.fail('NumberOfPartitionEntries', `is not ${entryCount}`, at + 80);
  if (reader.u32('SizeOfPartitionEntry') !== entrySize)
    reader.fail('SizeOfPartitionEntry', `is not ${entrySize}`, at + 84);
  const entriesCrc = reader.u32('PartitionEntryArrayCRC32');
  const entries = new ByteReader(source.entries, format, source.base)
    .seek(source.entriesAt, 'entries')
    .take(entriesSize, 'entries');
  if (crc32(entries) !== entriesCrc) reader.fail('PartitionEntryArrayCRC32', 'does not match the entries', at + 88);
  return {
    diskGuid,
    alternateLba,
    entriesCrc,
    partitions: decodeEntries(entries, source.base + source.entriesAt, { first, last }),
  };
}

function decodeEntries(entries: Uint8Array, base: number, usable: { first: number; last: number }): GptPartition[] {
  const reader = new ByteReader(entries, format, base);
  const partitions: GptPartition[] = [];
  for (let index = 0; index < entryCount; index++) {
    const at = index * entrySize;
    reader.seek(at, 'entry');
    const typeBytes = reader.take(16, 'PartitionTypeGUID');
    if (typeBytes.every((octet) => octet === 0)) continue;
    const uniqueGuid = decodeGuid(reader.take(16, 'UniquePartitionGUID'));
    const startLba = reader.u64Number('StartingLBA');
    const endLba = reader.u64Number('EndingLBA');
    if (startLba < usable.first || endLba < startLba || endLba > usable.last) {
      reader.fail(
        `partition ${index + 1}`,
        `sectors ${startLba} to ${endLba} are not within ${usable.first} to ${usable.last}`,
        at + 32,
      );
    }
    const attributes = reader.u64('Attributes');
    const name = Buffer.from(reader.take(72, 'PartitionName')).toString('utf16le').replace(/\0.*$/s, '');
    partitions.push({
      number: index + 1,
      typeGuid: decodeGuid(typeBytes),
      uniqueGuid,
      name,
      startLba,
      endLba,
      attributes,
    });
  }
  const overlap = findOverlap(partitions);
  if (overlap !== undefined)
    reader.fail('entries', `partitions ${overlap[0].number} and ${overlap[1].number} overlap`, 0);
  return partitions;
}
