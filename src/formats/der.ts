/**
 * Distinguished Encoding Rules (ITU-T X.690), as much of it as X.509 and PKCS #7 need.
 *
 * Writing: every function returns a complete element (tag, length, content); compose them. Reading: an element is
 * decoded one level at a time by the caller who knows the schema, so nesting in hostile input costs no stack.
 */
import { ByteReader } from './byte-reader.ts';

export const derTag = {
  boolean: 0x01,
  integer: 0x02,
  bitString: 0x03,
  octetString: 0x04,
  null: 0x05,
  oid: 0x06,
  utf8String: 0x0c,
  printableString: 0x13,
  utcTime: 0x17,
  generalizedTime: 0x18,
  sequence: 0x30,
  set: 0x31,
} as const;

/** Elements longer than this are refused when reading. Certificates and signatures are a few KiB. */
const maxLength = 16 * 1024 * 1024;

export function derElement(tag: number, ...content: readonly Uint8Array[]): Uint8Array {
  const body = Buffer.concat(content);
  return Buffer.concat([Uint8Array.of(tag), encodeLength(body.length), body]);
}

function encodeLength(length: number): Uint8Array {
  if (length < 0x80) return Uint8Array.of(length);
  const octets: number[] = [];
  for (let rest = length; rest > 0; rest = Math.floor(rest / 256)) octets.unshift(rest % 256);
  return Uint8Array.of(0x80 | octets.length, ...octets);
}

export const derSequence = (...items: readonly Uint8Array[]): Uint8Array => derElement(derTag.sequence, ...items);

/** SET OF: DER wants the encoded members in ascending order (X.690 §11.6). */
export const derSetOf = (...items: readonly Uint8Array[]): Uint8Array =>
  derElement(derTag.set, ...items.toSorted((a, b) => Buffer.compare(a, b)));

export const derNull = (): Uint8Array => derElement(derTag.null);
export const derBoolean = (value: boolean): Uint8Array => derElement(derTag.boolean, Uint8Array.of(value ? 0xff : 0));
export const derOctetString = (bytes: Uint8Array): Uint8Array => derElement(derTag.octetString, bytes);
export const derUtf8String = (text: string): Uint8Array => derElement(derTag.utf8String, Buffer.from(text, 'utf8'));

/** Context-specific constructed tag: `[n] EXPLICIT`, or `[n] IMPLICIT` of a constructed type without its own header. */
export const derContext = (n: number, ...items: readonly Uint8Array[]): Uint8Array => derElement(0xa0 | n, ...items);
/** Context-specific primitive tag: `[n] IMPLICIT` of a primitive type. */
export const derContextPrimitive = (n: number, bytes: Uint8Array): Uint8Array => derElement(0x80 | n, bytes);

/** An unsigned INTEGER from big-endian bytes (a serial number, say) or a small number. */
export function derInteger(value: number | Uint8Array): Uint8Array {
  let bytes: Uint8Array;
  if (typeof value === 'number') {
    if (!Number.isSafeInteger(value) || value < 0)
      throw new RangeError(`cannot encode DER INTEGER: ${value} is not a natural number`);
    bytes = Buffer.from(
      value.toString(16).padStart(value.toString(16).length + (value.toString(16).length % 2), '0'),
      'hex',
    );
  } else {
    bytes = value;
  }
  let start = 0;
  while (start < bytes.length - 1 && bytes[start] === 0) start++;
  const minimal = bytes.length === 0 ? Uint8Array.of(0) : bytes.subarray(start);
  const isNegativeLooking = ((minimal[0] ?? 0) & 0x80) !== 0;
  return derElement(derTag.integer, isNegativeLooking ? Buffer.concat([Uint8Array.of(0), minimal]) : minimal);
}

export const derBitString = (bytes: Uint8Array, unusedBits = 0): Uint8Array =>
  derElement(derTag.bitString, Uint8Array.of(unusedBits), bytes);

/** A named-bit BIT STRING (KeyUsage): trailing zero bits are not encoded (X.690 §11.2.2). */
export function derNamedBits(bits: readonly number[]): Uint8Array {
  if (bits.length === 0) return derBitString(new Uint8Array(0));
  const highest = Math.max(...bits);
  const bytes = new Uint8Array(Math.floor(highest / 8) + 1);
  for (const bit of bits) bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) | (0x80 >> (bit & 7));
  return derBitString(bytes, 7 - (highest & 7));
}

