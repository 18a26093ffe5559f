/**
 * Making and opening the LUKS2 volume on the data partition.
 *
 * Opening reads the header from the disk once, checks it in memory (`luks-header.ts`), and gives libcryptsetup the
 * checked bytes as a detached header: a file on tmpfs that holds only the accepted copy. So what is checked is what is
 * used, whatever the disk answers to a second read. (libcryptsetup reads a regular file directly, so no loop device is
 * needed; it takes the data offset from the header as it would on the disk.) The header has nothing secret in it.
 */

import { randomBytes } from 'node:crypto';
import { closeSync, fsyncSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isWrongKey, LuksVolume } from './cryptsetup.ts';
import {
  type AcceptedHeader,
  acceptHeader,
  HEADER_BYTES,
  isolateAcceptedCopy,
  NODE_SLOT,
  RECOVERY_SLOT,
  rewriteOtherCopy,
} from './luks-header.ts';
import { type DataToken, type RecoveryToken, TOKEN_ID } from './luks-tokens.ts';
import { readAt, writeAt } from './partition-table.ts';

/** `/dev/mapper/` + this. */
export const DATA_MAPPING = 'ashlar-data';
export const DATA_DEVICE = `/dev/mapper/${DATA_MAPPING}`;

/** Where detached headers are written: a tmpfs. */
export interface HeaderDirectory {
  readonly path: string;
}

/** Makes a new volume; what the partition holds is lost. `uuid` is the partition's. */
export function createDataVolume(
  partitionPath: string,
  volume: {
    readonly uuid: string;
    readonly slotKey: Uint8Array;
    readonly recoveryKey: Uint8Array;
    /** Two sealed copies, or one unsealed. */
    readonly nodeTokens: readonly DataToken[];
    readonly recoveryToken: RecoveryToken;
  },
): void {
  {
    using luks = LuksVolume.format(partitionPath, { uuid: volume.uuid, label: 'ashlar-data' });
    luks.addSlot({ slot: NODE_SLOT, key: volume.slotKey });
    luks.addSlot({ slot: RECOVERY_SLOT, key: volume.recoveryKey });
    for (const [index, token] of volume.nodeTokens.entries()) luks.setToken(TOKEN_ID.node[index] ?? index, token);
    luks.setToken(TOKEN_ID.recovery, volume.recoveryToken);
  }
  syncDevice(partitionPath);
}

/** A checked header, in memory. */
export interface DataHeader {
  readonly bytes: Uint8Array;
  readonly accepted: AcceptedHeader;
}

/** Reads and checks the header. Throws `LuksHeaderError`. */
export function readDataHeader(partitionPath: string, uuid: string): DataHeader {
  const fd = openSync(partitionPath, 'r');
  try {
    const bytes = readAt(fd, 0, HEADER_BYTES);
    return { bytes, accepted: acceptHeader(bytes, { uuid }) };
  } finally {
    closeSync(fd);
  }
}

/** The slot key opens nothing in this volume. */
export class WrongSlotKeyError extends Error {
  override readonly name = 'WrongSlotKeyError';
}

export interface OpenedVolume extends Disposable {
  /** The volume key, wiped when the scope ends. */
  readonly volumeKey: Buffer;
  /** Makes {@link DATA_DEVICE}. */
  activate(): void;
  /** Writes a missing or stale header copy again; true when there was one. Call it after {@link activate}. */
  repair(): boolean;
}

/** Opens the node's key slot of a checked header. Throws `WrongSlotKeyError`. */
export function openDataVolume(
  partitionPath: string,
  header: DataHeader,
  slotKey: Uint8Array,
  directory: HeaderDirectory,
): OpenedVolume {
  using cleanup = new DisposableStack();
  const folder = mkdtempSync(join(directory.path, 'luks-'));
  cleanup.defer(() => rmSync(folder, { recursive: true }));
  const headerPath = join(folder, 'header');
  writeFileSync(headerPath, isolateAcceptedCopy(header.bytes, header.accepted), { mode: 0o600 });
  const luks = cleanup.use(LuksVolume.load(headerPath, partitionPath));
  const volumeKey = readVolumeKey(luks, slotKey);
  cleanup.defer(() => volumeKey.fill(0));
  const scope = cleanup.move();
  return {
    volumeKey,
    activate: () => luks.activate(DATA_MAPPING, volumeKey),
    repair: () => repairStaleCopy(partitionPath, header),
    [Symbol.dispose]: () => scope.dispose(),
  };
}

function readVolumeKey(luks: LuksVolume, key: Uint8Array): Buffer {
  try {
    return luks.volumeKey({ slot: NODE_SLOT, key });
  } catch (error) {
    if (!isWrongKey(error)) throw error;
    throw new WrongSlotKeyError('the unsealed key opens no key slot of the volume', { cause: error });
  }
}

function repairStaleCopy(partitionPath: string, { bytes, accepted }: DataHeader): boolean {
  if (accepted.stale === undefined) return false;
  const write = rewriteOtherCopy(bytes, accepted, randomBytes(64));
  const fd = openSync(partitionPath, 'r+');
  try {
    writeAt(fd, write.offset, write.bytes);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  return true;
}

function syncDevice(path: string): void {
  const fd = openSync(path, 'r+');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
