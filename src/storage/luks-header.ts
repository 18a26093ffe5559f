/**
 * The LUKS2 header Ashlar accepts (LUKS2 On-Disk Format Specification 1.1). Pure.
 *
 *   0        16 KiB     32 KiB                       2 MiB
 *   | primary | secondary | key slot areas            | data …
 *     binary header 4 KiB + JSON area 12 KiB
 *
 * The header lies on a disk that anybody may have written to, and its JSON decides how data is encrypted: a header
 * with a null cipher, another segment or an unfinished reencryption would make us write secrets in the clear
 * (CVE-2025-59054 and kin). So it is read once into memory, everything in it must be as we make it, and what is opened is
 * the checked copy, never the disk's (`data-volume.ts`). Until the header carries a MAC, a well-formed volume of an
 * attacker's passes here, and opens if its key was sealed on this TPM (anybody may seal to a policy): it has another
 * volume key, hence another PCR 15, and no identity that a cluster knows.
 */
import { createHash } from 'node:crypto';
import {
  type Check,
  type Checked,
  exactly,
  integer,
  list,
  object,
  oneOf,
  ShapeError,
  text,
} from '../formats/json-shape.ts';
import { type DataToken, decodeToken } from './luks-tokens.ts';

export const CIPHER = 'aes';
export const CIPHER_MODE = 'xts-plain64';
/** Two AES-256 keys of XTS. */
export const KEY_BYTES = 64;
export const SECTOR_BYTES = 4096;
/** One copy of binary header and JSON. */
export const METADATA_BYTES = 16 * 1024;
/** All before the data: room for seven key slots, so that a slot can be replaced without a moment without one. */
export const HEADER_BYTES = 2 * 1024 * 1024;
/** Key slots by number. */
export const NODE_SLOT = 0;
export const RECOVERY_SLOT = 1;

const BINARY_HEADER_BYTES = 4096;
const JSON_BYTES = METADATA_BYTES - BINARY_HEADER_BYTES;
const CHECKSUM_OFFSET = 448;
const CHECKSUM_BYTES = 64;
const SALT_OFFSET = 104;
const SALT_BYTES = 64;
const PLACE_OFFSET = 256;
const MAGIC = {
  primary: Buffer.from('LUKS\xba\xbe', 'latin1'),
  secondary: Buffer.from('SKUL\xba\xbe', 'latin1'),
} as const;
const ENCRYPTION = `${CIPHER}-${CIPHER_MODE}`;
const SLOT_NAMES = [`${NODE_SLOT}`, `${RECOVERY_SLOT}`] as const;

export type HeaderCopy = 'primary' | 'secondary';

/** A header that may be opened. */
export interface AcceptedHeader {
  /** The copy that counts. */
  readonly copy: HeaderCopy;
  /** The other copy, when it is damaged or older (a power cut while writing). */
  readonly stale: HeaderCopy | undefined;
  readonly uuid: string;
  readonly tokens: readonly DataToken[];
}

/** A header that is not opened. The message says what is wrong with it. */
export class LuksHeaderError extends Error {
  override readonly name = 'LuksHeaderError';
}

/**
 * Checks a header.
 *
 * @param bytes the first {@link HEADER_BYTES} of the partition, read once
 * @param uuid the partition's, which the volume must carry
 */
export function acceptHeader(bytes: Uint8Array, { uuid }: { uuid: string }): AcceptedHeader {
  if (bytes.length !== HEADER_BYTES) throw new LuksHeaderError(`it has ${bytes.length} bytes, not ${HEADER_BYTES}`);
  const found = (['primary', 'secondary'] as const).map((copy) => ({ copy, read: attemptCopy(bytes, copy) }));
  const whole = found.flatMap(({ copy, read }) => (read instanceof LuksHeaderError ? [] : [{ copy, ...read }]));
  const [newest, other] = whole.toSorted((a, b) => (a.sequence < b.sequence ? 1 : a.sequence > b.sequence ? -1 : 0));
  if (newest === undefined) {
    const reasons = found.map(({ copy, read }) => `${copy}: ${read instanceof Error ? read.message : 'whole'}`);
    throw new LuksHeaderError(`both copies are damaged (${reasons.join('; ')})`);
  }
  if (other !== undefined && other.sequence === newest.sequence && !other.json.equals(newest.json)) {
    throw new LuksHeaderError(`its two copies differ under one sequence number (${newest.sequence})`);
  }
  if (newest.uuid !== uuid) {
    throw new LuksHeaderError(`its UUID is ${JSON.stringify(newest.uuid)}, the partition's is "${uuid}"`);
  }
  const isStale = other === undefined || other.sequence !== newest.sequence;
  return {
    copy: newest.copy,
    stale: isStale ? otherCopy(newest.copy) : undefined,
    uuid,
    tokens: acceptJson(newest.json),
  };
}

