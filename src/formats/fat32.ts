/**
 * Reading files from a FAT32 volume (Microsoft "FAT: General Overview of On-Disk Format" 1.03): the EFI system partition
 * of an image, which may be hostile. Nothing is written.
 */
import { ByteReader, FormatError } from './byte-reader.ts';

/** Gives exactly `length` bytes of the volume. */
export type ReadVolume = (offset: number, length: number) => Promise<Uint8Array>;

export interface FatEntry {
  readonly name: string;
  readonly isDirectory: boolean;
  readonly sizeBytes: number;
  readonly firstCluster: number;
}

export interface FatVolume {
  /** @returns undefined when there is no such directory. */
  list(path: string): Promise<FatEntry[] | undefined>;
  /** @param path with `/`, compared without regard to case. @returns undefined when there is no such file. */
  readFile(path: string): Promise<Uint8Array | undefined>;
}

const format = 'FAT32 volume';
const maxFatBytes = 64 * 1024 * 1024;
const maxDirectoryBytes = 2 * 1024 * 1024;
const maxFileBytes = 512 * 1024 * 1024;
const entrySize = 32;
const attribute = { volumeLabel: 0x08, directory: 0x10, longName: 0x0f } as const;

interface Geometry {
  readonly clusterBytes: number;
  readonly dataOffset: number;
  readonly clusterCount: number;
  readonly rootCluster: number;
  readonly table: Uint32Array;
}

/** @throws FormatError when the volume is not FAT32. Chains that loop or leave the volume are found when they are read. */
export async function openFat32(read: ReadVolume, sizeBytes: number): Promise<FatVolume> {
  const geometry = await readGeometry(read, sizeBytes);
  const directory = async (path: string): Promise<FatEntry[] | undefined> => {
    let cluster = geometry.rootCluster;
    for (const part of path.split('/').filter((name) => name !== '')) {
      const entry = find(decodeDirectory(await readChain(read, geometry, cluster, maxDirectoryBytes)), part);
      if (entry?.isDirectory !== true) return undefined;
      cluster = entry.firstCluster;
    }
    return decodeDirectory(await readChain(read, geometry, cluster, maxDirectoryBytes));
  };
  return {
    list: directory,
    readFile: async (path) => {
      const parts = path.split('/');
      const entry = find((await directory(parts.slice(0, -1).join('/'))) ?? [], parts.at(-1) ?? '');
      if (entry === undefined || entry.isDirectory) return undefined;
      if (entry.sizeBytes > maxFileBytes)
        throw new FormatError(
          `cannot decode ${format}: ${path}: ${entry.sizeBytes} bytes are over the limit of ${maxFileBytes}`,
        );
      if (entry.sizeBytes === 0) return new Uint8Array(0);
      const content = await readChain(read, geometry, entry.firstCluster, entry.sizeBytes);
      if (content.length < entry.sizeBytes)
        throw new FormatError(
          `cannot decode ${format}: ${path}: its clusters hold ${content.length} of ${entry.sizeBytes} bytes`,
        );
      return content.subarray(0, entry.sizeBytes);
    },
  };
}

function find(entries: readonly FatEntry[], name: string): FatEntry | undefined {
  return entries.find((entry) => entry.name.toLowerCase() === name.toLowerCase());
}

