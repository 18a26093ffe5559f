/**
 * UEFI device paths (UEFI specification §10) in the text form of §10.6: where firmware found what it started. Untrusted
 * and of many vendors, so that nothing here refuses a path: what is not known is shown as bytes.
 */
import { ByteReader, FormatError } from './byte-reader.ts';
import { decodeGuid } from './guid.ts';

export interface DevicePathText {
  /** `PciRoot(0x0)/Pci(0x2,0x0)/HD(1,GPT,…)/\EFI\BOOT\BOOTX64.EFI`. */
  readonly text: string;
  readonly warnings: readonly string[];
}

const format = 'device path';
const maxNodes = 128;
const maxNodeHex = 512;

/** The first path in `bytes`; a boot option may have more behind it, for the system that it starts. Never throws. */
export function formatDevicePath(bytes: Uint8Array): DevicePathText {
  const reader = new ByteReader(bytes, format);
  const instances: string[][] = [[]];
  const warnings: string[] = [];
  let nodes = 0;
  let hasEnded = false;
  while (!hasEnded && reader.remaining >= 4) {
    if (nodes === maxNodes) {
      warnings.push(`the device path has over ${maxNodes} parts`);
      break;
    }
    nodes += 1;
    const type = reader.u8('Type');
    const subType = reader.u8('SubType');
    const length = reader.u16('Length');
    if (length < 4 || length - 4 > reader.remaining) {
      warnings.push(`part ${nodes} of the device path says that it has ${length} bytes`);
      break;
    }
    const body = reader.take(length - 4, 'node');
    // Bit 7 of an end node's type was set by old firmware.
    if ((type & 0x7f) === 0x7f) {
      if (subType === 0x01) instances.push([]);
      else hasEnded = true;
    } else {
      instances.at(-1)?.push(formatNode(type, subType, body));
    }
  }
  if (!hasEnded && bytes.length > 0 && warnings.length === 0) warnings.push('the device path has no end');
  return { text: instances.map((parts) => parts.join('/')).join(','), warnings };
}

type NodeFormatter = (reader: ByteReader) => string;

const hexNumber = (value: number | bigint): string => `0x${value.toString(16).toUpperCase()}`;
const guid = (reader: ByteReader): string => decodeGuid(reader.take(16, 'GUID'));
const rest = (reader: ByteReader): string => hexOf(reader.take(reader.remaining, 'data'));
const u8 = (reader: ByteReader): string => hexNumber(reader.u8('field'));
const u16 = (reader: ByteReader): string => hexNumber(reader.u16('field'));
const u32 = (reader: ByteReader): string => hexNumber(reader.u32('field'));
const u64 = (reader: ByteReader): string => hexNumber(reader.u64('field'));

function hexOf(bytes: Uint8Array): string {
  const hex = Buffer.from(bytes.subarray(0, maxNodeHex)).toString('hex');
  return bytes.length > maxNodeHex ? `${hex}…` : hex;
}

function vendor(name: string): NodeFormatter {
  return (reader) => {
    const id = guid(reader);
    return reader.remaining === 0 ? `${name}(${id})` : `${name}(${id},${rest(reader)})`;
  };
}

/** The fields one after the other, each by its reader. */
function fields(name: string, ...readers: NodeFormatter[]): NodeFormatter {
  return (reader) => `${name}(${readers.map((read) => read(reader)).join(',')})`;
}

/** By type and sub-type. */
const formatters: Readonly<Record<number, Readonly<Record<number, NodeFormatter>>>> = {
  0x01: {
    0x01: (reader) => {
      const pciFunction = u8(reader);
      return `Pci(${u8(reader)},${pciFunction})`;
    },
    0x02: fields('PcCard', u8),
    0x03: fields('MemoryMapped', u32, u64, u64),
    0x04: vendor('VenHw'),
    0x05: fields('Ctrl', u32),
    0x06: fields('BMC', u8, u64),
  },
  0x02: { 0x01: formatAcpi, 0x03: fields('AcpiAdr', u32) },
  0x03: {
    0x01: (reader) => {
      const channel = reader.u8('PrimarySecondary') === 0 ? 'Primary' : 'Secondary';
      const device = reader.u8('SlaveMaster') === 0 ? 'Master' : 'Slave';
      return `Ata(${channel},${device},${u16(reader)})`;
    },
    0x02: fields('Scsi', u16, u16),
    0x05: fields('USB', u8, u8),
    0x0a: vendor('VenMsg'),
    0x0b: formatMac,
    0x0c: formatIpv4,
    0x0d: formatIpv6,
    0x0f: fields('UsbClass', u16, u16, u8, u8, u8),
    0x11: fields('Unit', u8),
    0x12: fields('Sata', u16, u16, u16),
    0x14: (reader) => `Vlan(${reader.u16('VlanId')})`,
    0x17: (reader) => {
      const namespace = u32(reader);
      return `NVMe(${namespace},${[...reader.take(8, 'EUI-64')].reverse().map(hexByte).join('-')})`;
    },
    0x18: (reader) => `Uri(${latin1(reader.take(reader.remaining, 'Uri'))})`,
    0x19: fields('UFS', u8, u8),
    0x1a: fields('SD', u8),
    0x1c: (reader) => `Wi-Fi(${latin1(reader.take(reader.remaining, 'SSID')).replace(/\0.*$/s, '')})`,
    0x1d: fields('eMMC', u8),
  },
  0x04: {
    0x01: formatHardDrive,
    0x02: fields('CDROM', u32, u64, u64),
    0x03: vendor('VenMedia'),
    0x04: (reader) => utf16(reader.take(reader.remaining, 'PathName')),
    0x05: fields('Media', guid),
    0x06: fields('FvFile', guid),
    0x07: fields('Fv', guid),
    0x08: (reader) => {
      reader.take(4, 'Reserved');
      return `Offset(${u64(reader)},${u64(reader)})`;
    },
    0x09: (reader) => {
      const [start, end] = [u64(reader), u64(reader)];
      return `RamDisk(${start},${end},${u16At(reader)},${guid(reader)})`;
    },
  },
  0x05: {
    0x01: (reader) => {
      const [type] = [u16(reader), reader.u16('StatusFlag')];
      return `BBS(${type},${latin1(reader.take(reader.remaining, 'Description')).replace(/\0.*$/s, '')})`;
    },
  },
};

