/**
 * Changing the LUKS2 header: the new one is made as a whole in memory, so that its MAC can be in the TPM before a byte of
 * it is on the disk.
 *
 *   header, checked ──▶ file on tmpfs ── libcryptsetup ──▶ new header, checked ──▶ key slots, one copy, other copy
 *
 * Libcryptsetup never writes to the disk: it would write a copy after each of its steps, headers that no MAC covers. What
 * it writes goes to a detached header, a file (it reads a regular file directly, so no loop device is needed, and takes
 * the data offset from the header as it would on the disk). Nothing in a header is secret.
 */
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { LuksVolume } from './cryptsetup.ts';
import type { DataDevice } from './data-device.ts';
import type { DataHeader } from './header-mac.ts';
import { acceptHeader, copyRange, isolateAcceptedCopy, otherCopy, unusedRanges } from './luks-header.ts';
import { HEADER_BYTES, REQUEST_OFFSET } from './luks-metadata.ts';
import { type DataToken, GENERATION, type Place, RECOVERY_SLOT, type RecoveryToken, TOKEN_ID } from './luks-tokens.ts';

/** Where detached headers are written: a tmpfs. */
export interface HeaderDirectory {
  readonly path: string;
}

/** A file of its own with the checked copy of a header, and no other. */
export interface DetachedHeader extends Disposable {
  readonly path: string;
}

export function detachHeader(header: DataHeader, directory: HeaderDirectory): DetachedHeader {
  const file = temporaryFile(directory);
  writeFileSync(file.path, isolateAcceptedCopy(header.bytes, header.accepted), { mode: 0o600 });
  return file;
}

function temporaryFile(directory: HeaderDirectory): DetachedHeader {
  const folder = mkdtempSync(join(directory.path, 'luks-'));
  return { path: join(folder, 'header'), [Symbol.dispose]: () => rmSync(folder, { recursive: true }) };
}

/** A generation's part in the header. */
export interface GenerationSlot {
  readonly place: Place;
  readonly slotKey: Uint8Array;
  /** Two sealed copies, or one unsealed. */
  readonly tokens: readonly DataToken[];
}

/** The header of a new volume with a new volume key. Nothing is written to the partition. */
export function newHeader(
  dataPath: string,
  volume: {
    readonly uuid: string;
    readonly generation: GenerationSlot;
    readonly recoveryKey: Uint8Array;
    readonly recoveryToken: RecoveryToken;
  },
  directory: HeaderDirectory,
): DataHeader {
  using file = temporaryFile(directory);
  writeFileSync(file.path, new Uint8Array(HEADER_BYTES), { mode: 0o600 });
  {
    using luks = LuksVolume.format(file.path, dataPath, { uuid: volume.uuid, label: 'ashlar-data' });
    addGeneration(luks, volume.generation);
    luks.addSlot({ slot: RECOVERY_SLOT, key: volume.recoveryKey });
    luks.setToken(TOKEN_ID.recovery, volume.recoveryToken);
  }
  return readBack(file.path, volume.uuid);
}

/** A header with generations added and removed. Nothing is written to the partition. */
export function editedHeader(
  header: DataHeader,
  dataPath: string,
  change: {
    readonly add?: GenerationSlot | undefined;
    readonly remove?: readonly Place[] | undefined;
    readonly volumeKey: Uint8Array;
  },
  directory: HeaderDirectory,
): DataHeader {
  using file = detachHeader(header, directory);
  {
    using luks = LuksVolume.load(file.path, dataPath);
    for (const place of change.remove ?? []) {
      const { slot, tokenIds } = GENERATION[place];
      for (const id of tokenIds) luks.removeToken(id);
      luks.removeSlot(slot);
    }
    if (change.add !== undefined) addGeneration(luks, change.add, change.volumeKey);
  }
  return readBack(file.path, header.accepted.uuid);
}

function addGeneration(luks: LuksVolume, { place, slotKey, tokens }: GenerationSlot, volumeKey?: Uint8Array): void {
  const { slot, tokenIds } = GENERATION[place];
  luks.addSlot({ slot, key: slotKey }, volumeKey);
  for (const [index, token] of tokens.entries()) luks.setToken(tokenIds[index] ?? tokenIds[0], token);
}

/** What libcryptsetup made must pass the checks of every boot. What lies between the key slots' areas is made zero. */
function readBack(path: string, uuid: string): DataHeader {
  truncateSync(path, HEADER_BYTES);
  const bytes = readFileSync(path);
  const accepted = acceptHeader(bytes, { uuid });
  for (const { offset, size } of unusedRanges(accepted)) bytes.fill(0, offset, offset + size);
  bytes.fill(0, REQUEST_OFFSET);
  return { bytes, accepted };
}

/**
 * Writes a header over another: first the areas of new key slots, which the old header does not use
 * (unless slots were removed at the same time, as recovery does); then the copy that
 * did not count, and when it is durable the other. Until the first copy is whole the old header counts, then the new one.
 */
export function replaceHeader(device: DataDevice, { bytes, accepted: old }: DataHeader, next: DataHeader): void {
  for (const { offset, size } of next.accepted.slotAreas) {
    const area = next.bytes.subarray(offset, offset + size);
    if (Buffer.compare(bytes.subarray(offset, offset + size), area) !== 0) device.write(offset, area);
  }
  for (const copy of [otherCopy(old.copy), old.copy]) {
    const [start, end] = copyRange(copy);
    device.write(start, next.bytes.subarray(start, end));
  }
}

/** Writes the first header of a partition; what is there is lost. */
export function writeFirstHeader(device: DataDevice, { bytes }: DataHeader): void {
  device.write(0, bytes);
}

/** True when there is something between the areas of the key slots in use: key material of slots that are gone. */
export function hasLeftovers({ bytes, accepted }: DataHeader): boolean {
  return unusedRanges(accepted).some(({ offset, size }) => !isZero(bytes.subarray(offset, offset + size)));
}

/** Overwrites it. A flash disk may keep a copy; what makes it useless is that its share has gone from the TPM. */
export function wipeLeftovers(device: DataDevice, { accepted }: DataHeader): void {
  for (const { offset, size } of unusedRanges(accepted)) {
    if (!isZero(device.read(offset, size))) device.write(offset, Buffer.alloc(size));
  }
}

function isZero(bytes: Uint8Array): boolean {
  return Buffer.alloc(bytes.length).equals(bytes);
}
