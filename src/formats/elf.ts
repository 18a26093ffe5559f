/**
 * What an x86-64 ELF file asks of the dynamic linker (System V ABI, chapters 4 and 5): enough to collect the libraries
 * of a program and to find that one is missing.
 */
import { ByteReader } from './byte-reader.ts';

export interface ElfDependencies {
  /** e_machine: 62 is x86-64, 183 is AArch64. */
  readonly machine: number;
  /** Path of the dynamic linker; undefined for a library or a static program. */
  readonly interpreter: string | undefined;
  readonly soname: string | undefined;
  /** DT_NEEDED, in order. */
  readonly needed: readonly string[];
  /** DT_RUNPATH or, failing that, DT_RPATH. */
  readonly runpath: string | undefined;
}

export const elfMachineX64 = 62;

const format = 'ELF file';
const maxProgramHeaders = 256;
const maxDynamicEntries = 4096;
const maxString = 4096;
const segmentType = { load: 1, dynamic: 2, interpreter: 3 } as const;
const dynamicTag = { end: 0, needed: 1, stringTable: 5, stringSize: 10, soname: 14, rpath: 15, runpath: 29 } as const;

export function isElf(bytes: Uint8Array): boolean {
  return bytes.length >= 4 && bytes[0] === 0x7f && bytes[1] === 0x45 && bytes[2] === 0x4c && bytes[3] === 0x46;
}

interface Segment {
  readonly type: number;
  readonly offset: number;
  readonly address: bigint;
  readonly fileSize: number;
}

/** @throws FormatError when the bytes are not a little-endian 64-bit ELF file or its tables point outside it. */
export function decodeElf(bytes: Uint8Array): ElfDependencies {
  const reader = new ByteReader(bytes, format);
  if (!isElf(bytes)) reader.fail('magic', 'not an ELF file', 0);
  reader.seek(4, 'class');
  if (reader.u8('class') !== 2 || reader.u8('byte order') !== 1) reader.fail('class', 'not 64-bit little-endian', 4);
  const machine = reader.seek(18, 'e_machine').u16('e_machine');
  const segments = readSegments(reader, bytes.length);
  const interpreterSegment = segments.find(({ type }) => type === segmentType.interpreter);
  const interpreter =
    interpreterSegment === undefined
      ? undefined
      : readString(bytes, interpreterSegment.offset, Math.min(interpreterSegment.fileSize, maxString), 'interpreter');
  return { machine, interpreter, ...readDynamic(reader, bytes, segments) };
}

function readSegments(reader: ByteReader, fileLength: number): Segment[] {
  const tableOffset = reader.seek(32, 'e_phoff').u64Number('e_phoff');
  const entrySize = reader.seek(54, 'e_phentsize').u16('e_phentsize');
  const count = reader.u16('e_phnum');
  if (count > maxProgramHeaders) reader.fail('e_phnum', `${count} is over the limit of ${maxProgramHeaders}`, 56);
  if (count > 0 && entrySize !== 56) reader.fail('e_phentsize', `${entrySize} is not 56`, 54);
  return Array.from({ length: count }, (_, index) => {
    const at = tableOffset + index * entrySize;
    const type = reader.seek(at, 'program header').u32('p_type');
    reader.u32('p_flags');
    const offset = reader.u64Number('p_offset');
    const address = reader.u64('p_vaddr');
    reader.u64('p_paddr');
    const fileSize = reader.u64Number('p_filesz');
    if (offset + fileSize > fileLength)
      reader.fail('p_filesz', `${fileSize} bytes at ${offset} reach past the end`, at + 32);
    return { type, offset, address, fileSize };
  });
}

function readDynamic(
  reader: ByteReader,
  bytes: Uint8Array,
  segments: readonly Segment[],
): Pick<ElfDependencies, 'soname' | 'needed' | 'runpath'> {
  const dynamic = segments.find(({ type }) => type === segmentType.dynamic);
  if (dynamic === undefined) return { soname: undefined, needed: [], runpath: undefined };
  const values: [tag: bigint, value: bigint][] = [];
  reader.seek(dynamic.offset, 'dynamic section');
  for (let left = dynamic.fileSize; left >= 16; left -= 16) {
    const tag = reader.u64('d_tag');
    const value = reader.u64('d_val');
    if (tag === BigInt(dynamicTag.end)) break;
    if (values.length === maxDynamicEntries) reader.fail('dynamic section', `over ${maxDynamicEntries} entries`);
    values.push([tag, value]);
  }
  const all = (tag: number): bigint[] => values.filter(([key]) => key === BigInt(tag)).map(([, value]) => value);
  const one = (tag: number): bigint | undefined => all(tag)[0];
  const wanted = [dynamicTag.needed, dynamicTag.soname, dynamicTag.rpath, dynamicTag.runpath];
  if (!wanted.some((tag) => one(tag) !== undefined)) return { soname: undefined, needed: [], runpath: undefined };
  const tableAddress = one(dynamicTag.stringTable);
  const tableSize = one(dynamicTag.stringSize);
  if (tableAddress === undefined || tableSize === undefined)
    return reader.fail('dynamic section', 'no string table', dynamic.offset);
  const home = segments.find(
    ({ type, address, fileSize }) =>
      type === segmentType.load && tableAddress >= address && tableAddress + tableSize <= address + BigInt(fileSize),
  );
  if (home === undefined)
    return reader.fail('DT_STRTAB', `0x${tableAddress.toString(16)} is not in the file`, dynamic.offset);
  const tableOffset = home.offset + Number(tableAddress - home.address);
  const text = (value: bigint): string => {
    if (value >= tableSize)
      reader.fail('dynamic string', `${value} is past the string table of ${tableSize} bytes`, dynamic.offset);
    return readString(
      bytes,
      tableOffset + Number(value),
      Math.min(Number(tableSize - value), maxString),
      'dynamic string',
    );
  };
  const optional = (value: bigint | undefined): string | undefined => (value === undefined ? undefined : text(value));
  return {
    soname: optional(one(dynamicTag.soname)),
    needed: all(dynamicTag.needed).map(text),
    runpath: optional(one(dynamicTag.runpath) ?? one(dynamicTag.rpath)),
  };
}

function readString(bytes: Uint8Array, offset: number, limit: number, field: string): string {
  const reader = new ByteReader(bytes, format).seek(offset, field);
  const window = Buffer.from(reader.take(limit, field));
  const end = window.indexOf(0);
  if (end < 0) reader.fail(field, `no NUL within ${limit} bytes`, offset);
  return window.toString('utf8', 0, end);
}
