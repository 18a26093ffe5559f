/**
 * PE32+ images (Microsoft "PE Format"), as far as a unified kernel image needs: reading headers and sections of
 * untrusted files, and appending sections to the systemd stub.
 *
 * ```
 * 0            e_lfanew                                              SizeOfHeaders
 * | DOS stub … | "PE\0\0" COFF(20) optional header(…) section table | padding | raw data … | certificate table |
 * ```
 */
import { alignUp, ByteReader } from './byte-reader.ts';

export interface PeSection {
  readonly name: string;
  /** Bytes in memory. In a UKI this is the exact length of the content, and it is what the stub measures. */
  readonly virtualSize: number;
  readonly virtualAddress: number;
  readonly sizeOfRawData: number;
  readonly pointerToRawData: number;
  readonly characteristics: number;
}

export interface PeImage {
  readonly machine: number;
  readonly timeDateStamp: number;
  readonly sections: readonly PeSection[];
  readonly sectionAlignment: number;
  readonly fileAlignment: number;
  readonly sizeOfHeaders: number;
  readonly sizeOfImage: number;
  readonly sizeOfInitializedData: number;
  readonly dllCharacteristics: number;
  /** Where the attribute certificate table lies in the file; size 0 means unsigned. */
  readonly certificateTable: { readonly offset: number; readonly size: number };
  /** File offsets of the fields that a writer or the Authenticode digest must know. */
  readonly offsets: {
    readonly coffHeader: number;
    readonly optionalHeader: number;
    readonly checkSum: number;
    readonly securityDirectory: number;
    readonly sectionTable: number;
  };
}

export const peMachineX64 = 0x8664;

const format = 'PE image';
/** The format allows 96 sections (Windows' loader limit); a UKI has fewer than 30. */
const maxSections = 96;
const sectionHeaderSize = 40;
const nxCompatible = 0x0100;
/** Content that a section may have in memory beyond what the file holds: more is hostile, not padding. */
const maxZeroFill = 16 * 1024 * 1024;

const sectionFlags = { code: 0x20, initializedData: 0x40, read: 0x4000_0000 } as const;

/** @throws FormatError when the bytes are not a PE32+ image, or a header points outside them. */
export function decodePe(bytes: Uint8Array): PeImage {
  const reader = new ByteReader(bytes, format);
  if (reader.u16('DOS magic') !== 0x5a4d) reader.fail('DOS magic', 'not "MZ"', 0);
  const peOffset = reader.seek(0x3c, 'e_lfanew').u32('e_lfanew');
  reader.seek(peOffset, 'e_lfanew');
  if (reader.u32('signature') !== 0x0000_4550) reader.fail('signature', 'not "PE\\0\\0"', peOffset);
  const coffHeader = reader.offset;
  const machine = reader.u16('Machine');
  const sectionCount = reader.u16('NumberOfSections');
  if (sectionCount > maxSections) {
    reader.fail('NumberOfSections', `${sectionCount} is over the limit of ${maxSections}`, coffHeader + 2);
  }
  const timeDateStamp = reader.u32('TimeDateStamp');
  reader.take(8, 'symbol table');
  const optionalHeaderSize = reader.u16('SizeOfOptionalHeader');
  reader.u16('Characteristics');
  const optionalHeader = reader.offset;
  if (optionalHeaderSize < 152) {
    reader.fail('SizeOfOptionalHeader', `${optionalHeaderSize} bytes hold no security directory`, coffHeader + 16);
  }
  if (reader.u16('Magic') !== 0x20b) reader.fail('Magic', 'not PE32+', optionalHeader);
  const field = (offset: number, name: string): number => reader.seek(optionalHeader + offset, name).u32(name);
  const sizeOfInitializedData = field(8, 'SizeOfInitializedData');
  const sectionAlignment = field(32, 'SectionAlignment');
  const fileAlignment = field(36, 'FileAlignment');
  for (const [name, value] of Object.entries({ sectionAlignment, fileAlignment })) {
    if (value === 0 || value > 0x20_0000 || (value & (value - 1)) !== 0) {
      reader.fail(name, `${value} is not a power of two up to 2 MiB`, optionalHeader + 32);
    }
  }
  const sizeOfImage = field(56, 'SizeOfImage');
  const sizeOfHeaders = field(60, 'SizeOfHeaders');
  const dllCharacteristics = reader.seek(optionalHeader + 70, 'DllCharacteristics').u16('DllCharacteristics');
  const directoryCount = field(108, 'NumberOfRvaAndSizes');
  if (directoryCount < 5) reader.fail('NumberOfRvaAndSizes', `${directoryCount} leaves no security directory`);
  const securityDirectory = optionalHeader + 112 + 4 * 8;
  const certificateOffset = reader.seek(securityDirectory, 'security directory').u32('certificate table offset');
  const certificateSize = reader.u32('certificate table size');
  if (certificateSize !== 0 && certificateOffset + certificateSize > bytes.length) {
    reader.fail(
      'certificate table',
      `${certificateSize} bytes at ${certificateOffset} reach past the end`,
      securityDirectory,
    );
  }
  const sectionTable = optionalHeader + optionalHeaderSize;
  const sectionTableEnd = sectionTable + sectionCount * sectionHeaderSize;
  if (sizeOfHeaders > bytes.length || sectionTableEnd > sizeOfHeaders) {
    reader.fail(
      'SizeOfHeaders',
      `${sizeOfHeaders} does not hold the section table that ends at ${sectionTableEnd}`,
      optionalHeader + 60,
    );
  }
  reader.seek(sectionTable, 'section table');
  const sections = Array.from({ length: sectionCount }, () => readSection(reader, bytes.length));
  return {
    machine,
    timeDateStamp,
    sections,
    sectionAlignment,
    fileAlignment,
    sizeOfHeaders,
    sizeOfImage,
    sizeOfInitializedData,
    dllCharacteristics,
    certificateTable: { offset: certificateOffset, size: certificateSize },
    offsets: { coffHeader, optionalHeader, checkSum: optionalHeader + 64, securityDirectory, sectionTable },
  };
}

