/**
 * An initramfs as the kernel reads it (Documentation/driver-api/early-userspace/buffer-format.rst): members one after
 * another, each a cpio archive or a compressed one, beginning at a multiple of four, zeros between them.
 */
import { ByteReader } from './byte-reader.ts';
import { cpioLength } from './cpio.ts';

const format = 'initramfs';
const cpioMagic = '070701';
const zstdMagic = 0xfd2fb528;
const gzipMagic = '1f8b';
const maxMembers = 64;

export interface InitramfsMember {
  readonly compression: 'none' | 'zstd' | 'gzip';
  /** Without the padding behind it. */
  readonly bytes: Uint8Array;
}

/**
 * Finds the members. A gzip member reaches to the end: its length is known only by unpacking it.
 *
 * Throws `FormatError` on bytes that begin no member known here, and on more than 64 members.
 */
export function splitInitramfs(bytes: Uint8Array): InitramfsMember[] {
  const members: InitramfsMember[] = [];
  let at = 0;
  for (;;) {
    while (at < bytes.length && bytes[at] === 0) at++;
    if (at >= bytes.length) return members;
    const rest = bytes.subarray(at);
    const reader = new ByteReader(rest, format);
    if (members.length === maxMembers) reader.fail('members', `over ${maxMembers}`, at);
    const begin = Buffer.from(rest.subarray(0, 6));
    if (begin.toString('latin1') === cpioMagic) {
      const length = cpioLength(rest);
      members.push({ compression: 'none', bytes: rest.subarray(0, length) });
      at += length;
    } else if (begin.length >= 4 && begin.readUInt32LE(0) === zstdMagic) {
      const length = zstdFrameLength(rest);
      members.push({ compression: 'zstd', bytes: rest.subarray(0, length) });
      at += length;
    } else if (begin.toString('hex').startsWith(gzipMagic)) {
      members.push({ compression: 'gzip', bytes: rest });
      return members;
    } else {
      reader.fail('member', `begins with ${begin.toString('hex')}, neither cpio nor zstd nor gzip`, at);
    }
  }
}

/** The length of the frame that begins here, from its header and its blocks' (RFC 8878, 3.1.1). */
function zstdFrameLength(bytes: Uint8Array): number {
  const reader = new ByteReader(bytes, 'zstd frame');
  reader.take(4, 'magic');
  const descriptor = reader.u8('frame header descriptor');
  const isSingleSegment = (descriptor & 0x20) !== 0;
  const contentSizeBytes = [isSingleSegment ? 1 : 0, 2, 4, 8][descriptor >> 6] ?? 0;
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3] ?? 0;
  reader.take((isSingleSegment ? 0 : 1) + dictionaryBytes + contentSizeBytes, 'frame header');
  for (;;) {
    const header = Buffer.from(reader.take(3, 'block header')).readUIntLE(0, 3);
    const isRunLength = ((header >> 1) & 3) === 1;
    reader.take(isRunLength ? 1 : header >> 3, 'block');
    if ((header & 1) === 1) break;
  }
  if ((descriptor & 4) !== 0) reader.take(4, 'checksum');
  return reader.offset;
}
