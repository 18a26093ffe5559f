/**
 * cpio archives in the "newc" format, as the kernel unpacks them into its initramfs
 * (Documentation/driver-api/early-userspace/buffer-format.rst).
 *
 * Reproducible: entries are sorted by path, owned by root, numbered in order and dated alike. The writer yields chunks
 * and never joins them, so a 120 MB executable in the archive is not copied.
 */
import { ByteReader } from './byte-reader.ts';

export type CpioEntry = { readonly path: string; readonly mode: number } & (
  | { readonly type: 'file'; readonly data: Uint8Array }
  | { readonly type: 'directory' }
  | { readonly type: 'symlink'; readonly target: string }
  | { readonly type: 'character-device'; readonly major: number; readonly minor: number }
);

const format = 'cpio archive';
const magic = '070701';
const headerSize = 110;
const trailer = 'TRAILER!!!';
const maxPath = 4096;
const fileType = { file: 0o100000, directory: 0o040000, symlink: 0o120000, 'character-device': 0o020000 } as const;

/**
 * @param entries in any order. Paths are relative, without `.` or empty parts; every parent is an entry too. `mode` holds
 *   permission bits only.
 * @param options.mtime in seconds since 1970. @default 0
 * @throws RangeError when a path or size cannot be archived.
 */
export function* encodeCpio(entries: Iterable<CpioEntry>, options: { mtime?: number } = {}): Generator<Uint8Array> {
  const sorted = [...entries].sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0));
  const directories = new Set(['']);
  let previous: string | undefined;
  let inode = 0;
  for (const entry of sorted) {
    checkPath(entry.path, directories, previous);
    previous = entry.path;
    if (entry.type === 'directory') directories.add(entry.path);
    inode += 1;
    const data = entry.type === 'file' ? entry.data : Buffer.from(entry.type === 'symlink' ? entry.target : '', 'utf8');
    yield encodeHeader({
      inode,
      path: entry.path,
      mode: (entry.mode & 0o7777) | fileType[entry.type],
      linkCount: entry.type === 'directory' ? 2 : 1,
      mtime: options.mtime ?? 0,
      size: data.length,
      device: entry.type === 'character-device' ? [entry.major, entry.minor] : [0, 0],
    });
    yield* [data, new Uint8Array(paddingTo4(data.length))].filter((chunk) => chunk.length > 0);
  }
  yield encodeHeader({ inode: 0, path: trailer, mode: 0, linkCount: 1, mtime: 0, size: 0, device: [0, 0] });
}

function checkPath(path: string, directories: ReadonlySet<string>, previous: string | undefined): void {
  const refuse = (reason: string): never => {
    throw new RangeError(`cannot write cpio archive: ${JSON.stringify(path)}: ${reason}`);
  };
  const parts = path.split('/');
  if (parts.some((part) => part === '' || part === '.' || part === '..') || path.includes('\0'))
    refuse('not a plain relative path');
  if (Buffer.byteLength(path) >= maxPath) refuse('the path is too long');
  if (path === previous) refuse('is there twice');
  if (!directories.has(parts.slice(0, -1).join('/'))) refuse('its directory is not an entry');
}

function encodeHeader(entry: {
  inode: number;
  path: string;
  mode: number;
  linkCount: number;
  mtime: number;
  size: number;
  device: readonly [number, number];
}): Uint8Array {
  const name = Buffer.from(`${entry.path}\0`, 'utf8');
  const fields = [
    entry.inode,
    entry.mode,
    0,
    0,
    entry.linkCount,
    entry.mtime,
    entry.size,
    0,
    0,
    ...entry.device,
    name.length,
    0,
  ];
  for (const field of fields) {
    if (!Number.isInteger(field) || field < 0 || field > 0xffff_ffff) {
      throw new RangeError(`cannot write cpio archive: ${JSON.stringify(entry.path)}: ${field} does not fit 32 bits`);
    }
  }
  const text = magic + fields.map((field) => field.toString(16).padStart(8, '0')).join('');
  return Buffer.concat([Buffer.from(text, 'ascii'), name, new Uint8Array(paddingTo4(headerSize + name.length))]);
}

const paddingTo4 = (length: number): number => -length & 3;

export interface DecodedCpioEntry {
  readonly path: string;
  readonly type: CpioEntry['type'];
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtime: number;
  /** File content or symlink target; shares memory with the archive. */
  readonly data: Uint8Array;
  readonly device: readonly [major: number, minor: number];
}

/** Reads one uncompressed archive up to its trailer. @throws FormatError, RangeError when malformed or over the limits. */
export function decodeCpio(bytes: Uint8Array, options: { maxEntries?: number } = {}): DecodedCpioEntry[] {
  return readArchive(bytes, options).entries;
}

/** How many bytes the archive that begins here has, its trailer included. Throws as `decodeCpio` does. */
export function cpioLength(bytes: Uint8Array): number {
  return readArchive(bytes, {}).length;
}

function readArchive(
  bytes: Uint8Array,
  options: { maxEntries?: number },
): { entries: DecodedCpioEntry[]; length: number } {
  const reader = new ByteReader(bytes, format);
  const maxEntries = options.maxEntries ?? 100_000;
  const entries: DecodedCpioEntry[] = [];
  for (;;) {
    const start = reader.offset;
    const header = Buffer.from(reader.take(headerSize, 'header')).toString('latin1');
    if (!header.startsWith(magic)) reader.fail('magic', `not "${magic}"`, start);
    const fields = Array.from({ length: 13 }, (_, index) => {
      const text = header.slice(6 + index * 8, 14 + index * 8);
      if (!/^[0-9a-fA-F]{8}$/.test(text)) reader.fail(`field ${index}`, 'not eight hex digits', start + 6 + index * 8);
      return Number.parseInt(text, 16);
    });
    const [, mode = 0, uid = 0, gid = 0, , mtime = 0, size = 0, , , major = 0, minor = 0, nameSize = 0] = fields;
    if (nameSize < 1 || nameSize > maxPath) reader.fail('name size', `${nameSize} is not 1 to ${maxPath}`, start + 94);
    const name = Buffer.from(reader.take(nameSize, 'name'));
    if (name.at(-1) !== 0 || name.indexOf(0) !== nameSize - 1)
      reader.fail('name', 'does not end with its only NUL', start + headerSize);
    reader.take(paddingTo4(headerSize + nameSize), 'name padding');
    const path = name.toString('utf8', 0, nameSize - 1);
    if (path === trailer) return { entries, length: reader.offset };
    const type = (Object.keys(fileType) as (keyof typeof fileType)[]).find(
      (key) => fileType[key] === (mode & 0o170000),
    );
    if (type === undefined) return reader.fail('mode', `0${mode.toString(8)} is of no known type`, start + 14);
    if (entries.length === maxEntries) reader.fail('entries', `over ${maxEntries}`, start);
    const data = reader.take(size, 'data');
    reader.take(paddingTo4(size), 'data padding');
    entries.push({ path, type, mode: mode & 0o7777, uid, gid, mtime, data, device: [major, minor] });
  }
}