function readSection(reader: ByteReader, fileLength: number): PeSection {
  const start = reader.offset;
  const name = Buffer.from(reader.take(8, 'section name')).toString('latin1').replace(/\0+$/, '');
  const virtualSize = reader.u32('VirtualSize');
  const virtualAddress = reader.u32('VirtualAddress');
  const sizeOfRawData = reader.u32('SizeOfRawData');
  const pointerToRawData = reader.u32('PointerToRawData');
  reader.take(12, 'relocations and line numbers');
  const characteristics = reader.u32('Characteristics');
  if (sizeOfRawData !== 0 && pointerToRawData + sizeOfRawData > fileLength) {
    reader.fail(
      `section ${JSON.stringify(name)}`,
      `raw data of ${sizeOfRawData} bytes at ${pointerToRawData} reach past the end`,
      start,
    );
  }
  return { name, virtualSize, virtualAddress, sizeOfRawData, pointerToRawData, characteristics };
}

/** The section with this name. Names are unique in a UKI; two of one name are refused, because readers would differ. */
export function findPeSection(image: PeImage, name: string): PeSection | undefined {
  const found = image.sections.filter((section) => section.name === name);
  if (found.length > 1) {
    throw new RangeError(
      `cannot read PE image: it has ${found.length} sections named ${name}; which one counts is not defined`,
    );
  }
  return found[0];
}

/** The content as it is in memory: VirtualSize bytes, shared with `bytes` unless zeros must be added. */
export function peSectionContent(bytes: Uint8Array, section: PeSection): Uint8Array {
  const { pointerToRawData, sizeOfRawData, virtualSize } = section;
  const raw = bytes.subarray(pointerToRawData, pointerToRawData + Math.min(sizeOfRawData, virtualSize));
  if (virtualSize <= sizeOfRawData) return raw;
  if (virtualSize - sizeOfRawData > maxZeroFill) {
    throw new RangeError(
      `cannot read PE section ${section.name}: it is ${virtualSize} bytes in memory and ${sizeOfRawData} in the file; at most ${maxZeroFill} bytes of zeros are added`,
    );
  }
  const content = new Uint8Array(virtualSize);
  content.set(raw);
  return content;
}

/**
 * A copy of the image with other bytes in a section. They must be as many, so that nothing else changes.
 *
 * @throws RangeError when there is no such section, or its length differs.
 */
export function replacePeSection(bytes: Uint8Array, name: string, content: Uint8Array): Uint8Array {
  const section = findPeSection(decodePe(bytes), name);
  if (section === undefined) throw new RangeError(`cannot replace PE section ${name}: there is none`);
  if (section.virtualSize !== content.length || section.sizeOfRawData < content.length) {
    throw new RangeError(
      `cannot replace PE section ${name}: it has ${section.virtualSize} bytes, the new content ${content.length}`,
    );
  }
  // Not slice(), which of a Buffer would be a view.
  const copy = new Uint8Array(bytes);
  copy.set(content, section.pointerToRawData);
  return copy;
}

export interface NewPeSection {
  /** At most 8 ASCII bytes. */
  readonly name: string;
  readonly data: Uint8Array;
}

