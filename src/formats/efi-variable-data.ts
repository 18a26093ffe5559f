/**
 * UEFI_VARIABLE_DATA, the form in which firmware measures variables (TCG PC Client Platform Firmware Profile §10.2.6), and
 * what the variables that it measures hold.
 */
import { X509Certificate } from 'node:crypto';
import { ByteReader, FormatError } from './byte-reader.ts';
import { formatDevicePath } from './device-path.ts';
import { decodeSignatureLists, efiGlobalVariable } from './efi-signature-list.ts';
import { decodeGuid, encodeGuid } from './guid.ts';

export interface VariableData {
  readonly name: string;
  readonly vendorGuid: string;
  readonly data: Uint8Array;
  /** Bytes after the structure: some firmware has them. */
  readonly trailingBytes: number;
}

const format = 'UEFI_VARIABLE_DATA';
const maxNameCharacters = 4096;
const maxShownSignatures = 4096;

/** GUID ‖ u64 characters of the name ‖ u64 length ‖ name, UTF-16 without NUL ‖ data. */
export function encodeVariableData(name: string, vendorGuid: string, data: Uint8Array): Uint8Array {
  const sizes = Buffer.alloc(16);
  sizes.writeBigUInt64LE(BigInt(name.length), 0);
  sizes.writeBigUInt64LE(BigInt(data.length), 8);
  return Buffer.concat([encodeGuid(vendorGuid), sizes, Buffer.from(name, 'utf16le'), data]);
}

/** @throws FormatError when the lengths do not fit the bytes. */
export function decodeVariableData(bytes: Uint8Array): VariableData {
  const reader = new ByteReader(bytes, format);
  const vendorGuid = decodeGuid(reader.take(16, 'VariableName'));
  const nameCharacters = reader.u64Number('UnicodeNameLength', maxNameCharacters);
  const dataLength = reader.u64Number('VariableDataLength', bytes.length);
  const name = Buffer.from(reader.take(nameCharacters * 2, 'UnicodeName'))
    .toString('utf16le')
    .replace(/\0+$/, '');
  const data = reader.take(dataLength, 'VariableData');
  return { name, vendorGuid, data, trailingBytes: reader.remaining };
}

export interface ShownSignature {
  readonly ownerGuid: string;
  readonly type: 'x509' | 'sha256' | 'other';
  /** Of a certificate: its subject. */
  readonly subject?: string;
  /** SHA-256 of the entry's data; of a hash entry the hash itself. */
  readonly sha256?: string;
}

/** What a variable holds, as far as its name tells how to read it. For JSON. */
export type VariableValue =
  | { readonly kind: 'boolean'; readonly value: boolean }
  | { readonly kind: 'signature-lists'; readonly signatures: readonly ShownSignature[] }
  | { readonly kind: 'boot-order'; readonly entries: readonly string[] }
  | {
      readonly kind: 'load-option';
      readonly isActive: boolean;
      readonly description: string;
      readonly devicePath: string;
      readonly optionalDataHex: string;
    }
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'empty' }
  | { readonly kind: 'bytes'; readonly hex: string };

export interface DecodedVariableValue {
  readonly value: VariableValue;
  readonly warnings: readonly string[];
}

const switches = new Set([
  'SecureBoot',
  'SetupMode',
  'AuditMode',
  'DeployedMode',
  'MokSBState',
  'MokListTrusted',
  'VendorKeys',
]);
const databases = new Set([
  'PK',
  'KEK',
  'db',
  'dbx',
  'dbt',
  'dbr',
  'MokList',
  'MokListX',
  'MokListRT',
  'MokListTrusted',
]);