/** The header with only the accepted copy in it, so that whoever reads it next can choose no other. */
export function isolateAcceptedCopy(bytes: Uint8Array, { copy }: AcceptedHeader): Buffer {
  const isolated = Buffer.from(bytes);
  const [start, end] = copyRange(otherCopy(copy));
  isolated.fill(0, start, end);
  return isolated;
}

/**
 * The write that makes the other copy equal to the accepted one: same sequence number and JSON, its own magic, place,
 * salt and checksum.
 *
 * @param salt 64 random bytes
 */
export function rewriteOtherCopy(
  bytes: Uint8Array,
  { copy }: AcceptedHeader,
  salt: Uint8Array,
): { readonly offset: number; readonly bytes: Buffer } {
  const other = otherCopy(copy);
  const [start, end] = copyRange(copy);
  const [offset] = copyRange(other);
  const metadata = Buffer.from(bytes.subarray(start, end));
  metadata.set(MAGIC[other], 0);
  metadata.set(salt.subarray(0, SALT_BYTES), SALT_OFFSET);
  metadata.writeBigUInt64BE(BigInt(offset), PLACE_OFFSET);
  metadata.set(checksumOf(metadata), CHECKSUM_OFFSET);
  return { offset, bytes: metadata };
}

function otherCopy(copy: HeaderCopy): HeaderCopy {
  return copy === 'primary' ? 'secondary' : 'primary';
}

/** Where a copy lies, in bytes from the start of the partition: `[start, end)`. */
export function copyRange(copy: HeaderCopy): readonly [start: number, end: number] {
  return copy === 'primary' ? [0, METADATA_BYTES] : [METADATA_BYTES, 2 * METADATA_BYTES];
}

interface WholeCopy {
  readonly sequence: bigint;
  readonly uuid: string;
  readonly json: Buffer;
}

function attemptCopy(bytes: Uint8Array, copy: HeaderCopy): WholeCopy | LuksHeaderError {
  try {
    return readCopy(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length), copy);
  } catch (error) {
    if (error instanceof LuksHeaderError) return error;
    throw error;
  }
}

/** Reads one copy: magic, version, sizes, place and checksum (specification, 2.2). */
function readCopy(bytes: Buffer, copy: HeaderCopy): WholeCopy {
  const [start, end] = copyRange(copy);
  const metadata = bytes.subarray(start, end);
  if (!metadata.subarray(0, 6).equals(MAGIC[copy])) throw new LuksHeaderError('there is no LUKS2 magic');
  const version = metadata.readUInt16BE(6);
  if (version !== 2) throw new LuksHeaderError(`its version is ${version}, not 2`);
  const size = metadata.readBigUInt64BE(8);
  if (size !== BigInt(METADATA_BYTES)) throw new LuksHeaderError(`its size is ${size}, not ${METADATA_BYTES}`);
  const offset = metadata.readBigUInt64BE(PLACE_OFFSET);
  if (offset !== BigInt(start)) throw new LuksHeaderError(`it says it lies at ${offset}, not ${start}`);
  const algorithm = fixedText(metadata, 72, 32);
  if (algorithm !== 'sha256') throw new LuksHeaderError(`its checksum is ${JSON.stringify(algorithm)}, not "sha256"`);
  if (!checksumOf(metadata).equals(metadata.subarray(CHECKSUM_OFFSET, CHECKSUM_OFFSET + CHECKSUM_BYTES))) {
    throw new LuksHeaderError('its checksum is wrong');
  }
  return {
    sequence: metadata.readBigUInt64BE(16),
    uuid: fixedText(metadata, 168, 40),
    json: Buffer.from(metadata.subarray(BINARY_HEADER_BYTES)),
  };
}

/** SHA-256 over binary header and JSON area with the checksum field zero, padded to the field. */
function checksumOf(metadata: Buffer): Buffer {
  const unsummed = Buffer.from(metadata);
  unsummed.fill(0, CHECKSUM_OFFSET, CHECKSUM_OFFSET + CHECKSUM_BYTES);
  const checksum = Buffer.alloc(CHECKSUM_BYTES);
  createHash('sha256').update(unsummed).digest().copy(checksum);
  return checksum;
}

function fixedText(bytes: Buffer, start: number, length: number): string {
  const field = bytes.subarray(start, start + length);
  const end = field.indexOf(0);
  return field.toString('latin1', 0, end === -1 ? length : end);
}

/** A 64-bit number as LUKS2 writes it: decimal text. */
function decimal(expected: number): Check<number> {
  return (value, path) => {
    if (value !== `${expected}`) throw new ShapeError(path, `must be "${expected}", not ${JSON.stringify(value)}`);
    return expected;
  };
}

const base64 = text({ min: 1, max: 1024, pattern: /^[A-Za-z0-9+/]+={0,2}$/ });
const pbkdf2 = {
  type: oneOf('pbkdf2'),
  hash: oneOf('sha256'),
  iterations: integer({ min: 1000, max: 10_000_000 }),
  salt: base64,
};

