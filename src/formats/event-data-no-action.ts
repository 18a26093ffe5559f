/** What EV_NO_ACTION events say: a signature of 16 bytes tells how to read the rest (Platform Firmware Profile §10.4.5). */
import { ByteReader } from './byte-reader.ts';
import { decodeGuid } from './guid.ts';

export type NoActionData =
  | {
      readonly kind: 'spec-id';
      readonly signature: string;
      readonly platformClass: number;
      /** `2.0`, and the errata. */
      readonly specVersion: string;
      /** Bytes of the firmware's native integer: 4 or 8. */
      readonly uintnBytes: number;
      readonly algorithms: readonly { readonly id: string; readonly sizeBytes: number }[];
      readonly vendorInfoHex: string;
    }
  | { readonly kind: 'startup-locality'; readonly locality: number }
  | {
      /** Where the reference measurements of this firmware are. */
      readonly kind: 'reference-manifest';
      readonly signature: string;
      readonly vendorId: number;
      readonly guid: string;
      readonly strings: readonly string[];
      readonly restHex: string;
    }
  | { readonly kind: 'no-action'; readonly signature: string; readonly hex: string };

const format = 'EV_NO_ACTION';
const maxAlgorithms = 16;
const manifestStrings = 5;

/**
 * @returns undefined when the data does not begin with a signature.
 * @throws FormatError when it is too short for what the signature promises.
 */
export function decodeNoAction(data: Uint8Array): { data: NoActionData; trailingBytes: number } | undefined {
  const reader = new ByteReader(data, format);
  if (data.length < 16) return undefined;
  const raw = Buffer.from(reader.take(16, 'Signature')).toString('latin1');
  const signature = raw.replace(/\0+$/, '');
  if (!/^[\x20-\x7e]{4,16}$/.test(signature)) return undefined;
  const decoded = decodeBySignature(signature, reader);
  return { data: decoded, trailingBytes: reader.remaining };
}

function decodeBySignature(signature: string, reader: ByteReader): NoActionData {
  switch (signature) {
    case 'Spec ID Event03':
    case 'Spec ID Event02':
    case 'Spec ID Event00':
      return decodeSpecId(signature, reader);
    case 'StartupLocality':
      return { kind: 'startup-locality', locality: reader.u8('StartupLocality') };
    case 'SP800-155 Event':
    case 'SP800-155 Event2':
    case 'SP800-155 Event3':
      return decodeManifest(signature, reader);
    default:
      return { kind: 'no-action', signature, hex: rest(reader) };
  }
}

function decodeSpecId(signature: string, reader: ByteReader): NoActionData {
  const platformClass = reader.u32('platformClass');
  const minor = reader.u8('specVersionMinor');
  const major = reader.u8('specVersionMajor');
  const errata = reader.u8('specErrata');
  const uintnSize = reader.u8('uintnSize');
  const algorithms: { id: string; sizeBytes: number }[] = [];
  if (signature === 'Spec ID Event03') {
    const count = reader.u32('numberOfAlgorithms');
    if (count > maxAlgorithms) reader.fail('numberOfAlgorithms', `${count} is over ${maxAlgorithms}`);
    for (let i = 0; i < count; i++) {
      const id = `0x${reader.u16('algorithmId').toString(16).padStart(4, '0')}`;
      algorithms.push({ id, sizeBytes: reader.u16('digestSize') });
    }
  }
  const vendorInfo = reader.take(reader.u8('vendorInfoSize'), 'vendorInfo');
  return {
    kind: 'spec-id',
    signature,
    platformClass,
    specVersion: `${major}.${minor}${errata === 0 ? '' : ` errata ${errata}`}`,
    uintnBytes: uintnSize * 4,
    algorithms,
    vendorInfoHex: Buffer.from(vendorInfo).toString('hex'),
  };
}

/** TCG_Sp800_155_PlatformId_Event and its two successors; the successors name platform and firmware in strings. */
function decodeManifest(signature: string, reader: ByteReader): NoActionData {
  const vendorId = reader.u32('VendorId');
  const guid = decodeGuid(reader.take(16, 'ReferenceManifestGuid'));
  const strings: string[] = [];
  if (signature !== 'SP800-155 Event') {
    for (let i = 0; i < manifestStrings && reader.remaining > 0; i++) {
      // The firmware manufacturer's number stands before the last string.
      if (i === manifestStrings - 1) reader.take(4, 'FirmwareManufacturerId');
      const text = Buffer.from(reader.take(reader.u8('string size'), 'string')).toString('latin1');
      strings.push(text.replace(/\0+$/, ''));
    }
  }
  return { kind: 'reference-manifest', signature, vendorId, guid, strings, restHex: rest(reader) };
}

function rest(reader: ByteReader): string {
  return Buffer.from(reader.take(reader.remaining, 'rest')).toString('hex');
}