/**
 * Appends sections to the systemd stub: the whole of what `ukify` or `objcopy` would do, but reproducible.
 *
 * Rules, as firmware and stub want them: each VirtualSize is the exact length; addresses ascend, aligned to
 * SectionAlignment; raw data is aligned and zero-padded to FileAlignment; time stamp, check sum and symbol table are
 * zero. `.linux` is marked as code, and the NX promise is withdrawn when the kernel itself does not make it, since the
 * stub runs the kernel inside its own image.
 *
 * @throws FormatError when the stub is not PE32+.
 * @throws RangeError when the stub has no room for the headers, is signed, or has a section of the same name.
 */
export function buildUki(options: { stub: Uint8Array; sections: readonly NewPeSection[] }): Uint8Array {
  const { stub, sections } = options;
  const image = decodePe(stub);
  checkAppendable(image, sections);
  const placed = placeSections(image, stub.length, sections);
  const last = placed.at(-1);
  const output = new Uint8Array(
    last === undefined ? alignUp(stub.length, 8) : last.pointerToRawData + last.sizeOfRawData,
  );
  output.set(stub);
  const view = new DataView(output.buffer);
  const { coffHeader, optionalHeader, checkSum, sectionTable } = image.offsets;
  view.setUint16(coffHeader + 2, image.sections.length + sections.length, true);
  view.setUint32(coffHeader + 4, 0, true);
  view.setBigUint64(coffHeader + 8, 0n, true);
  view.setUint32(checkSum, 0, true);
  const addedData = placed.reduce((sum, section) => sum + section.sizeOfRawData, 0);
  view.setUint32(optionalHeader + 8, image.sizeOfInitializedData + addedData, true);
  if (last !== undefined) {
    view.setUint32(optionalHeader + 56, alignUp(last.virtualAddress + last.virtualSize, image.sectionAlignment), true);
  }
  const kernel = sections.find((section) => section.name === '.linux');
  if (kernel !== undefined && (decodePe(kernel.data).dllCharacteristics & nxCompatible) === 0) {
    view.setUint16(optionalHeader + 70, image.dllCharacteristics & ~nxCompatible, true);
  }
  for (const [index, section] of placed.entries()) {
    const header = sectionTable + (image.sections.length + index) * sectionHeaderSize;
    output.fill(0, header, header + sectionHeaderSize);
    output.set(Buffer.from(section.name, 'ascii'), header);
    view.setUint32(header + 8, section.virtualSize, true);
    view.setUint32(header + 12, section.virtualAddress, true);
    view.setUint32(header + 16, section.sizeOfRawData, true);
    view.setUint32(header + 20, section.pointerToRawData, true);
    view.setUint32(header + 36, section.characteristics, true);
    output.set(sections[index]?.data ?? new Uint8Array(0), section.pointerToRawData);
  }
  return output;
}

function checkAppendable(image: PeImage, sections: readonly NewPeSection[]): void {
  if (image.certificateTable.size !== 0) {
    throw new RangeError(
      'cannot build UKI: the stub is signed; use the unsigned one, the finished UKI gets the signature',
    );
  }
  const roomEnd = Math.min(
    image.sizeOfHeaders,
    ...image.sections.map((section) => section.pointerToRawData || Infinity),
  );
  const free = Math.floor((roomEnd - image.offsets.sectionTable) / sectionHeaderSize) - image.sections.length;
  if (sections.length > free) {
    throw new RangeError(
      `cannot build UKI: the stub has room for ${free} more section headers, ${sections.length} are wanted`,
    );
  }
  const names = new Set(image.sections.map((section) => section.name));
  for (const { name } of sections) {
    if (!/^[\x21-\x7e]{1,8}$/.test(name))
      throw new RangeError(`cannot build UKI: section name ${JSON.stringify(name)} is not 1 to 8 ASCII characters`);
    if (names.has(name)) throw new RangeError(`cannot build UKI: section ${name} is there already`);
    names.add(name);
  }
}

function placeSections(image: PeImage, stubLength: number, sections: readonly NewPeSection[]): PeSection[] {
  const ends = image.sections.map((section) => section.virtualAddress + section.virtualSize);
  let virtualAddress = alignUp(Math.max(image.sizeOfHeaders, ...ends), image.sectionAlignment);
  let pointerToRawData = alignUp(stubLength, image.fileAlignment);
  return sections.map(({ name, data }) => {
    const kind = name === '.linux' ? sectionFlags.code : sectionFlags.initializedData;
    const placed = {
      name,
      virtualSize: data.length,
      virtualAddress,
      sizeOfRawData: alignUp(data.length, image.fileAlignment),
      pointerToRawData,
      characteristics: (sectionFlags.read | kind) >>> 0,
    };
    virtualAddress = alignUp(virtualAddress + data.length, image.sectionAlignment);
    pointerToRawData += placed.sizeOfRawData;
    return placed;
  });
}
