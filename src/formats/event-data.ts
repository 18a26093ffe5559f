/**
 * What an event of a TPM event log says, by its type (TCG PC Client Platform Firmware Profile §10). Untrusted, and of
 * many makers: nothing here refuses an event, what cannot be read is shown as bytes.
 */
import { ByteReader, FormatError } from './byte-reader.ts';
import { formatDevicePath } from './device-path.ts';
import { decodeAuthority, decodeVariableData, decodeVariableValue, type VariableValue } from './efi-variable-data.ts';
import { decodeNoAction, type NoActionData } from './event-data-no-action.ts';
import type { EventLogEntry } from './event-log.ts';
import { eventType } from './event-types.ts';
import { decodeGuid } from './guid.ts';

/** For JSON: `kind` tells the other keys. Numbers of 64 bits are text, `0x…`. */
export type EventData =
  | NoActionData
  | { readonly kind: 'empty' }
  | { readonly kind: 'bytes'; readonly hex: string }
  | { readonly kind: 'text'; readonly text: string; readonly encoding: 'ascii' | 'utf-16' }
  | { readonly kind: 'separator'; readonly meaning: 'end of firmware' | 'error'; readonly value: string }
  | {
      readonly kind: 'variable' | 'authority';
      readonly name: string;
      readonly vendorGuid: string;
      readonly sizeBytes: number;
      readonly value: VariableValue;
    }
  | {
      readonly kind: 'image-load';
      readonly address: string;
      readonly sizeBytes: string;
      readonly linkTimeAddress: string;
      readonly devicePath: string;
    }
  | {
      readonly kind: 'partition-table';
      readonly diskGuid: string;
      readonly partitions: readonly {
        readonly typeGuid: string;
        readonly uniqueGuid: string;
        readonly startLba: string;
        readonly endLba: string;
        readonly name: string;
      }[];
    }
  | {
      readonly kind: 'firmware-blob';
      readonly description?: string;
      readonly address: string;
      readonly sizeBytes: string;
    }
  | {
      readonly kind: 'tables';
      readonly description?: string;
      readonly tables: readonly { readonly guid: string; readonly address: string }[];
    }
  | { readonly kind: 'tag'; readonly id: string; readonly name?: string; readonly hex: string; readonly text?: string }
  | { readonly kind: 'device'; readonly signature: string; readonly hex: string };

export interface DecodedEventData {
  readonly data: EventData;
  /** What could not be read, one sentence each. */
  readonly warnings: readonly string[];
}

const maxStructurePadding = 16;
const maxTables = 1024;
const maxPartitions = 1024;
const headerSize = 92;
const smallestEntry = 128;
const largestEntry = 4096;

/** Of systemd-stub and of Linux's EFI stub. */
const tagNames = new Map<number, string>([
  [0x8f3b_22ec, 'Linux initrd'],
  [0x8f3b_22ed, 'Linux command line'],
  [0xf5bc_582a, 'loader.conf'],
  [0x6c46_f751, 'device tree addon'],
  [0x49df_fe0f, 'initrd addon'],
  [0xdac0_8e1a, 'microcode addon'],
  [0x13aa_d5b5, 'UKI profile'],
  [0xd5cb_7cbc, 'SMBIOS table'],
]);

type Decoder = (reader: ByteReader, warnings: string[]) => EventData;

/** Never throws: what cannot be read is shown as bytes, with a warning. */
export function decodeEventData(entry: Pick<EventLogEntry, 'type' | 'typeName' | 'data'>): DecodedEventData {
  const { type, typeName, data } = entry;
  const warnings: string[] = [];
  if (data.length === 0) return { data: { kind: 'empty' }, warnings };
  try {
    const reader = new ByteReader(data, `${typeName} data`);
    const decoder = decoders.get(type);
    if (decoder === undefined) {
      warnings.push(`type ${typeName} is not in the specification: shown as bytes`);
      return { data: bytesOrText(reader), warnings };
    }
    const decoded = decoder(reader, warnings);
    // Firmware that takes the size of a C structure for the size of its content logs a few bytes too many.
    const left = reader.take(reader.remaining, 'rest');
    if (left.length > maxStructurePadding && left.some((octet) => octet !== 0))
      warnings.push(`${left.length} bytes follow the event's data`);
    return { data: decoded, warnings };
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    warnings.push(error.message);
    return { data: { kind: 'bytes', hex: Buffer.from(data).toString('hex') }, warnings };
  }
}

const hexNumber = (value: bigint): string => `0x${value.toString(16)}`;
const takeRest = (reader: ByteReader): Uint8Array => reader.take(reader.remaining, 'data');
const hexOf = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** Text when it is printable, in either encoding that boot loaders use, else bytes. */
function bytesOrText(reader: ByteReader): EventData {
  const bytes = Buffer.from(takeRest(reader));
  const ascii = bytes.toString('latin1').replace(/\0+$/, '');
  if (/^[\t\n\r\x20-\x7e]+$/.test(ascii)) return { kind: 'text', text: ascii, encoding: 'ascii' };
  if (bytes.length % 2 === 0) {
    const wide = bytes.toString('utf16le').replace(/\0+$/, '');
    if (/^[\t\n\r\x20-\x7e\xa0-\u024f]+$/.test(wide)) return { kind: 'text', text: wide, encoding: 'utf-16' };
  }
  return { kind: 'bytes', hex: bytes.toString('hex') };
}

