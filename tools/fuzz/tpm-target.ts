/** What a TPM answers and signs. The first byte of an input chooses the structure. */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import { decodedOrRefused, dictionaryOf, type FuzzTarget, mustHold } from './fuzz-target.ts';

/** Structures by the first byte, for the seeds. */
export const tpmStructures = [
  'attest',
  'signature',
  'public-key',
  'public-area',
  'nv-public',
  'pcr-selections',
  'digests',
  'sized',
  'capability',
] as const;

interface Codec {
  readonly decode: (bytes: Uint8Array) => unknown;
  /** The inverse, where there is one. */
  readonly encode?: (value: never) => Uint8Array;
  /** Whether the same value has one form only, so that it comes back byte for byte. */
  readonly isCanonical?: boolean;
}

export const tpmTarget: FuzzTarget = {
  name: 'tpm',
  files: [
    'src/formats/tpm-structures.ts',
    'src/formats/tpm-attest.ts',
    'src/formats/tpm-public-area.ts',
    'src/formats/tpm-nv-public.ts',
  ],
  maxBytes: 5000,
  campaignExecutions: 4_700_000,
  dictionary: dictionaryOf(
    '0xff544347',
    '0x8018',
    '0x000b',
    '0x000403',
    '0x0014000b',
    '0x0018000b',
    '0x0023',
    '0x0001',
    '0x0010',
    '0x0006008000430010',
    '0x000300100020',
    '0x08000000000100',
    '0x03000800',
    '0x00000001',
    '0x0020',
    '0x01c00002',
  ),
  load: async (tree) => {
    const from = async (file: string): Promise<unknown> => await import(pathToFileURL(join(tree, file)).href);
    const structures = (await from(
      'src/formats/tpm-structures.ts',
    )) as typeof import('../../src/formats/tpm-structures.ts');
    const attest = (await from('src/formats/tpm-attest.ts')) as typeof import('../../src/formats/tpm-attest.ts');
    const area = (await from(
      'src/formats/tpm-public-area.ts',
    )) as typeof import('../../src/formats/tpm-public-area.ts');
    const nv = (await from('src/formats/tpm-nv-public.ts')) as typeof import('../../src/formats/tpm-nv-public.ts');
    const codecs: Record<(typeof tpmStructures)[number], Codec> = {
      attest: {
        decode: attest.decodeAttest,
        // Of other types than a quote only the head is read.
        encode: (value: ReturnType<typeof attest.decodeAttest>) => {
          if (value.quote === undefined) throw new RangeError('cannot encode: no quote');
          return attest.encodeAttest({ ...value, quote: value.quote });
        },
      },
      signature: { decode: attest.decodeTpmSignature, encode: attest.encodeTpmSignature, isCanonical: true },
      'public-key': { decode: attest.decodeTpmPublicKey, encode: attest.encodeTpmPublicKey },
      'public-area': { decode: area.decodePublic, encode: area.encodePublic, isCanonical: true },
      'nv-public': { decode: nv.decodeNvPublic, encode: nv.encodeNvPublic, isCanonical: true },
      'pcr-selections': { decode: structures.decodePcrSelections, encode: structures.encodePcrSelections },
      digests: { decode: structures.decodeDigests, encode: structures.encodeDigests, isCanonical: true },
      sized: {
        decode: (bytes) => structures.decodeSized(bytes, 'TPM2B'),
        encode: structures.encodeSized,
        isCanonical: true,
      },
      capability: { decode: structures.decodeCapability },
    };
    return (input) => {
      const structure = tpmStructures[(input[0] ?? 0) % tpmStructures.length];
      if (structure !== undefined) tryCodec(codecs[structure], input.subarray(1), structure);
    };
  },
};

function tryCodec({ decode, encode, isCanonical }: Codec, bytes: Uint8Array, name: string): void {
  const value = decodedOrRefused(() => decode(bytes));
  if (value === undefined || encode === undefined) return;
  // A selection may name registers that no encoder writes: then the encoder refuses.
  const again = decodedOrRefused(() => encode(value as never));
  if (again === undefined) return;
  mustHold(isDeepStrictEqual(plain(decode(again)), plain(value)), `${name}: encoded, it decodes to the same`);
  mustHold(isCanonical !== true || Buffer.compare(again, bytes) === 0, `${name}: it has one form`);
}

/** Byte strings as hex: two views of equal bytes are equal. */
function plain(value: unknown): string {
  return JSON.stringify(value, (_key, entry: unknown) => {
    if (typeof entry === 'bigint') return `${entry}n`;
    if (entry instanceof Map) return [...entry];
    if (ArrayBuffer.isView(entry)) return Buffer.from(entry.buffer, entry.byteOffset, entry.byteLength).toString('hex');
    // A Buffer has turned itself into an object before it comes here.
    if (typeof entry === 'object' && entry !== null && 'type' in entry && entry.type === 'Buffer' && 'data' in entry)
      return Buffer.from(entry.data as number[]).toString('hex');
    return entry;
  });
}