/** The instance follows the GUID in the node; the text has it before. */
function u16At(reader: ByteReader): string {
  const at = reader.offset;
  const value = hexNumber(reader.seek(at + 16, 'Instance').u16('Instance'));
  reader.seek(at, 'DiskTypeGuid');
  return value;
}

function formatNode(type: number, subType: number, body: Uint8Array): string {
  const formatter = formatters[type]?.[subType];
  if (formatter !== undefined) {
    try {
      return formatter(new ByteReader(body, format));
    } catch (error) {
      // Too short for what it says it is: shown as what it has.
      if (!(error instanceof FormatError)) throw error;
    }
  }
  return `Path(${type},${subType},${hexOf(body)})`;
}

/** EISA identifiers: three letters of five bits each, then four hex digits. */
function formatAcpi(reader: ByteReader): string {
  const hid = reader.u32('HID');
  const uid = u32(reader);
  const known = acpiNames.get(hid);
  if (known !== undefined) return `${known}(${uid})`;
  const letters = [10, 5, 0].map((shift) => String.fromCharCode(0x40 + ((hid >> shift) & 0x1f))).join('');
  return `Acpi(${letters}${(hid >>> 16).toString(16).toUpperCase().padStart(4, '0')},${uid})`;
}

const acpiNames = new Map<number, string>([
  [0x0a03_41d0, 'PciRoot'],
  [0x0a08_41d0, 'PcieRoot'],
  [0x0604_41d0, 'Floppy'],
  [0x0301_41d0, 'Keyboard'],
  [0x0501_41d0, 'Serial'],
]);

function formatMac(reader: ByteReader): string {
  const address = reader.take(32, 'MacAddress');
  const interfaceType = reader.u8('IfType');
  // Ethernet's and its like have 6 bytes of the 32.
  const length = interfaceType === 0 || interfaceType === 1 ? 6 : 32;
  return `MAC(${hexOf(address.subarray(0, length))},${hexNumber(interfaceType)})`;
}

const dotted = (bytes: Uint8Array): string => [...bytes].join('.');

function formatIpv4(reader: ByteReader): string {
  const local = dotted(reader.take(4, 'LocalIpAddress'));
  const remote = dotted(reader.take(4, 'RemoteIpAddress'));
  reader.take(4, 'ports');
  const protocol = reader.u16('Protocol');
  const origin = reader.u8('StaticIpAddress') === 0 ? 'DHCP' : 'Static';
  return `IPv4(${remote},${protocolName(protocol)},${origin},${local})`;
}

function formatIpv6(reader: ByteReader): string {
  const address = (): string => (hexOf(reader.take(16, 'IpAddress')).match(/.{4}/g) ?? []).join(':');
  const [local, remote] = [address(), address()];
  reader.take(4, 'ports');
  return `IPv6(${remote},${protocolName(reader.u16('Protocol'))},${local})`;
}

const protocolName = (protocol: number): string =>
  protocol === 6 ? 'TCP' : protocol === 17 ? 'UDP' : hexNumber(protocol);

function formatHardDrive(reader: ByteReader): string {
  const number = reader.u32('PartitionNumber');
  const [start, size] = [u64(reader), u64(reader)];
  const signature = reader.take(16, 'PartitionSignature');
  reader.u8('PartitionFormat');
  const signatureType = reader.u8('SignatureType');
  if (signatureType === 0x02) return `HD(${number},GPT,${decodeGuid(signature)},${start},${size})`;
  const mbr = hexNumber(Buffer.from(signature).readUInt32LE(0));
  return `HD(${number},${signatureType === 0x01 ? `MBR,${mbr}` : '0'},${start},${size})`;
}

const hexByte = (value: number): string => value.toString(16).toUpperCase().padStart(2, '0');
const latin1 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('latin1');
const utf16 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('utf16le').replace(/\0.*$/s, '');