async function readGeometry(read: ReadVolume, sizeBytes: number): Promise<Geometry> {
  if (sizeBytes < 512) throw new FormatError(`cannot decode ${format}: ${sizeBytes} bytes hold no boot sector`);
  const boot = new ByteReader(await read(0, 512), format);
  if (boot.seek(510, 'signature').u16('signature') !== 0xaa55) boot.fail('signature', 'not 0xAA55', 510);
  const sectorBytes = boot.seek(11, 'BytesPerSector').u16('BytesPerSector');
  if (![512, 1024, 2048, 4096].includes(sectorBytes)) boot.fail('BytesPerSector', `${sectorBytes}`, 11);
  const sectorsPerCluster = boot.u8('SectorsPerCluster');
  if (sectorsPerCluster === 0 || (sectorsPerCluster & (sectorsPerCluster - 1)) !== 0)
    boot.fail('SectorsPerCluster', `${sectorsPerCluster}`, 13);
  const reservedSectors = boot.u16('ReservedSectors');
  const fatCount = boot.u8('NumberOfFATs');
  if (boot.u16('RootEntries') !== 0 || boot.seek(22, 'FATSize16').u16('FATSize16') !== 0)
    boot.fail('FATSize16', 'not zero: FAT12 or FAT16', 22);
  const totalSectors = boot.seek(32, 'TotalSectors').u32('TotalSectors');
  const fatSectors = boot.u32('FATSize32');
  const rootCluster = boot.seek(44, 'RootCluster').u32('RootCluster');
  const fatBytes = fatSectors * sectorBytes;
  const dataOffset = (reservedSectors + fatCount * fatSectors) * sectorBytes;
  const volumeBytes = totalSectors * sectorBytes;
  if (fatBytes === 0 || fatBytes > maxFatBytes) boot.fail('FATSize32', `${fatBytes} bytes`, 36);
  if (volumeBytes > sizeBytes || dataOffset >= volumeBytes)
    boot.fail('TotalSectors', `${totalSectors} do not fit ${sizeBytes} bytes`, 32);
  const clusterBytes = sectorsPerCluster * sectorBytes;
  const clusterCount = Math.min(Math.floor((volumeBytes - dataOffset) / clusterBytes), fatBytes / 4 - 2);
  const fat = new ByteReader(
    await read(reservedSectors * sectorBytes, fatBytes),
    format,
    reservedSectors * sectorBytes,
  );
  const table = Uint32Array.from({ length: clusterCount + 2 }, () => fat.u32('FAT entry') & 0x0fff_ffff);
  return { clusterBytes, dataOffset, clusterCount, rootCluster, table };
}

/** Bytes of a cluster chain, at most the clusters that `limit` needs. Neighbouring clusters are read at once. */
async function readChain(read: ReadVolume, geometry: Geometry, first: number, limit: number): Promise<Uint8Array> {
  const { clusterBytes, clusterCount, dataOffset, table } = geometry;
  const runs: { start: number; count: number }[] = [];
  const seen = new Uint8Array(clusterCount + 2);
  let total = 0;
  let cluster = first;
  while (total * clusterBytes < limit && cluster < 0x0fff_fff8) {
    if (cluster < 2 || cluster >= clusterCount + 2)
      throw new FormatError(`cannot decode ${format}: cluster ${cluster} is not 2 to ${clusterCount + 1}`);
    if (seen[cluster] === 1) {
      throw new FormatError(`cannot decode ${format}: the chain from cluster ${first} comes back to ${cluster}`);
    }
    seen[cluster] = 1;
    const last = runs.at(-1);
    if (last !== undefined && last.start + last.count === cluster) last.count += 1;
    else runs.push({ start: cluster, count: 1 });
    total += 1;
    cluster = table[cluster] ?? 0;
  }
  const parts: Uint8Array[] = [];
  for (const { start, count } of runs)
    parts.push(await read(dataOffset + (start - 2) * clusterBytes, count * clusterBytes));
  return Buffer.concat(parts);
}

function decodeDirectory(bytes: Uint8Array): FatEntry[] {
  const entries: FatEntry[] = [];
  let longName: string[] = [];
  for (let at = 0; at + entrySize <= bytes.length; at += entrySize) {
    const raw = Buffer.from(bytes.buffer, bytes.byteOffset + at, entrySize);
    if (raw[0] === 0) break;
    const flags = raw.readUInt8(11);
    if (raw[0] === 0xe5) {
      longName = [];
    } else if ((flags & 0x3f) === attribute.longName) {
      longName.unshift(
        Buffer.concat([raw.subarray(1, 11), raw.subarray(14, 26), raw.subarray(28, 32)]).toString('utf16le'),
      );
    } else {
      const long = longName.join('').replace(/\0.*$/s, '');
      longName = [];
      const short = shortName(raw);
      if ((flags & attribute.volumeLabel) !== 0 || short === '.' || short === '..') continue;
      entries.push({
        name: long === '' ? short : long,
        isDirectory: (flags & attribute.directory) !== 0,
        sizeBytes: raw.readUInt32LE(28),
        firstCluster: raw.readUInt16LE(20) * 0x1_0000 + raw.readUInt16LE(26),
      });
    }
  }
  return entries;
}

function shortName(raw: Buffer): string {
  // Bits of NTRes, which the specification reserves and everybody uses: a short name kept in lower case.
  const lowerCase = raw.readUInt8(12);
  const part = (from: number, to: number, isLower: boolean): string => {
    const text = raw.toString('latin1', from, to).trimEnd();
    return isLower ? text.toLowerCase() : text;
  };
  const base = part(0, 8, (lowerCase & 0x08) !== 0);
  const extension = part(8, 11, (lowerCase & 0x10) !== 0);
  return extension === '' ? base : `${base}.${extension}`;
}
