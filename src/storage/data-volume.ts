/**
 * Opening the LUKS2 volume on the data partition.
 *
 * The header is read from the disk once and checked in memory (`luks-header.ts`), and libcryptsetup gets the checked bytes
 * as a detached header. So what is checked is what is used, whatever the disk answers to a second read.
 */
import { randomBytes } from 'node:crypto';
import { isWrongKey, LuksVolume } from './cryptsetup.ts';
import type { DataDevice } from './data-device.ts';
import { detachHeader, type HeaderDirectory } from './header-edit.ts';
import type { DataHeader } from './header-mac.ts';
import { acceptHeader, rewriteOtherCopy } from './luks-header.ts';
import { HEADER_BYTES } from './luks-metadata.ts';

/** `/dev/mapper/` + this. */
export const DATA_MAPPING = 'ashlar-data';
export const DATA_DEVICE = `/dev/mapper/${DATA_MAPPING}`;

/** Reads and checks the header. Throws `LuksHeaderError`. */
export function readDataHeader(device: DataDevice, uuid: string): DataHeader {
  const bytes = device.read(0, HEADER_BYTES);
  return { bytes, accepted: acceptHeader(bytes, { uuid }) };
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
}

/** Opens a key slot of a checked header. Throws `WrongSlotKeyError`. */
export function openDataVolume(
  partitionPath: string,
  header: DataHeader,
  key: { readonly slot: number; readonly key: Uint8Array },
  directory: HeaderDirectory,
): OpenedVolume {
  using cleanup = new DisposableStack();
  const file = cleanup.use(detachHeader(header, directory));
  const luks = cleanup.use(LuksVolume.load(file.path, partitionPath));
  const volumeKey = readVolumeKey(luks, key);
  cleanup.defer(() => volumeKey.fill(0));
  const scope = cleanup.move();
  return {
    volumeKey,
    activate: () => luks.activate(DATA_MAPPING, volumeKey),
    [Symbol.dispose]: () => scope.dispose(),
  };
}

function readVolumeKey(luks: LuksVolume, key: { readonly slot: number; readonly key: Uint8Array }): Buffer {
  try {
    return luks.volumeKey(key);
  } catch (error) {
    if (!isWrongKey(error)) throw error;
    throw new WrongSlotKeyError(`the key does not open key slot ${key.slot} of the volume`, { cause: error });
  }
}

/** Writes a missing or stale copy of the header again; true when there was one. For a header that has opened. */
export function repairStaleCopy(device: DataDevice, { bytes, accepted }: DataHeader): boolean {
  if (accepted.stale === undefined) return false;
  const write = rewriteOtherCopy(bytes, accepted, randomBytes(64));
  device.write(write.offset, write.bytes);
  return true;
}