const keyslot = object({
  type: oneOf('luks2'),
  key_size: exactly(KEY_BYTES),
  af: object({ type: oneOf('luks1'), stripes: exactly(4000), hash: oneOf('sha256') }),
  area: object({
    type: oneOf('raw'),
    offset: text({ max: 16, pattern: /^[1-9][0-9]*$/ }),
    size: text({ max: 16, pattern: /^[1-9][0-9]*$/ }),
    encryption: oneOf(ENCRYPTION),
    key_size: exactly(KEY_BYTES),
  }),
  kdf: object(pbkdf2),
});

const metadata = object({
  keyslots: object({ [SLOT_NAMES[0]]: keyslot, [SLOT_NAMES[1]]: keyslot }),
  tokens: (value: unknown) => value,
  segments: object({
    '0': object({
      type: oneOf('crypt'),
      offset: decimal(HEADER_BYTES),
      size: oneOf('dynamic'),
      iv_tweak: oneOf('0'),
      encryption: oneOf(ENCRYPTION),
      sector_size: exactly(SECTOR_BYTES),
    }),
  }),
  digests: object({
    '0': object({
      ...pbkdf2,
      keyslots: list(oneOf(...SLOT_NAMES), { max: 2 }),
      segments: list(oneOf('0'), { max: 1 }),
      digest: base64,
    }),
  }),
  config: object({ json_size: decimal(JSON_BYTES), keyslots_size: decimal(HEADER_BYTES - 2 * METADATA_BYTES) }),
});

/** Checks the JSON and returns its tokens. Nothing optional, nothing unknown: requirements, flags, reencryption. */
function acceptJson(area: Buffer): DataToken[] {
  const end = area.indexOf(0);
  if (end === -1) throw new LuksHeaderError('its JSON does not end');
  let parsed: unknown;
  try {
    parsed = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(area.subarray(0, end)));
  } catch (error) {
    throw new LuksHeaderError('its metadata is not JSON', { cause: error });
  }
  // JSON.parse keeps the last of two equal keys and libcryptsetup might keep the other: only our own spelling passes.
  try {
    const accepted = metadata(parsed, '');
    requireNoDuplicates(area.subarray(0, end).toString('utf8'), parsed);
    requireSlotAreas(accepted);
    return acceptTokens(accepted.tokens);
  } catch (error) {
    if (!(error instanceof ShapeError)) throw error;
    throw new LuksHeaderError(`in its metadata, ${error.message}`, { cause: error });
  }
}

/** As many keys in the text as in the parsed value: counted, since a second equal key vanishes in parsing. */
function requireNoDuplicates(source: string, parsed: unknown): void {
  let inText = 0;
  JSON.stringify(parsed, (_key, value: unknown) => {
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) inText -= Object.keys(value).length;
    return value;
  });
  for (const _ of source.matchAll(/"(?:[^"\\]|\\.)*"\s*:/g)) inText += 1;
  if (inText !== 0) throw new ShapeError('', 'has a key twice');
}

function requireSlotAreas({ keyslots, digests }: Checked<typeof metadata>): void {
  const areas = Object.values(keyslots).map(({ area }) => ({ start: Number(area.offset), size: Number(area.size) }));
  const size = Math.ceil((KEY_BYTES * 4000) / 4096) * 4096;
  for (const area of areas) {
    const isInside = area.start >= 2 * METADATA_BYTES && area.start + area.size <= HEADER_BYTES;
    if (area.size !== size || area.start % 4096 !== 0 || !isInside) {
      throw new ShapeError('keyslots', `have an area of ${area.size} bytes at ${area.start}`);
    }
  }
  const [first, second] = areas.toSorted((a, b) => a.start - b.start);
  if (first !== undefined && second !== undefined && first.start + first.size > second.start) {
    throw new ShapeError('keyslots', 'have areas that overlap');
  }
  const { keyslots: bound, segments } = digests['0'];
  if (new Set(bound).size !== SLOT_NAMES.length || segments.length !== 1) {
    throw new ShapeError('digests.0', 'must bind both key slots and the segment');
  }
}

function acceptTokens(value: unknown): DataToken[] {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ShapeError('tokens', 'must be an object');
  }
  const tokens: DataToken[] = [];
  for (const [id, token] of Object.entries(value)) {
    if (!/^[0-9]$/.test(id)) throw new ShapeError(`tokens.${JSON.stringify(id.slice(0, 20))}`, 'is no token of ours');
    tokens.push(decodeToken(token, `tokens.${id}`));
  }
  const count = (type: DataToken['type']): number => tokens.filter((token) => token.type === type).length;
  const isSealed = count('ashlar-tpm2') === 2 && count('ashlar-unsealed') === 0;
  const isUnsealed = count('ashlar-tpm2') === 0 && count('ashlar-unsealed') === 1;
  if (!(isSealed || isUnsealed) || count('ashlar-recovery') !== 1) {
    throw new ShapeError('tokens', 'must be two of type ashlar-tpm2 (or one ashlar-unsealed) and one ashlar-recovery');
  }
  return tokens;
}