/** Never throws: what cannot be read is shown as bytes, with a warning. */
export function decodeVariableValue({ name, vendorGuid, data }: VariableData): DecodedVariableValue {
  const asBytes = { kind: 'bytes', hex: Buffer.from(data).toString('hex') } as const;
  if (data.length === 0) return { value: { kind: 'empty' }, warnings: [] };
  try {
    if (switches.has(name) && data.length === 1) {
      return { value: { kind: 'boolean', value: data[0] === 1 }, warnings: [] };
    }
    if (databases.has(name)) return { value: signatureLists(data), warnings: [] };
    const isGlobal = vendorGuid === efiGlobalVariable;
    if (isGlobal && /^(Boot|Driver|SysPrep)Order$/.test(name)) return { value: bootOrder(data), warnings: [] };
    if (isGlobal && /^(Boot|Driver|SysPrep|PlatformRecovery)[0-9A-Fa-f]{4}$/.test(name)) return loadOption(data);
    if (name === 'SbatLevel' || name === 'SbatLevelRT') {
      return { value: { kind: 'text', text: Buffer.from(data).toString('latin1') }, warnings: [] };
    }
    return { value: asBytes, warnings: [] };
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    return { value: asBytes, warnings: [`the content of variable ${JSON.stringify(name)}: ${error.message}`] };
  }
}

/** What firmware measures as the authority that let an image run: EFI_SIGNATURE_DATA, owner GUID ‖ certificate. */
export function decodeAuthority(data: Uint8Array): DecodedVariableValue {
  if (data.length <= 16) {
    const hex = Buffer.from(data).toString('hex');
    return { value: { kind: 'bytes', hex }, warnings: ['the authority is too short for an owner and a certificate'] };
  }
  const type = data[16] === 0x30 ? 'x509' : data.length === 48 ? 'sha256' : 'other';
  const ownerGuid = decodeGuid(data.subarray(0, 16));
  const shown = showSignature(type, { ownerGuid, data: data.subarray(16) });
  return { value: { kind: 'signature-lists', signatures: [shown] }, warnings: [] };
}

function signatureLists(data: Uint8Array): VariableValue {
  const signatures: ShownSignature[] = [];
  for (const list of decodeSignatureLists(data)) {
    for (const signature of list.signatures) {
      if (signatures.length === maxShownSignatures) return { kind: 'signature-lists', signatures };
      signatures.push(showSignature(list.type, signature));
    }
  }
  return { kind: 'signature-lists', signatures };
}

function showSignature(
  type: ShownSignature['type'],
  { ownerGuid, data }: { ownerGuid: string; data: Uint8Array },
): ShownSignature {
  if (type === 'sha256') return { ownerGuid, type, sha256: Buffer.from(data).toString('hex') };
  if (type !== 'x509') return { ownerGuid, type };
  try {
    const certificate = new X509Certificate(data);
    const sha256 = certificate.fingerprint256.replaceAll(':', '').toLowerCase();
    return { ownerGuid, type, subject: certificate.subject.replaceAll('\n', ', '), sha256 };
  } catch {
    return { ownerGuid, type: 'other' };
  }
}

function bootOrder(data: Uint8Array): VariableValue {
  const reader = new ByteReader(data, 'BootOrder');
  const entries: string[] = [];
  while (reader.remaining > 0) entries.push(reader.u16('entry').toString(16).toUpperCase().padStart(4, '0'));
  return { kind: 'boot-order', entries };
}

/** EFI_LOAD_OPTION (UEFI §3.1.3). */
function loadOption(data: Uint8Array): DecodedVariableValue {
  const reader = new ByteReader(data, 'EFI_LOAD_OPTION');
  const attributes = reader.u32('Attributes');
  const pathLength = reader.u16('FilePathListLength');
  const units: number[] = [];
  for (let unit = reader.u16('Description'); unit !== 0; unit = reader.u16('Description')) units.push(unit);
  const path = formatDevicePath(reader.take(pathLength, 'FilePathList'));
  return {
    value: {
      kind: 'load-option',
      isActive: (attributes & 1) === 1,
      description: Buffer.from(Uint16Array.from(units).buffer).toString('utf16le'),
      devicePath: path.text,
      optionalDataHex: Buffer.from(reader.take(reader.remaining, 'OptionalData')).toString('hex'),
    },
    warnings: path.warnings,
  };
}
