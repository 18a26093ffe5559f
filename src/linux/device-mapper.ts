/**
 * The kernel's device mapper through /dev/mapper/control (uapi/linux/dm-ioctl.h, interface version 4).
 *
 * Every call exchanges one `struct dm_ioctl` of 312 bytes, followed by call-specific data:
 *
 *     0 version[3]  12 data_size  16 data_start  20 target_count  24 open_count  28 flags  32 event_nr  36 -
 *     40 dev (u64)  48 name[128]  176 uuid[129]  305 -
 *
 * A mapping is made in three calls: create the device, load a table, resume (which makes the table live). devtmpfs
 * makes `/dev/dm-N`; nothing here needs udev or libdevmapper.
 */
import { closeSync, openSync } from 'node:fs';
import { ioctl } from './ioctl.ts';

const CONTROL = '/dev/mapper/control';
const HEADER_BYTES = 312;
const NAME_MAX_BYTES = 127;
/** _IOWR(0xfd, command, struct dm_ioctl) */
const REQUEST = 0xc138fd00;
const COMMAND = { listDevices: 2, create: 3, remove: 4, suspend: 6, loadTable: 9 } as const;
const FLAG_READONLY = 1 << 0;
const FLAG_BUFFER_FULL = 1 << 8;
const SECTOR_BYTES = 512;
const TARGET_SPEC_BYTES = 40;
const LIST_BUFFER_BYTES = 16 * 1024;

export interface MappedDevice {
  readonly name: string;
  /** `/dev/dm-0` */
  readonly path: string;
}

export interface MappingTarget {
  /** `verity`, `crypt`, … */
  readonly type: string;
  readonly sizeBytes: number;
  /** The target's own parameters, as in the kernel's documentation. */
  readonly parameters: string;
}

/**
 * Makes a read-only mapping of one target and returns its device. When a step fails, the half-made device is removed
 * and the kernel's `LinuxError` thrown (`EINVAL`: the kernel's log says which parameter; `EBUSY`: the name is taken).
 */
export function createReadOnlyMapping(name: string, target: MappingTarget): MappedDevice {
  const device = Number(call(COMMAND.create, name).readBigUInt64LE(40));
  try {
    call(COMMAND.loadTable, name, { flags: FLAG_READONLY, targetCount: 1, data: encodeTarget(target) });
    // "Suspend" without the suspend flag is resume.
    call(COMMAND.suspend, name, { flags: FLAG_READONLY });
  } catch (error) {
    removeMapping(name);
    throw error;
  }
  // A device number as the kernel packs it for user space: minor in bits 0–7 and 20–31.
  const minor = (device & 0xff) | ((device >>> 12) & 0xfff00);
  return { name, path: `/dev/dm-${minor}` };
}

/** Removes a mapping. Throws `LinuxError` (`EBUSY`: still open or mounted; `ENXIO`: no such mapping). */
export function removeMapping(name: string): void {
  call(COMMAND.remove, name);
}

/** Names of all mappings. */
export function listMappings(): string[] {
  const answer = call(COMMAND.listDevices, '', { data: Buffer.alloc(LIST_BUFFER_BYTES) });
  if ((answer.readUInt32LE(28) & FLAG_BUFFER_FULL) !== 0)
    throw new Error(`cannot list mappings: their names are longer than ${LIST_BUFFER_BYTES} bytes`);
  const names: string[] = [];
  let at = answer.readUInt32LE(16);
  // struct dm_name_list { u64 dev; u32 next; char name[]; }; an empty list is one entry with dev 0.
  while (answer.readBigUInt64LE(at) !== 0n) {
    names.push(readCString(answer, at + 12));
    const next = answer.readUInt32LE(at + 8);
    if (next === 0) break;
    at += next;
  }
  return names;
}

function encodeTarget({ type, sizeBytes, parameters }: MappingTarget): Buffer {
  // struct dm_target_spec { u64 sector_start; u64 length; s32 status; u32 next; char target_type[16]; }, parameters, NUL
  const length = Math.ceil((TARGET_SPEC_BYTES + Buffer.byteLength(parameters) + 1) / 8) * 8;
  const spec = Buffer.alloc(length);
  spec.writeBigUInt64LE(BigInt(sizeBytes / SECTOR_BYTES), 8);
  spec.writeUInt32LE(length, 20);
  spec.write(type, 24, 15, 'ascii');
  spec.write(parameters, TARGET_SPEC_BYTES, 'ascii');
  return spec;
}

function call(
  command: number,
  name: string,
  { flags = 0, targetCount = 0, data = Buffer.alloc(0) }: { flags?: number; targetCount?: number; data?: Buffer } = {},
): Buffer {
  if (Buffer.byteLength(name) > NAME_MAX_BYTES) throw new RangeError(`cannot map ${name}: its name is too long`);
  const message = Buffer.alloc(HEADER_BYTES + data.length);
  message.writeUInt32LE(4, 0);
  message.writeUInt32LE(message.length, 12);
  message.writeUInt32LE(HEADER_BYTES, 16);
  message.writeUInt32LE(targetCount, 20);
  message.writeUInt32LE(flags, 28);
  message.write(name, 48, 'utf8');
  data.copy(message, HEADER_BYTES);
  const control = openSync(CONTROL, 'r+');
  try {
    ioctl(control, REQUEST + command, message);
  } finally {
    closeSync(control);
  }
  return message;
}

function readCString(bytes: Buffer, start: number): string {
  return bytes.toString('utf8', start, bytes.indexOf(0, start));
}
