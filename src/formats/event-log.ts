/**
 * The TPM event log that firmware leaves for the operating system: crypto-agile, and the older form with SHA-1 digests
 * only (TCG PC Client Platform Firmware Profile §10). Untrusted until a quote over the PCRs that it explains.
 *
 * Logs of real machines break the specification in many ways, and a log that cannot be read is a machine that cannot be
 * judged. So only a log whose beginning makes no sense is refused; whatever else is wrong becomes a warning, on the event
 * or on the log, and what was read up to there can still be replayed. Nothing is lost by this: an event that is left out
 * or made up shows as a register that differs.
 */
import { ByteReader, FormatError } from './byte-reader.ts';
import { eventTypeName, noAction } from './event-types.ts';

export { noAction } from './event-types.ts';

/** TCG's algorithms by name; another one, whose digests can be shown but not replayed, by its number: `0x0027`. */
export type DigestAlgorithm =
  | 'sha1'
  | 'sha256'
  | 'sha384'
  | 'sha512'
  | 'sm3-256'
  | 'sha3-256'
  | 'sha3-384'
  | 'sha3-512'
  | `0x${string}`;

export interface EventLogEntry {
  /** Position in the log, from 0; the header of a crypto-agile log counts. */
  readonly index: number;
  /** As it is in the log: 0xffffffff and the like occur, and are no register. */
  readonly pcr: number;
  readonly type: number;
  /** The type's name in the specification, or `0x…`. */
  readonly typeName: string;
  readonly digests: ReadonlyMap<DigestAlgorithm, Uint8Array>;
  /** Event data: not what was hashed, for many types. */
  readonly data: Uint8Array;
  /** What is wrong with the event's frame, one sentence each. */
  readonly warnings: readonly string[];
}

export interface EventLog {
  readonly format: 'crypto-agile' | 'sha1';
  /** Banks that the header names; `sha1` alone for the older form. */
  readonly algorithms: readonly DigestAlgorithm[];
  /** The first event of a crypto-agile log, which is in the older form and is not extended. */
  readonly header?: EventLogEntry;
  /** Without the header event. */
  readonly entries: readonly EventLogEntry[];
  /** Bytes at the end in which no event was found, padding not counted. 0: the log was read whole. */
  readonly unreadBytes: number;
  /** What is wrong with the log as a whole, one sentence each. */
  readonly warnings: readonly string[];
}

/** Registers of a PC's TPM are 0 to this. */
export const maxPcr = 23;

const format = 'TPM event log';
export const maxLogBytes = 16 * 1024 * 1024;
const maxEntries = 16_384;
const maxEventBytes = 4 * 1024 * 1024;
const maxAlgorithms = 8;
const maxDigestBytes = 64;

const algorithmById = new Map<number, { name: DigestAlgorithm; size: number }>([
  [0x0004, { name: 'sha1', size: 20 }],
  [0x000b, { name: 'sha256', size: 32 }],
  [0x000c, { name: 'sha384', size: 48 }],
  [0x000d, { name: 'sha512', size: 64 }],
  [0x0012, { name: 'sm3-256', size: 32 }],
  [0x0027, { name: 'sha3-256', size: 32 }],
  [0x0028, { name: 'sha3-384', size: 48 }],
  [0x0029, { name: 'sha3-512', size: 64 }],
]);

type Algorithms = ReadonlyMap<number, { name: DigestAlgorithm; size: number }>;

/**
 * Reads a whole log, as securityfs gives it (`binary_bios_measurements`).
 *
 * @throws FormatError when there is no event at the beginning, the header names digests that cannot be, or it is over
 *   {@link maxLogBytes}.
 */
export function decodeEventLog(bytes: Uint8Array): EventLog {
  const reader = new ByteReader(bytes, format);
  if (bytes.length === 0) reader.fail('log', 'it is empty');
  if (bytes.length > maxLogBytes) reader.fail('log', `${bytes.length} bytes are over the limit of ${maxLogBytes}`);
  const first = readSha1Entry(reader, 0);
  const isAgile = first.type === noAction && startsWith(first.data, 'Spec ID Event03\0');
  if (!isAgile) {
    if (first.type !== noAction && first.pcr > maxPcr)
      reader.fail('pcrIndex', `${first.pcr} is no register, so this is no event log`, 0);
    if (bytes.every((octet) => octet === 0)) reader.fail('log', 'it is all zeros', 0);
    return { format: 'sha1', algorithms: ['sha1'], ...readEntries(bytes, reader.seek(0, 'log'), 0, readSha1Entry) };
  }
  const header = readHeader(first);
  const readAgile = (entryReader: ByteReader, index: number): EventLogEntry =>
    readAgileEntry(entryReader, index, header.algorithms);
  const rest = readEntries(bytes, reader, 1, readAgile);
  return {
    format: 'crypto-agile',
    algorithms: [...header.algorithms.values()].map(({ name }) => name),
    header: first,
    ...rest,
    warnings: [...header.warnings, ...rest.warnings],
  };
}