export function derOid(dotted: string): Uint8Array {
  const arcs = dotted.split('.').map(Number);
  const [first, second, ...rest] = arcs;
  if (first === undefined || second === undefined || arcs.some((arc) => !Number.isSafeInteger(arc) || arc < 0)) {
    throw new RangeError(`cannot encode DER OID: ${dotted} is not dotted numbers`);
  }
  const bytes: number[] = [];
  for (const arc of [first * 40 + second, ...rest]) {
    const groups = [arc % 128];
    for (let left = Math.floor(arc / 128); left > 0; left = Math.floor(left / 128)) groups.unshift(0x80 | (left % 128));
    bytes.push(...groups);
  }
  return derElement(derTag.oid, Uint8Array.from(bytes));
}

/** RFC 5280 §4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050. Whole seconds. */
export function derTime(date: Date): Uint8Array {
  const stamp = `${date.toISOString().replace(/[-:T]/g, '').slice(0, 14)}Z`;
  const year = date.getUTCFullYear();
  return year >= 1950 && year < 2050
    ? derElement(derTag.utcTime, Buffer.from(stamp.slice(2), 'ascii'))
    : derElement(derTag.generalizedTime, Buffer.from(stamp, 'ascii'));
}

/** One decoded element. `whole` includes tag and length; `content` does not. Both share memory with the input. */
export interface DerElement {
  readonly tag: number;
  readonly content: Uint8Array;
  readonly whole: Uint8Array;
  /** Where `whole` begins in the outermost input: for error messages. */
  readonly offset: number;
}

/**
 * Reads the elements that fill `bytes`, one level deep.
 *
 * @throws FormatError on indefinite or non-minimal lengths, multi-byte tags, and lengths beyond the input.
 */
export function decodeDerElements(bytes: Uint8Array, format: string, base = 0): DerElement[] {
  const reader = new ByteReader(bytes, format, base);
  const elements: DerElement[] = [];
  while (reader.remaining > 0) elements.push(readElement(reader, bytes, base));
  return elements;
}

/** Reads exactly one element, which must fill `bytes`. */
export function decodeDer(bytes: Uint8Array, format: string, base = 0): DerElement {
  const reader = new ByteReader(bytes, format, base);
  const element = readElement(reader, bytes, base);
  reader.end('DER');
  return element;
}

/** Reads one element at the start of `bytes` and ignores what follows (padding after a signature). */
export function decodeDerPrefix(bytes: Uint8Array, format: string, base = 0): DerElement {
  return readElement(new ByteReader(bytes, format, base), bytes, base);
}

/** The members of a constructed element. */
export function derChildren(element: DerElement, format: string): DerElement[] {
  return decodeDerElements(element.content, format, element.offset + element.whole.length - element.content.length);
}

function readElement(reader: ByteReader, bytes: Uint8Array, base: number): DerElement {
  const start = reader.offset;
  const tag = reader.u8('DER tag');
  if ((tag & 0x1f) === 0x1f) reader.fail('DER tag', 'multi-byte tags are not used in these formats', start);
  const first = reader.u8('DER length');
  let length = first;
  if (first === 0x80) reader.fail('DER length', 'indefinite length is not DER', start + 1);
  if (first > 0x80) {
    const count = first & 0x7f;
    if (count > 4) reader.fail('DER length', `${count} length octets`, start + 1);
    length = 0;
    for (let i = 0; i < count; i++) length = length * 256 + reader.u8('DER length');
    if (length < 0x80 || length < 256 ** (count - 1)) reader.fail('DER length', 'not minimal', start + 1);
  }
  if (length > maxLength) reader.fail('DER length', `${length} is over the limit of ${maxLength}`, start + 1);
  const content = reader.take(length, 'DER content');
  return { tag, content, whole: bytes.subarray(start, reader.offset), offset: base + start };
}

/** The dotted form of an OBJECT IDENTIFIER's content. */
export function decodeOid(element: DerElement, format: string): string {
  const reader = new ByteReader(element.content, format, element.offset);
  if (element.tag !== derTag.oid) reader.fail('OID', `tag 0x${element.tag.toString(16)} is not an OBJECT IDENTIFIER`);
  const arcs: number[] = [];
  while (reader.remaining > 0) {
    let arc = 0;
    for (;;) {
      const octet = reader.u8('OID');
      arc = arc * 128 + (octet & 0x7f);
      if (arc > 2 ** 40) reader.fail('OID', 'arc too large');
      if ((octet & 0x80) === 0) break;
    }
    if (arcs.length > 0) arcs.push(arc);
    else {
      const first = Math.min(2, Math.floor(arc / 40));
      arcs.push(first, arc - first * 40);
    }
  }
  return arcs.join('.');
}
