/**
 * Firmware boot entries, written from outside as an operating system or an attacker would write them: `Boot####` is an
 * EFI_LOAD_OPTION (UEFI specification §3.1.3), `BootOrder` names the order in which they are tried.
 */
import { efiGlobalVariable } from '../../src/formats/efi-signature-list.ts';
import { readVariables, setVariable } from '../../src/formats/efi-variable-store.ts';
import { encodeGuid } from '../../src/formats/guid.ts';
import type { PartitionExtent } from './disk-partitions.ts';

const SECTOR = 512;
const LOAD_OPTION_ACTIVE = 1;
/** Non-volatile, boot service and runtime access. */
const ATTRIBUTES = 7;

export interface BootEntry {
  readonly description: string;
  readonly esp: PartitionExtent;
  /** With backslashes, from the ESP's root. */
  readonly path: string;
  /** Handed to what is started, as its load options: for Linux, a command line. @default none */
  readonly loadOptions?: string;
}

export function encodeBootEntry({ description, esp, path, loadOptions }: BootEntry): Buffer {
  const devicePath = Buffer.concat([hardDriveNode(esp), fileNode(path), Buffer.from([0x7f, 0xff, 4, 0])]);
  const head = Buffer.alloc(6);
  head.writeUInt32LE(LOAD_OPTION_ACTIVE, 0);
  head.writeUInt16LE(devicePath.length, 4);
  const options = loadOptions === undefined ? Buffer.alloc(0) : utf16(loadOptions);
  return Buffer.concat([head, utf16(description), devicePath, options]);
}

/** The image of OVMF's flash with this entry as `Boot####`, first in BootOrder. */
export function putFirst(image: Uint8Array, number: number, entry: Uint8Array): Uint8Array {
  const withEntry = setVariable(image, global(bootName(number), entry));
  return setBootOrder(withEntry, [number, ...bootOrder(image).filter((other) => other !== number)]);
}

/** Numbers of the entries whose description contains `text`, as the firmware made them for the devices it found. */
export function bootEntriesNamed(image: Uint8Array, text: string): number[] {
  return readVariables(image).flatMap(({ name, vendorGuid, data }) => {
    const number = /^Boot([0-9A-F]{4})$/.exec(name)?.[1];
    if (number === undefined || vendorGuid !== efiGlobalVariable) return [];
    return Buffer.from(data.subarray(6)).toString('utf16le').split('\0')[0]?.includes(text) === true
      ? [Number.parseInt(number, 16)]
      : [];
  });
}

export function bootOrder(image: Uint8Array): number[] {
  const found = readVariables(image).find(
    ({ name, vendorGuid }) => name === 'BootOrder' && vendorGuid === efiGlobalVariable,
  );
  const data = Buffer.from(found?.data ?? []);
  return Array.from({ length: data.length / 2 }, (_, index) => data.readUInt16LE(2 * index));
}

export function setBootOrder(image: Uint8Array, order: readonly number[]): Uint8Array {
  const data = Buffer.alloc(2 * order.length);
  for (const [index, number] of order.entries()) data.writeUInt16LE(number, 2 * index);
  return setVariable(image, global('BootOrder', data));
}

function global(name: string, data: Uint8Array) {
  return { name, vendorGuid: efiGlobalVariable, attributes: ATTRIBUTES, data };
}

function bootName(number: number): string {
  return `Boot${number.toString(16).toUpperCase().padStart(4, '0')}`;
}

/** Media device path, hard drive (UEFI specification §10.3.5.1). */
function hardDriveNode({ number, startLba, sizeBytes, uniqueGuid }: PartitionExtent): Buffer {
  const node = Buffer.alloc(42);
  node.set([4, 1, 42, 0], 0);
  node.writeUInt32LE(number, 4);
  node.writeBigUInt64LE(BigInt(startLba), 8);
  node.writeBigUInt64LE(BigInt(sizeBytes / SECTOR), 16);
  node.set(encodeGuid(uniqueGuid), 24);
  // A GPT, and its kind of signature.
  node.set([2, 2], 40);
  return node;
}

function fileNode(path: string): Buffer {
  const text = utf16(path);
  const head = Buffer.from([4, 4, 0, 0]);
  head.writeUInt16LE(head.length + text.length, 2);
  return Buffer.concat([head, text]);
}

function utf16(text: string): Buffer {
  return Buffer.from(`${text}\0`, 'utf16le');
}
