/**
 * The LUKS2 header Ashlar accepts (LUKS2 On-Disk Format Specification 1.1). Pure.
 *
 *   0        16 KiB     32 KiB                       2 MiB
 *   | primary | secondary | key slot areas            | data …
 *     binary header 4 KiB + JSON area 12 KiB
 *
 * The header lies on a disk that anybody may have written to, and its JSON decides how data is encrypted: a header
 * with a null cipher, another segment or an unfinished reencryption would make us write secrets in the clear
 * (CVE-2025-59054 and kin). So it is read once into memory, everything in it must be as we make it
 * (`luks-metadata.ts`), its MAC must be the one that the TPM keeps (`header-mac.ts`), and what is opened is the checked
 * copy, never the disk's (`data-volume.ts`).
 */
import { createHash } from 'node:crypto';
import {
  acceptMetadata,
  HEADER_BYTES,
  LuksHeaderError,
  METADATA_BYTES,
  SLOT_AREAS,
  type SlotArea,
} from './luks-metadata.ts';
import type { DataToken } from './luks-tokens.ts';

const BINARY_HEADER_BYTES = 4096;
const CHECKSUM_OFFSET = 448;
const CHECKSUM_BYTES = 64;
const SALT_OFFSET = 104;
const SALT_BYTES = 64;
const PLACE_OFFSET = 256;
const PLACE_BYTES = 8;
const MAGIC = {
  primary: Buffer.from('LUKS\xba\xbe', 'latin1'),
  secondary: Buffer.from('SKUL\xba\xbe', 'latin1'),
} as const;

export type HeaderCopy = 'primary' | 'secondary';

/** A header that may be opened. */
export interface AcceptedHeader {
  /** The copy that counts. */
  readonly copy: HeaderCopy;
  /** The other copy, when it is damaged or older (a power cut while writing). */
  readonly stale: HeaderCopy | undefined;
  readonly uuid: string;
  readonly tokens: readonly DataToken[];
  /** Of the key slots there are, by slot number. */
  readonly slotAreas: readonly SlotArea[];
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
    ...acceptMetadata(newest.json),
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

export function otherCopy(copy: HeaderCopy): HeaderCopy {
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

/**
 * What a MAC covers: all bytes of the accepted copy except those by which two copies of one header differ (magic, place,
 * salt, checksum), and the areas of the key slots there are.
 */
export function authenticatedParts(bytes: Uint8Array, { copy, slotAreas }: AcceptedHeader): Uint8Array[] {
  const [start, end] = copyRange(copy);
  const metadata = Buffer.from(bytes.subarray(start, end));
  metadata.fill(0, 0, MAGIC.primary.length);
  metadata.fill(0, SALT_OFFSET, SALT_OFFSET + SALT_BYTES);
  metadata.fill(0, PLACE_OFFSET, PLACE_OFFSET + PLACE_BYTES);
  metadata.fill(0, CHECKSUM_OFFSET, CHECKSUM_OFFSET + CHECKSUM_BYTES);
  return [metadata, ...slotAreas.map(({ offset, size }) => bytes.subarray(offset, offset + size))];
}

/** What lies between the areas of the key slots in use, in bytes from the start of the partition. */
export function unusedRanges({ slotAreas }: Pick<AcceptedHeader, 'slotAreas'>): { offset: number; size: number }[] {
  const ranges: { offset: number; size: number }[] = [];
  let start: number = SLOT_AREAS.start;
  for (const { offset, size } of slotAreas.toSorted((a, b) => a.offset - b.offset)) {
    if (offset > start) ranges.push({ offset: start, size: offset - start });
    start = offset + size;
  }
  if (start < SLOT_AREAS.end) ranges.push({ offset: start, size: SLOT_AREAS.end - start });
  return ranges;
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
