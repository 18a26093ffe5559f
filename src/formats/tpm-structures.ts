/**
 * TPM structures in wire format (TCG TPM 2.0 Library, Part 2; big-endian), as far as Ashlar speaks them. Pure.
 *
 * Public areas of keys are in `tpm-public-area.ts`, those of NV indices in `tpm-nv-public.ts`.
 *
 * `src/tpm/tss.ts` hands these bytes to tpm2-tss, which turns them into its own C structures: so no C layout is known
 * here, and the same bytes serve the policy digests and object names that are computed without a TPM.
 */
import { FormatError } from './byte-reader.ts';

/** TPM_ALG_ID (Part 2, 6.3). */
export const TPM_ALG = {
  rsa: 0x0001,
  sha1: 0x0004,
  aes: 0x0006,
  keyedHash: 0x0008,
  sha256: 0x000b,
  sha384: 0x000c,
  sha512: 0x000d,
  null: 0x0010,
  rsassa: 0x0014,
  rsapss: 0x0016,
  ecdsa: 0x0018,
  ecc: 0x0023,
  cfb: 0x0043,
} as const;

/** Number of PCRs of a PC Client TPM; three bytes of bitmap. */
const PCR_COUNT = 24;
/** A list longer than this is no answer of a TPM to our questions. */
const LIST_LIMIT = 1024;

/** A big-endian cursor with bounds checks. Slices share memory with the input. */
export class TpmReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #structure: string;
  #offset = 0;

  constructor(bytes: Uint8Array, structure: string) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#structure = structure;
  }

  fail(field: string, reason: string): never {
    throw new FormatError(`cannot decode ${this.#structure}: ${field} before offset ${this.#offset}: ${reason}`);
  }

  u8(field: string): number {
    return this.#view.getUint8(this.#advance(1, field));
  }

  u16(field: string): number {
    return this.#view.getUint16(this.#advance(2, field));
  }

  u32(field: string): number {
    return this.#view.getUint32(this.#advance(4, field));
  }

  take(length: number, field: string): Uint8Array {
    const start = this.#advance(length, field);
    return this.#bytes.subarray(start, start + length);
  }

  /** A TPM2B: u16 length and that many bytes. */
  sized(field: string): Uint8Array {
    return this.take(this.u16(field), field);
  }

  /** A u16 or u32 that must have one value. */
  expect(width: 2 | 4, value: number, field: string): void {
    const found = width === 2 ? this.u16(field) : this.u32(field);
    if (found !== value) this.fail(field, `is 0x${found.toString(16)}, expected 0x${value.toString(16)}`);
  }

  count(field: string): number {
    const count = this.u32(field);
    if (count > LIST_LIMIT) this.fail(field, `${count} entries are over the limit of ${LIST_LIMIT}`);
    return count;
  }

  end(): void {
    const left = this.#bytes.length - this.#offset;
    if (left !== 0) this.fail('end', `${left} bytes follow that should not be there`);
  }

  #advance(length: number, field: string): number {
    const left = this.#bytes.length - this.#offset;
    if (length > left) this.fail(field, `needs ${length} bytes, ${left} are left`);
    const start = this.#offset;
    this.#offset += length;
    return start;
  }
}

export function u8(value: number): Buffer {
  return Buffer.from([value]);
}

export function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

/** TPM2B: a u16 length before the bytes. */
export function encodeSized(bytes: Uint8Array): Buffer {
  return Buffer.concat([u16(bytes.length), bytes]);
}

export function decodeSized(bytes: Uint8Array, structure: string): Uint8Array {
  const reader = new TpmReader(bytes, structure);
  const content = reader.sized('buffer');
  reader.end();
  return content;
}

/** One bank of TPML_PCR_SELECTION (Part 2, 10.9.7). */
export interface PcrSelection {
  readonly hash: number;
  /** PCR indices, ascending. */
  readonly pcrs: readonly number[];
}

export function encodePcrSelections(selections: readonly PcrSelection[]): Buffer {
  const parts: Buffer[] = [u32(selections.length)];
  for (const { hash, pcrs } of selections) {
    const bitmap = Buffer.alloc(PCR_COUNT / 8);
    for (const pcr of pcrs) {
      if (!Number.isInteger(pcr) || pcr < 0 || pcr >= PCR_COUNT) {
        throw new RangeError(`cannot select PCR ${pcr}: there are PCRs 0 to ${PCR_COUNT - 1}`);
      }
      bitmap[pcr >> 3] = (bitmap[pcr >> 3] ?? 0) | (1 << (pcr & 7));
    }
    parts.push(u16(hash), u8(bitmap.length), bitmap);
  }
  return Buffer.concat(parts);
}

