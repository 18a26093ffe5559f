/**
 * EDK II's authenticated variable store, as OVMF keeps it in its variables flash image (OVMF_VARS_4M.fd):
 *
 * ```
 * firmware volume header | variable store header | variable, padded to 4 | variable | … | 0xff … | fault-tolerant write area
 * ```
 *
 * Layouts: EDK II MdePkg/Include/Pi/PiFirmwareVolume.h and MdeModulePkg/Include/Guid/VariableFormat.h.
 */
import { X509Certificate } from 'node:crypto';
import { authenticatedAttributes, encodeEfiTime } from './authenticated-variable.ts';
import { alignUp, ByteReader } from './byte-reader.ts';
import {
  decodeSignatureLists,
  efiGlobalVariable,
  efiImageSecurityDatabase,
  type SecureBootVariables,
} from './efi-signature-list.ts';
import { decodeGuid, encodeGuid } from './guid.ts';

export interface StoredVariable {
  readonly name: string;
  readonly vendorGuid: string;
  readonly attributes: number;
  readonly data: Uint8Array;
  /** EFI_TIME of the last authenticated write; 16 zero bytes for other variables. @default zeros */
  readonly timestamp?: Uint8Array;
}

const format = 'UEFI variable store';
const nvDataGuid = 'fff12b8d-7696-4c8b-a985-2747075b4f50';
const authenticatedStoreGuid = 'aaf32c78-947b-439a-a180-2e144ec37792';
const secureBootEnableGuid = 'f0a30bc7-af08-4556-99c4-001009c93a44';
const customModeGuid = 'c076ec0c-7028-4399-a072-71ee5c448b9f';

const volumeSignature = 0x4856_465f;
const storeHeaderSize = 28;
const variableHeaderSize = 60;
const variableStart = 0x55aa;
/** Bits of a variable's state are cleared as its life goes on: written 0x3f, about to be replaced 0x3e. */
const stateAdded = 0x3f;
const stateBeingReplaced = 0x3e;
const nonVolatileBoot = 0x03;
const maxNameSize = 1024;

/** Where variables lie in the image. */
function storeRange(bytes: Uint8Array): { start: number; end: number } {
  const reader = new ByteReader(bytes, format);
  reader.seek(16, 'FileSystemGuid');
  const guid = decodeGuid(reader.take(16, 'FileSystemGuid'));
  if (guid !== nvDataGuid) reader.fail('FileSystemGuid', `${guid} is not the variable volume's`, 16);
  const volumeLength = reader.u64Number('FvLength', bytes.length);
  if (reader.u32('Signature') !== volumeSignature) reader.fail('Signature', 'not "_FVH"', 40);
  reader.u32('Attributes');
  const headerLength = reader.u16('HeaderLength');
  reader.seek(0, 'header');
  const header = new ByteReader(reader.take(headerLength, 'HeaderLength'), format);
  let sum = 0;
  for (let i = 0; i + 1 < headerLength; i += 2) sum = (sum + header.u16('header')) & 0xffff;
  if (sum !== 0) reader.fail('Checksum', 'the words of the volume header do not sum to zero', 50);
  const storeGuid = decodeGuid(reader.take(16, 'store GUID'));
  if (storeGuid !== authenticatedStoreGuid)
    reader.fail('store GUID', `${storeGuid} is not an authenticated store`, headerLength);
  const size = reader.u32('store size');
  const storeFormat = reader.u8('store format');
  const state = reader.u8('store state');
  if (storeFormat !== 0x5a || state !== 0xfe)
    reader.fail('store state', 'not formatted and healthy', headerLength + 20);
  if (size < storeHeaderSize || headerLength + size > volumeLength) {
    reader.fail('store size', `${size} bytes do not fit the volume of ${volumeLength}`, headerLength + 16);
  }
  return { start: headerLength + storeHeaderSize, end: headerLength + size };
}

/**
 * The live variables, in the order in which they are stored.
 *
 * @throws FormatError when the image is not an OVMF variables image or a variable is malformed.
 */
export function readVariables(image: Uint8Array): StoredVariable[] {
  const { start, end } = storeRange(image);
  const reader = new ByteReader(image.subarray(0, end), format).seek(start, 'variables');
  const found = new Map<string, { state: number; variable: StoredVariable }>();
  while (reader.remaining >= variableHeaderSize) {
    const at = reader.offset;
    if (reader.u16('StartId') !== variableStart) break;
    const state = reader.u8('State');
    reader.u8('Reserved');
    const attributes = reader.u32('Attributes');
    reader.u64('MonotonicCount');
    const timestamp = reader.take(16, 'TimeStamp');
    reader.u32('PubKeyIndex');
    const nameSize = reader.u32('NameSize');
    const dataSize = reader.u32('DataSize');
    if (nameSize < 2 || nameSize % 2 !== 0 || nameSize > maxNameSize)
      reader.fail('NameSize', `${nameSize} bytes`, at + 36);
    const vendorGuid = decodeGuid(reader.take(16, 'VendorGuid'));
    const name = Buffer.from(reader.take(nameSize, 'Name')).toString('utf16le').replace(/\0$/, '');
    const data = reader.take(dataSize, 'Data');
    reader.seek(Math.min(alignUp(reader.offset, 4), end), 'padding');
    if (state !== stateAdded && state !== stateBeingReplaced) continue;
    // A power cut can leave the old copy beside its replacement: then the replacement counts.
    const key = `${vendorGuid} ${name}`;
    if (state === stateBeingReplaced && found.get(key)?.state === stateAdded) continue;
    found.set(key, { state, variable: { name, vendorGuid, attributes, data, timestamp } });
  }
  return [...found.values()].map(({ variable }) => variable);
}

