/** PE images: headers, sections, Authenticode digest and signatures, and what is predicted from a UKI. */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { PeImage } from '../../src/formats/pe.ts';
import { decodedOrRefused, dictionaryOf, type FuzzTarget, mustHold, neverThrows } from './fuzz-target.ts';

/** Larger sections only cost time here; that they have a limit is tried now and then. */
const smallSection = 64 * 1024;
const beyondAnyLimit = 64 * 1024 * 1024;

export const peTarget: FuzzTarget = {
  name: 'pe',
  files: ['src/formats/pe.ts', 'src/formats/authenticode.ts', 'src/formats/der.ts'],
  maxBytes: 12 * 1024,
  campaignExecutions: 150_000,
  dictionary: dictionaryOf(
    'MZ',
    'PE\0\0',
    '0x0b02',
    '0x6486',
    '.linux\0\0',
    '.initrd\0',
    '.cmdline',
    '.pcrsig\0',
    '.sbat\0\0\0',
    '0x00020200',
    '0x060a2b060104018237020104',
    '0x06092a864886f70d010702',
    '0x0609608648016503040201',
    '0x3082',
    '0x3080',
    '0xa082',
    '0x0482',
    '0x3184',
  ),
  load: async (tree) => {
    const from = async (file: string): Promise<unknown> => await import(pathToFileURL(join(tree, file)).href);
    const { decodePe, findPeSection, peSectionContent } = (await from(
      'src/formats/pe.ts',
    )) as typeof import('../../src/formats/pe.ts');
    const { authenticodeDigest, verifyAuthenticode } = (await from(
      'src/formats/authenticode.ts',
    )) as typeof import('../../src/formats/authenticode.ts');
    return (input) => {
      const image = decodedOrRefused(() => decodePe(input));
      if (image === undefined) return;
      checkImage(input, image);
      for (const section of image.sections) {
        decodedOrRefused(() => findPeSection(image, section.name));
        const isBeyond = section.virtualSize - section.sizeOfRawData > beyondAnyLimit;
        if (section.virtualSize > smallSection && !isBeyond) continue;
        const content = decodedOrRefused(() => peSectionContent(input, section));
        mustHold(content === undefined || content.length === section.virtualSize, 'a section has its virtual size');
        mustHold(!isBeyond || content === undefined, 'a section is not filled with zeros without limit');
      }
      mustHold(
        Buffer.compare(
          neverThrows('what decodes has a digest', () => authenticodeDigest(input)),
          digestAgain(input, image),
        ) === 0,
        'the digest is over all but check sum, directory entry and certificates',
      );
      const report = decodedOrRefused(() => verifyAuthenticode(input));
      for (const { isValid, signedDigest, reason } of report?.signatures ?? []) {
        mustHold(isValid === (reason === undefined), 'a signature is valid or has a reason');
        mustHold(
          !isValid || Buffer.compare(signedDigest, digestAgain(input, image)) === 0,
          'a valid signature is of this image',
        );
      }
    };
  },
};

/** The header fields read once more, from the specification's offsets. */
function checkImage(input: Uint8Array, image: PeImage): void {
  const view = new DataView(input.buffer, input.byteOffset, input.byteLength);
  const coff = view.getUint32(0x3c, true) + 4;
  const optional = coff + 20;
  mustHold(
    image.offsets.coffHeader === coff && image.offsets.optionalHeader === optional,
    'headers are where they are',
  );
  mustHold(
    image.sections.length === view.getUint16(coff + 2, true) && image.sections.length <= 96,
    'sections are counted',
  );
  mustHold(image.sizeOfHeaders === view.getUint32(optional + 60, true), 'SizeOfHeaders is read');
  mustHold(image.sizeOfHeaders <= input.length, 'headers are within the file');
  const table = optional + view.getUint16(coff + 16, true);
  mustHold(image.offsets.sectionTable === table, 'the section table follows the optional header');
  mustHold(table + 40 * image.sections.length <= image.sizeOfHeaders, 'the section table is within the headers');
  mustHold(image.offsets.securityDirectory + 8 <= table, 'the security directory is in the optional header');
  for (const alignment of [image.sectionAlignment, image.fileAlignment])
    mustHold(
      alignment > 0 && alignment <= 2 ** 21 && Number.isInteger(Math.log2(alignment)),
      'alignments are powers of two',
    );
  for (const [index, section] of image.sections.entries()) {
    const at = table + 40 * index;
    mustHold(section.virtualSize === view.getUint32(at + 8, true), 'VirtualSize is read');
    mustHold(section.virtualAddress === view.getUint32(at + 12, true), 'VirtualAddress is read');
    mustHold(section.sizeOfRawData === view.getUint32(at + 16, true), 'SizeOfRawData is read');
    mustHold(section.pointerToRawData === view.getUint32(at + 20, true), 'PointerToRawData is read');
    mustHold(section.characteristics === view.getUint32(at + 36, true), 'Characteristics are read');
    const end = section.pointerToRawData + section.sizeOfRawData;
    mustHold(section.sizeOfRawData === 0 || end <= input.length, 'sections are within the file');
  }
  const { offset, size } = image.certificateTable;
  mustHold(size === 0 || offset + size <= input.length, 'certificates are within the file');
}

function digestAgain(input: Uint8Array, { offsets, sizeOfHeaders, sections, certificateTable }: PeImage): Buffer {
  const parts = [
    input.subarray(0, offsets.checkSum),
    input.subarray(offsets.checkSum + 4, offsets.securityDirectory),
    input.subarray(offsets.securityDirectory + 8, sizeOfHeaders),
  ];
  let hashed = sizeOfHeaders;
  const present = sections.filter(({ sizeOfRawData }) => sizeOfRawData > 0);
  for (const { pointerToRawData: start, sizeOfRawData: size } of present.toSorted(
    (a, b) => a.pointerToRawData - b.pointerToRawData,
  )) {
    parts.push(input.subarray(start, start + size));
    hashed += size;
  }
  parts.push(input.subarray(hashed, Math.max(hashed, input.length - certificateTable.size)));
  return parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest();
}