const decoders = new Map<number, Decoder>([
  [eventType.noAction, noActionData],
  [eventType.separator, separatorData],
  [eventType.eventTag, tagData],
  [eventType.postCode, blobOrText],
  [eventType.postCode2, (reader) => firmwareBlob(reader, true)],
  [eventType.sCrtmContents, blobOrText],
  [eventType.sCrtmVersion, versionData],
  [eventType.efiVariableDriverConfig, (reader, warnings) => variableData(reader, warnings, 'variable')],
  [eventType.efiVariableBoot, (reader, warnings) => variableData(reader, warnings, 'variable')],
  [eventType.efiVariableBoot2, (reader, warnings) => variableData(reader, warnings, 'variable')],
  [eventType.efiVariableAuthority, (reader, warnings) => variableData(reader, warnings, 'authority')],
  [eventType.efiBootServicesApplication, imageLoad],
  [eventType.efiBootServicesDriver, imageLoad],
  [eventType.efiRuntimeServicesDriver, imageLoad],
  [eventType.efiGptEvent, partitionTable],
  [eventType.efiGptEvent2, partitionTable],
  [eventType.efiPlatformFirmwareBlob, (reader) => firmwareBlob(reader, false)],
  [eventType.efiPlatformFirmwareBlob2, (reader) => firmwareBlob(reader, true)],
  [eventType.efiHandoffTables, (reader) => handoffTables(reader, false)],
  [eventType.efiHandoffTables2, (reader) => handoffTables(reader, true)],
  [eventType.efiSpdmFirmwareBlob, deviceData],
  [eventType.efiSpdmFirmwareConfig, deviceData],
  [eventType.efiSpdmDevicePolicy, (reader, warnings) => variableData(reader, warnings, 'variable')],
  [eventType.efiSpdmDeviceAuthority, (reader, warnings) => variableData(reader, warnings, 'authority')],
  ...[
    eventType.prebootCert,
    eventType.action,
    eventType.cpuMicrocode,
    eventType.platformConfigFlags,
    eventType.tableOfDevices,
    eventType.compactHash,
    eventType.ipl,
    eventType.iplPartitionData,
    eventType.nonhostCode,
    eventType.nonhostConfig,
    eventType.nonhostInfo,
    eventType.omitBootDeviceEvents,
    eventType.efiAction,
    eventType.efiHcrtmEvent,
  ].map((type): [number, Decoder] => [type, bytesOrText]),
]);

function noActionData(reader: ByteReader, warnings: string[]): EventData {
  const bytes = takeRest(reader);
  const decoded = decodeNoAction(bytes);
  if (decoded === undefined) {
    warnings.push('it has no signature that tells what it is');
    return bytesOrText(new ByteReader(bytes, 'EV_NO_ACTION data'));
  }
  if (decoded.trailingBytes > 0) warnings.push(`${decoded.trailingBytes} bytes follow the event's data`);
  return decoded.data;
}

/** Zeros or, by an older rule, ones end the firmware's part of a register; 1 says that something failed (§3.3.2.2). */
function separatorData(reader: ByteReader, warnings: string[]): EventData {
  if (reader.remaining < 4) reader.fail('separator', `${reader.remaining} bytes instead of 4`);
  const value = reader.u32('separator');
  // Windows' loader ends its registers with a word.
  if (value === 0x4c43_4257) return { kind: 'separator', meaning: 'end of firmware', value: 'WBCL' };
  if (value !== 0 && value !== 1 && value !== 0xffff_ffff) warnings.push('the separator is not 0, 1 or ones');
  const isNormal = value === 0 || value === 0xffff_ffff;
  return { kind: 'separator', meaning: isNormal ? 'end of firmware' : 'error', value: hexNumber(BigInt(value)) };
}

/** TCG_PCClientTaggedEvent (§10.4.2.1). */
function tagData(reader: ByteReader): EventData {
  const id = reader.u32('taggedEventID');
  const bytes = reader.take(reader.u32('taggedEventDataSize'), 'taggedEventData');
  const name = tagNames.get(id);
  const shown = bytes.length === 0 ? undefined : bytesOrText(new ByteReader(bytes, 'tagged event'));
  return {
    kind: 'tag',
    id: `0x${id.toString(16)}`,
    ...(name === undefined ? {} : { name }),
    hex: hexOf(bytes),
    ...(shown?.kind === 'text' ? { text: shown.text } : {}),
  };
}

/** Words such as "ACPI DATA", or, from UEFI firmware, where the code lies. */
function blobOrText(reader: ByteReader): EventData {
  const start = reader.offset;
  const shown = bytesOrText(reader);
  if (shown.kind === 'text' || reader.offset - start !== 16) return shown;
  return firmwareBlob(reader.seek(start, 'blob'), false);
}

