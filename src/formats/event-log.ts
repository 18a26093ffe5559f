/**
 * The TPM event log that firmware leaves for the operating system, in the crypto-agile format (TCG PC Client Platform
 * Firmware Profile §10). Untrusted until a quote over the PCRs that it explains.
 */
import { ByteReader } from './byte-reader.ts';

export type DigestAlgorithm = 'sha1' | 'sha256' | 'sha384' | 'sha512' | 'sm3-256';

export interface EventLogEntry {
  readonly pcr: number;
  readonly type: number;
  /** The type's name in the specification, or `0x…`. */
  readonly typeName: string;
  readonly digests: ReadonlyMap<DigestAlgorithm, Uint8Array>;
  /** Event data: not what was hashed, for many types. */
  readonly data: Uint8Array;
}

export interface EventLog {
  readonly algorithms: readonly DigestAlgorithm[];
  /** Without the header event. */
  readonly entries: readonly EventLogEntry[];
}

export const noAction = 0x3;

const format = 'TPM event log';
const maxLogBytes = 16 * 1024 * 1024;
const maxEntries = 16_384;
const maxEventBytes = 4 * 1024 * 1024;
const maxAlgorithms = 8;

const algorithmById = new Map<number, { name: DigestAlgorithm; size: number }>([
  [0x0004, { name: 'sha1', size: 20 }],
  [0x000b, { name: 'sha256', size: 32 }],
  [0x000c, { name: 'sha384', size: 48 }],
  [0x000d, { name: 'sha512', size: 64 }],
  [0x0012, { name: 'sm3-256', size: 32 }],
]);

const typeNames = new Map<number, string>([
  [0x0, 'EV_PREBOOT_CERT'],
  [0x1, 'EV_POST_CODE'],
  [0x3, 'EV_NO_ACTION'],
  [0x4, 'EV_SEPARATOR'],
  [0x5, 'EV_ACTION'],
  [0x6, 'EV_EVENT_TAG'],
  [0x7, 'EV_S_CRTM_CONTENTS'],
  [0x8, 'EV_S_CRTM_VERSION'],
  [0x9, 'EV_CPU_MICROCODE'],
  [0xa, 'EV_PLATFORM_CONFIG_FLAGS'],
  [0xb, 'EV_TABLE_OF_DEVICES'],
  [0xc, 'EV_COMPACT_HASH'],
  [0xd, 'EV_IPL'],
  [0xe, 'EV_IPL_PARTITION_DATA'],
  [0x8000_0001, 'EV_EFI_VARIABLE_DRIVER_CONFIG'],
  [0x8000_0002, 'EV_EFI_VARIABLE_BOOT'],
  [0x8000_0003, 'EV_EFI_BOOT_SERVICES_APPLICATION'],
  [0x8000_0004, 'EV_EFI_BOOT_SERVICES_DRIVER'],
  [0x8000_0005, 'EV_EFI_RUNTIME_SERVICES_DRIVER'],
  [0x8000_0006, 'EV_EFI_GPT_EVENT'],
  [0x8000_0007, 'EV_EFI_ACTION'],
  [0x8000_0008, 'EV_EFI_PLATFORM_FIRMWARE_BLOB'],
  [0x8000_0009, 'EV_EFI_HANDOFF_TABLES'],
  [0x8000_000a, 'EV_EFI_PLATFORM_FIRMWARE_BLOB2'],
  [0x8000_000b, 'EV_EFI_HANDOFF_TABLES2'],
  [0x8000_000c, 'EV_EFI_VARIABLE_BOOT2'],
  [0x8000_0010, 'EV_EFI_HCRTM_EVENT'],
  [0x8000_00e0, 'EV_EFI_VARIABLE_AUTHORITY'],
  [0x8000_00e1, 'EV_EFI_SPDM_FIRMWARE_BLOB'],
]);

/**
 * Reads a whole log, as securityfs gives it (`binary_bios_measurements`).
 *
 * @throws FormatError when it is not crypto-agile, an event has a digest the header does not name, or a limit is passed.
 */
export function decodeEventLog(bytes: Uint8Array): EventLog {
  const reader = new ByteReader(bytes, format);
  if (bytes.length > maxLogBytes) reader.fail('log', `${bytes.length} bytes are over the limit of ${maxLogBytes}`, 0);
  const algorithms = readHeader(reader);
  const entries: EventLogEntry[] = [];
  while (reader.remaining > 0) {
    if (entries.length === maxEntries) reader.fail('events', `over ${maxEntries}`);
    entries.push(readEntry(reader, algorithms));
  }
  return { algorithms, entries };
}

/** The first event is in the old format, so that old readers skip it; it names the digests of all others. */
function readHeader(reader: ByteReader): DigestAlgorithm[] {
  reader.u32('header PCR');
  if (reader.u32('header type') !== noAction) reader.fail('header type', 'not EV_NO_ACTION: no crypto-agile log', 4);
  reader.take(20, 'header digest');
  const size = reader.u32('header size');
  const start = reader.offset;
  const header = new ByteReader(reader.take(size, 'header'), format, start);
  if (Buffer.from(header.take(16, 'signature')).toString('latin1') !== 'Spec ID Event03\0') {
    header.fail('signature', 'not "Spec ID Event03"', 0);
  }
  header.take(8, 'platform class and versions');
  const count = header.u32('numberOfAlgorithms');
  if (count < 1 || count > maxAlgorithms) header.fail('numberOfAlgorithms', `${count} is not 1 to ${maxAlgorithms}`);
  const algorithms = Array.from({ length: count }, () => {
    const id = header.u16('algorithmId');
    const digestSize = header.u16('digestSize');
    const known = algorithmById.get(id);
    if (known?.size !== digestSize)
      return header.fail('algorithmId', `0x${id.toString(16)} with ${digestSize} bytes is not known`);
    return known.name;
  });
  header.take(header.u8('vendorInfoSize'), 'vendorInfo');
  header.end('header');
  return algorithms;
}

function readEntry(reader: ByteReader, algorithms: readonly DigestAlgorithm[]): EventLogEntry {
  const start = reader.offset;
  const pcr = reader.u32('pcrIndex');
  const type = reader.u32('eventType');
  const count = reader.u32('digest count');
  if (count > algorithms.length)
    reader.fail('digest count', `${count}, the header names ${algorithms.length}`, start + 8);
  const digests = new Map<DigestAlgorithm, Uint8Array>();
  for (let i = 0; i < count; i++) {
    const id = reader.u16('digest algorithm');
    const known = algorithmById.get(id);
    if (known === undefined || !algorithms.includes(known.name) || digests.has(known.name)) {
      return reader.fail('digest algorithm', `0x${id.toString(16)} is not in the header, or twice in the event`);
    }
    digests.set(known.name, reader.take(known.size, 'digest'));
  }
  const size = reader.u32('eventSize');
  if (size > maxEventBytes) reader.fail('eventSize', `${size} is over the limit of ${maxEventBytes}`);
  const data = reader.take(size, 'event');
  // EV_NO_ACTION may have any index; everything that is extended has a register.
  if (type !== noAction && pcr > 23) reader.fail('pcrIndex', `${pcr} is not a register`, start);
  return { pcr, type, typeName: typeNames.get(type) ?? `0x${type.toString(16)}`, digests, data };
}