export function decodePcrSelections(bytes: Uint8Array): PcrSelection[] {
  const reader = new TpmReader(bytes, 'TPML_PCR_SELECTION');
  const selections = readPcrSelections(reader);
  reader.end();
  return selections;
}

export function readPcrSelections(reader: TpmReader): PcrSelection[] {
  const selections: PcrSelection[] = [];
  for (let left = reader.count('count'); left > 0; left -= 1) {
    const hash = reader.u16('hash');
    const bitmap = reader.take(reader.u8('sizeofSelect'), 'pcrSelect');
    const pcrs: number[] = [];
    for (const [index, byte] of bitmap.entries()) {
      for (let bit = 0; bit < 8; bit += 1) if (byte & (1 << bit)) pcrs.push(index * 8 + bit);
    }
    selections.push({ hash, pcrs });
  }
  return selections;
}

/** TPML_DIGEST (Part 2, 10.9.4). */
export function encodeDigests(digests: readonly Uint8Array[]): Buffer {
  return Buffer.concat([u32(digests.length), ...digests.map(encodeSized)]);
}

export function decodeDigests(bytes: Uint8Array): Uint8Array[] {
  const reader = new TpmReader(bytes, 'TPML_DIGEST');
  const digests: Uint8Array[] = [];
  for (let left = reader.count('count'); left > 0; left -= 1) digests.push(reader.sized('digest'));
  reader.end();
  return digests;
}

/** TPML_DIGEST_VALUES with one SHA-256 digest (Part 2, 10.9.5): what PCR_Extend takes. */
export function encodeSha256DigestValues(digest: Uint8Array): Buffer {
  if (digest.length !== 32) throw new RangeError(`cannot extend ${digest.length} bytes: a SHA-256 digest has 32`);
  return Buffer.concat([u32(1), u16(TPM_ALG.sha256), digest]);
}

/** TPM2B_SENSITIVE_CREATE (Part 2, 11.1.16). */
export function encodeSensitiveCreate({ auth, data }: { auth: Uint8Array; data: Uint8Array }): Buffer {
  return encodeSized(Buffer.concat([encodeSized(auth), encodeSized(data)]));
}

/** TPMT_SIGNATURE of an RSASSA PKCS#1 v1.5 signature over SHA-256 (Part 2, 11.3.4). */
export function encodeRsassaSha256Signature(signature: Uint8Array): Buffer {
  return Buffer.concat([u16(TPM_ALG.rsassa), u16(TPM_ALG.sha256), encodeSized(signature)]);
}

/** TPMT_SYM_DEF for session parameter encryption (Part 2, 11.1.6). */
export function encodeAes128Cfb(): Buffer {
  return Buffer.concat([u16(TPM_ALG.aes), u16(128), u16(TPM_ALG.cfb)]);
}

/** TPM_CAP (Part 2, 6.12): which capability is asked for. */
export const CAPABILITY = { handles: 1, pcrs: 5, properties: 6 } as const;

export type Capability =
  | { readonly kind: 'handles'; readonly handles: readonly number[] }
  | { readonly kind: 'pcrs'; readonly selections: readonly PcrSelection[] }
  | { readonly kind: 'properties'; readonly properties: ReadonlyMap<number, number> };

/** TPMS_CAPABILITY_DATA (Part 2, 10.10.2). */
export function decodeCapability(bytes: Uint8Array): Capability {
  const reader = new TpmReader(bytes, 'TPMS_CAPABILITY_DATA');
  const capability = readCapability(reader);
  reader.end();
  return capability;
}

function readCapability(reader: TpmReader): Capability {
  const kind = reader.u32('capability');
  switch (kind) {
    case CAPABILITY.handles: {
      const handles: number[] = [];
      for (let left = reader.count('count'); left > 0; left -= 1) handles.push(reader.u32('handle'));
      return { kind: 'handles', handles };
    }
    case CAPABILITY.pcrs:
      return { kind: 'pcrs', selections: readPcrSelections(reader) };
    case CAPABILITY.properties: {
      const properties = new Map<number, number>();
      for (let left = reader.count('count'); left > 0; left -= 1) {
        properties.set(reader.u32('property'), reader.u32('value'));
      }
      return { kind: 'properties', properties };
    }
    default:
      return reader.fail('capability', `${kind} was not asked for`);
  }
}