/** A version is text, as a rule in UTF-16, or a GUID (§3.3.4.1). */
function versionData(reader: ByteReader): EventData {
  const start = reader.offset;
  const shown = bytesOrText(reader);
  if (shown.kind === 'text' || reader.offset - start !== 16) return shown;
  return { kind: 'text', text: decodeGuid(reader.seek(start, 'version').take(16, 'version')), encoding: 'ascii' };
}

function variableData(reader: ByteReader, warnings: string[], kind: 'variable' | 'authority'): EventData {
  const variable = decodeVariableData(takeRest(reader));
  if (variable.trailingBytes > maxStructurePadding)
    warnings.push(`${variable.trailingBytes} bytes follow the variable`);
  const isAuthority = kind === 'authority' && variable.data.length > 16 && variable.name !== 'SbatLevel';
  const decoded = isAuthority ? decodeAuthority(variable.data) : decodeVariableValue(variable);
  warnings.push(...decoded.warnings);
  return {
    kind,
    name: variable.name,
    vendorGuid: variable.vendorGuid,
    sizeBytes: variable.data.length,
    value: decoded.value,
  };
}

/** UEFI_IMAGE_LOAD_EVENT (§10.2.3). */
function imageLoad(reader: ByteReader, warnings: string[]): EventData {
  const address = hexNumber(reader.u64('ImageLocationInMemory'));
  const sizeBytes = hexNumber(reader.u64('ImageLengthInMemory'));
  const linkTimeAddress = hexNumber(reader.u64('ImageLinkTimeAddress'));
  const pathLength = reader.u64Number('LengthOfDevicePath', 65_536);
  const path = formatDevicePath(reader.take(pathLength, 'DevicePath'));
  warnings.push(...path.warnings);
  return { kind: 'image-load', address, sizeBytes, linkTimeAddress, devicePath: path.text };
}

/** UEFI_GPT_DATA (§10.2.4): the header, how many entries are used, those entries. */
function partitionTable(reader: ByteReader): EventData {
  const header = new ByteReader(reader.take(headerSize, 'header'), 'UEFI_GPT_DATA');
  const diskGuid = decodeGuid(header.seek(56, 'DiskGUID').take(16, 'DiskGUID'));
  const entrySize = header.seek(84, 'SizeOfPartitionEntry').u32('SizeOfPartitionEntry');
  if (entrySize < smallestEntry || entrySize > largestEntry)
    reader.fail('SizeOfPartitionEntry', `${entrySize} is not ${smallestEntry} to ${largestEntry}`);
  const count = reader.u64Number('NumberOfPartitions', maxPartitions);
  const partitions = [];
  for (let i = 0; i < count; i++) {
    const entry = new ByteReader(reader.take(entrySize, `entry ${i}`), 'UEFI_GPT_DATA');
    partitions.push({
      typeGuid: decodeGuid(entry.take(16, 'PartitionTypeGUID')),
      uniqueGuid: decodeGuid(entry.take(16, 'UniquePartitionGUID')),
      startLba: hexNumber(entry.u64('StartingLBA')),
      endLba: hexNumber(entry.u64('EndingLBA')),
      name: Buffer.from(entry.seek(56, 'PartitionName').take(72, 'PartitionName'))
        .toString('utf16le')
        .replace(/\0.*$/s, ''),
    });
  }
  return { kind: 'partition-table', diskGuid, partitions };
}

/** UEFI_PLATFORM_FIRMWARE_BLOB, and BLOB2 with a description in front (§10.2.5). */
function firmwareBlob(reader: ByteReader, isDescribed: boolean): EventData {
  const description = isDescribed ? { description: describe(reader) } : {};
  const address = hexNumber(reader.u64('BlobBase'));
  return { kind: 'firmware-blob', ...description, address, sizeBytes: hexNumber(reader.u64('BlobLength')) };
}

/** UEFI_HANDOFF_TABLE_POINTERS, and POINTERS2 with a description in front (§10.2.7). */
function handoffTables(reader: ByteReader, isDescribed: boolean): EventData {
  const description = isDescribed ? { description: describe(reader) } : {};
  const count = reader.u64Number('NumberOfTables', maxTables);
  const tables = [];
  for (let i = 0; i < count; i++) {
    tables.push({ guid: decodeGuid(reader.take(16, 'VendorGuid')), address: hexNumber(reader.u64('VendorTable')) });
  }
  return { kind: 'tables', ...description, tables };
}

function describe(reader: ByteReader): string {
  const bytes = reader.take(reader.u8('description size'), 'description');
  return Buffer.from(bytes).toString('latin1').replace(/\0+$/, '');
}

/** DEVICE_SECURITY_EVENT_DATA (§10.2.8): measurements that a device signed; the signature tells the version. */
function deviceData(reader: ByteReader): EventData {
  const signature = Buffer.from(reader.take(16, 'Signature')).toString('latin1').replace(/\0+$/, '');
  return { kind: 'device', signature, hex: hexOf(takeRest(reader)) };
}
