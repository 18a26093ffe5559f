/** EFI signature lists, as Secure Boot's variables hold them. */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { decodedOrRefused, dictionaryOf, type FuzzTarget, mustHold } from './fuzz-target.ts';

const listHeaderBytes = 28;

export const signatureListTarget: FuzzTarget = {
  name: 'signature-list',
  files: ['src/formats/efi-signature-list.ts', 'src/formats/byte-reader.ts', 'src/formats/guid.ts'],
  maxBytes: 2048,
  campaignExecutions: 4_500_000,
  dictionary: dictionaryOf(
    '0xa159c0a5e494a74a87b5ab155c2bf072',
    '0x2616c4c14c509240aca941f936934328',
    '0x30000000',
    '0x11000000',
    '0x1c000000',
    '0x4c000000',
    '0x00000000',
    '0xffffffff',
  ),
  load: async (tree) => {
    const url = pathToFileURL(join(tree, 'src/formats/efi-signature-list.ts')).href;
    const { decodeSignatureLists } = (await import(url)) as typeof import('../../src/formats/efi-signature-list.ts');
    return (input) => {
      const lists = decodedOrRefused(() => decodeSignatureLists(input));
      mustHold((lists !== undefined) === isWellFormed(input), 'what follows the format is read, and nothing else');
      if (lists === undefined) return;
      const view = new DataView(input.buffer, input.byteOffset, input.byteLength);
      let at = 0;
      for (const { type, typeGuid, signatures } of lists) {
        mustHold(typeGuid === guidAt(input, at), 'a list has its type');
        mustHold((type === 'x509') === (typeGuid === 'a5c059a1-94e4-4aa7-87b5-ab155c2bf072'), 'certificates are known');
        const end = at + view.getUint32(at + 16, true);
        const size = view.getUint32(at + 24, true);
        let next = at + listHeaderBytes + view.getUint32(at + 20, true);
        mustHold(signatures.length > 0, 'a list is not empty');
        for (const { ownerGuid, data } of signatures) {
          mustHold(size > 16 && data.length === size - 16, 'an entry has the size that its list says');
          mustHold(ownerGuid === guidAt(input, next), 'an entry has its owner');
          mustHold(Buffer.compare(data, input.subarray(next + 16, next + size)) === 0, 'an entry is its bytes');
          next += size;
        }
        mustHold(next === end, 'entries fill the list');
        at = end;
      }
      mustHold(at === input.length, 'lists fill the variable');
    };
  },
};

/** The format once more, as plainly as it can be said. */
function isWellFormed(input: Uint8Array): boolean {
  const view = new DataView(input.buffer, input.byteOffset, input.byteLength);
  for (let at = 0; at < input.length; ) {
    if (input.length - at < listHeaderBytes) return false;
    const [list = 0, header = 0, entry = 0] = [16, 20, 24].map((offset) => view.getUint32(at + offset, true));
    const body = list - header - listHeaderBytes;
    if (entry <= 16 || body <= 0 || body % entry !== 0 || at + list > input.length) return false;
    at += list;
  }
  return true;
}

const hexOf = Array.from({ length: 256 }, (_, value) => value.toString(16).padStart(2, '0'));
/** Bytes of a GUID in the order of its text. */
const guidOrder = [
  [3, 2, 1, 0],
  [5, 4],
  [7, 6],
  [8, 9],
  [10, 11, 12, 13, 14, 15],
];

function guidAt(bytes: Uint8Array, at: number): string {
  let text = '';
  for (const group of guidOrder) {
    if (text !== '') text += '-';
    for (const offset of group) text += hexOf[bytes[at + offset] ?? 0];
  }
  return text;
}