function readEntries(
  bytes: Uint8Array,
  reader: ByteReader,
  firstIndex: number,
  readEntry: (reader: ByteReader, index: number) => EventLogEntry,
): Pick<EventLog, 'entries' | 'unreadBytes' | 'warnings'> {
  const entries: EventLogEntry[] = [];
  const paddingStart = startOfPadding(bytes);
  while (reader.remaining > 0) {
    const start = reader.offset;
    const where = `event ${firstIndex + entries.length} at offset 0x${start.toString(16)}`;
    // Zeros read as events without digests; only what lies wholly in the padding is taken for padding.
    if (start >= paddingStart) return { entries, unreadBytes: 0, warnings: [] };
    const stop = (reason: string): Pick<EventLog, 'entries' | 'unreadBytes' | 'warnings'> => ({
      entries,
      unreadBytes: paddingStart - start,
      warnings: [`${where}: ${reason}; the ${paddingStart - start} bytes from there on are not read`],
    });
    if (entries.length === maxEntries) return stop(`there are over ${maxEntries} events`);
    try {
      entries.push(readEntry(reader, firstIndex + entries.length));
    } catch (error) {
      if (error instanceof FormatError) return stop(error.message);
      throw error;
    }
  }
  return { entries, unreadBytes: 0, warnings: [] };
}

/** Where the zeros, or the 0xff of erased flash, begin that fill the log's end. */
function startOfPadding(bytes: Uint8Array): number {
  const last = bytes[bytes.length - 1];
  if (last !== 0 && last !== 0xff) return bytes.length;
  let start = bytes.length;
  while (start > 0 && bytes[start - 1] === last) start -= 1;
  return start;
}

/** TCG_EfiSpecIDEvent (§10.4.5.1), in the old form so that old readers skip it; it names the digests of all others. */
function readHeader(first: EventLogEntry): { algorithms: Algorithms; warnings: string[] } {
  // The header's data begins after the 32 bytes of its frame.
  const header = new ByteReader(first.data, format, 32);
  header.take(24, 'signature, platform class and versions');
  const count = header.u32('numberOfAlgorithms');
  if (count < 1 || count > maxAlgorithms) header.fail('numberOfAlgorithms', `${count} is not 1 to ${maxAlgorithms}`);
  const algorithms = new Map<number, { name: DigestAlgorithm; size: number }>();
  const warnings: string[] = [];
  for (let i = 0; i < count; i++) {
    const id = header.u16('algorithmId');
    const size = header.u16('digestSize');
    const known = algorithmById.get(id);
    if (size < 1 || size > maxDigestBytes || (known !== undefined && known.size !== size) || algorithms.has(id)) {
      header.fail('algorithmId', `${algorithmName(id)} with ${size} bytes cannot be, or is there twice`);
    }
    if (known === undefined)
      warnings.push(`the header names algorithm ${algorithmName(id)}, which is not known: that bank is not replayed`);
    algorithms.set(id, { name: algorithmName(id), size });
  }
  if (header.remaining === 0 || header.u8('vendorInfoSize') !== header.remaining)
    warnings.push('the header is not as long as it says');
  return { algorithms, warnings };
}

function algorithmName(id: number): DigestAlgorithm {
  return algorithmById.get(id)?.name ?? `0x${id.toString(16).padStart(4, '0')}`;
}

/** TCG_PCR_EVENT (§10.2.1): one SHA-1 digest. */
function readSha1Entry(reader: ByteReader, index: number): EventLogEntry {
  const pcr = reader.u32('pcrIndex');
  const type = reader.u32('eventType');
  const digests = new Map<DigestAlgorithm, Uint8Array>([['sha1', reader.take(20, 'digest')]]);
  const data = readData(reader);
  return { index, pcr, type, typeName: eventTypeName(type), digests, data, warnings: frameWarnings(pcr, type) };
}

/** TCG_PCR_EVENT2 (§10.2.2): a list of digests, of any algorithm that the header names. */
function readAgileEntry(reader: ByteReader, index: number, algorithms: Algorithms): EventLogEntry {
  const pcr = reader.u32('pcrIndex');
  const type = reader.u32('eventType');
  const count = reader.u32('digest count');
  if (count > 2 * maxAlgorithms) reader.fail('digest count', `${count} cannot be`, reader.offset - 4);
  const warnings = frameWarnings(pcr, type);
  const digests = new Map<DigestAlgorithm, Uint8Array>();
  for (let i = 0; i < count; i++) {
    const id = reader.u16('digest algorithm');
    const named = algorithms.get(id);
    const algorithm = named ?? algorithmById.get(id);
    if (algorithm === undefined)
      return reader.fail('digest algorithm', `${algorithmName(id)} is not in the header`, reader.offset - 2);
    if (named === undefined) warnings.push(`its ${algorithm.name} digest is of a bank that the header does not name`);
    const digest = reader.take(algorithm.size, 'digest');
    if (digests.has(algorithm.name)) warnings.push(`it has two ${algorithm.name} digests; the first counts`);
    else digests.set(algorithm.name, digest);
  }
  const data = readData(reader);
  if (type !== noAction) {
    const missing = [...algorithms.values()].filter(({ name }) => !digests.has(name)).map(({ name }) => name);
    if (missing.length > 0) warnings.push(`it has no ${missing.join(', ')} digest`);
  }
  return { index, pcr, type, typeName: eventTypeName(type), digests, data, warnings };
}

function readData(reader: ByteReader): Uint8Array {
  const size = reader.u32('eventSize');
  if (size > maxEventBytes)
    reader.fail('eventSize', `${size} is over the limit of ${maxEventBytes}`, reader.offset - 4);
  return reader.take(size, 'event');
}

/** EV_NO_ACTION may have any index; everything that is extended has a register. */
function frameWarnings(pcr: number, type: number): string[] {
  return type !== noAction && pcr > maxPcr ? [`PCR ${pcr} is no register: it is not replayed`] : [];
}

function startsWith(bytes: Uint8Array, text: string): boolean {
  return Buffer.from(bytes.subarray(0, text.length)).toString('latin1') === text;
}
