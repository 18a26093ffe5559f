/** X.509 certificates of TPM makers, as they come with a node's evidence. */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import { decodedOrRefused, dictionaryOf, type FuzzTarget, mustHold } from './fuzz-target.ts';

export const certificateTarget: FuzzTarget = {
  name: 'certificate',
  files: ['src/formats/certificate.ts', 'src/formats/der.ts', 'src/formats/byte-reader.ts'],
  maxBytes: 4096,
  campaignExecutions: 1_000_000,
  dictionary: dictionaryOf(
    '0x3000',
    '0x3080',
    '0x30820100',
    '0xa003020102',
    '0xa300',
    '0x0101ff',
    '0x0500',
    '0x0603551d11',
    '0x0603551d13',
    '0x060a2a864886f70d010107',
    '0x06072a8648ce3d0201',
    '0x170d3439313233313233353935395a',
    '0x180f39393939313233313233353935395a',
  ),
  load: async (tree) => {
    const url = pathToFileURL(join(tree, 'src/formats/certificate.ts')).href;
    const format = (await import(url)) as typeof import('../../src/formats/certificate.ts');
    return (input) => {
      const certificate = decodedOrRefused(() => format.decodeCertificate(input));
      if (certificate === undefined) return;
      const { der, issuer, subject, extensions, notBefore, notAfter } = certificate;
      mustHold(Buffer.compare(der, input.subarray(0, der.length)) === 0, 'it is the beginning of the input');
      mustHold(der.length === elementLength(input), 'it ends where its length says');
      mustHold(isDeepStrictEqual(format.decodeCertificate(der), certificate), 'what follows it changes nothing');
      mustHold(Number.isFinite(notBefore.getTime()) && Number.isFinite(notAfter.getTime()), 'its times are times');
      mustHold(new Set(extensions.map(({ oid }) => oid)).size === extensions.length, 'no extension is there twice');
      for (const name of [issuer, subject]) decodedOrRefused(() => format.decodeName(name));
      for (const { value } of extensions) {
        decodedOrRefused(() => format.decodeBasicConstraints(value));
        decodedOrRefused(() => format.decodeExtendedKeyUsage(value));
        decodedOrRefused(() => format.hasKeyUsage(value, 5));
        decodedOrRefused(() => format.directoryNames(value).map(format.decodeName));
      }
    };
  },
};

/** Tag, length and content of the first element, by X.690 §8.1.3. */
function elementLength(input: Uint8Array): number {
  const first = input[1] ?? 0;
  if (first < 0x80) return 2 + first;
  const octets = input.subarray(2, 2 + (first & 0x7f));
  return 2 + octets.length + octets.reduce((length, octet) => length * 256 + octet, 0);
}