/** The image with exactly these variables, sorted by name, so that the same set gives the same bytes. */
export function writeVariables(image: Uint8Array, variables: readonly StoredVariable[]): Uint8Array {
  const { start, end } = storeRange(image);
  const sorted = variables.toSorted((a, b) =>
    a.name < b.name ? -1 : a.name > b.name ? 1 : a.vendorGuid < b.vendorGuid ? -1 : 1,
  );
  const encoded = Buffer.concat(sorted.map(encodeVariable));
  if (encoded.length > end - start) {
    throw new RangeError(`cannot write UEFI variables: ${encoded.length} bytes do not fit the store of ${end - start}`);
  }
  const output = new Uint8Array(image);
  output.fill(0xff, start, end);
  output.set(encoded, start);
  return output;
}

/** The image with one variable created, replaced, or (with empty data) deleted. */
export function setVariable(image: Uint8Array, variable: StoredVariable): Uint8Array {
  const others = readVariables(image).filter(
    ({ name, vendorGuid }) => name !== variable.name || vendorGuid !== variable.vendorGuid,
  );
  return writeVariables(image, variable.data.length === 0 ? others : [...others, variable]);
}

function encodeVariable(variable: StoredVariable): Uint8Array {
  const name = Buffer.from(`${variable.name}\0`, 'utf16le');
  if (variable.name === '' || name.length > maxNameSize) {
    throw new RangeError(`cannot write UEFI variables: name ${JSON.stringify(variable.name)} of ${name.length} bytes`);
  }
  const length = variableHeaderSize + name.length + variable.data.length;
  const bytes = Buffer.alloc(alignUp(length, 4), 0xff);
  bytes.fill(0, 0, variableHeaderSize);
  bytes.writeUInt16LE(variableStart, 0);
  bytes.writeUInt8(stateAdded, 2);
  bytes.writeUInt32LE(variable.attributes, 4);
  if (variable.timestamp !== undefined) bytes.set(variable.timestamp.subarray(0, 16), 16);
  bytes.writeUInt32LE(name.length, 36);
  bytes.writeUInt32LE(variable.data.length, 40);
  bytes.set(encodeGuid(variable.vendorGuid), 44);
  bytes.set(name, variableHeaderSize);
  bytes.set(variable.data, variableHeaderSize + name.length);
  return bytes;
}

/**
 * A variables image with the keys enrolled and Secure Boot enforced from the first boot: what the firmware's own setup
 * would have written. With a PK present SetupMode is 0; SecureBootEnable turns checking on; CustomMode off means that
 * the variables can only be changed by signed writes.
 *
 * @param image OVMF_VARS_4M.fd as OVMF ships it.
 */
export function enrollSecureBoot(image: Uint8Array, variables: SecureBootVariables): Uint8Array {
  const database = (name: string, vendorGuid: string, data: Uint8Array): StoredVariable => ({
    name,
    vendorGuid,
    attributes: authenticatedAttributes,
    data,
    timestamp: firstWriteTime(data),
  });
  const flag = (name: string, vendorGuid: string, value: number): StoredVariable => ({
    name,
    vendorGuid,
    attributes: nonVolatileBoot,
    data: Uint8Array.of(value),
  });
  const enrolled = [
    database('PK', efiGlobalVariable, variables.pk),
    database('KEK', efiGlobalVariable, variables.kek),
    database('db', efiImageSecurityDatabase, variables.db),
    database('dbx', efiImageSecurityDatabase, variables.dbx),
    flag('SecureBootEnable', secureBootEnableGuid, 1),
    flag('CustomMode', customModeGuid, 0),
  ];
  return enrolled.reduce(setVariable, image);
}

/** Later signed updates must be newer than this: a fixed day for hashes, else when the newest certificate begins. */
function firstWriteTime(lists: Uint8Array): Uint8Array {
  const certificates = decodeSignatureLists(lists)
    .filter(({ type }) => type === 'x509')
    .flatMap(({ signatures }) => signatures.map(({ data }) => new X509Certificate(data).validFromDate.getTime()));
  return encodeEfiTime(new Date(Math.max(Date.UTC(2010, 0, 1), ...certificates)));
}
