/**
 * Which disk the data partition belongs on: the one that the running system was read from, and no other. Pure.
 *
 * Copies of an image carry the same PARTUUIDs, and nothing tells for certain from which of them the firmware took the
 * UKI. So with two of them in the machine nothing is opened and nothing made: an install stick is never formatted in place
 * of the disk, nor the disk in place of the stick.
 */
import type { DecodedGpt } from '../formats/gpt.ts';

/** A disk and its table, or why that cannot be read. */
export interface DiskTable {
  readonly path: string;
  readonly table: DecodedGpt | Error;
}

/** Another disk has the same system partition. */
export class TwoSystemDisksError extends Error {
  override readonly name = 'TwoSystemDisksError';
}

/**
 * The table of the system's disk.
 *
 * @param systemDisk `/dev/vda`: the one whose system partition stage 1 verified
 *
 * Throws `TwoSystemDisksError`, or an error when that disk is not there or has no such partition any more.
 */
export function systemDiskTable(disks: readonly DiskTable[], systemDisk: string, partitionUuid: string): DecodedGpt {
  const carriers = disks.filter(({ table }) => !(table instanceof Error) && carries(table, partitionUuid));
  const found = disks.find(({ path }) => path === systemDisk);
  if (found === undefined || !carriers.includes(found) || found.table instanceof Error) {
    const reason =
      found === undefined
        ? 'the disk is gone'
        : found.table instanceof Error
          ? found.table.message
          : 'its partition table does not have it';
    throw new Error(
      `cannot find system partition ${partitionUuid} on ${systemDisk}, where it was a moment ago: ${reason}`,
    );
  }
  if (carriers.length > 1) {
    const others = carriers.filter((carrier) => carrier !== found).map(({ path }) => path);
    throw new TwoSystemDisksError(
      `cannot tell which disk this node's data belongs on: ${others.join(' and ')} has the same system partition as ` +
        `${systemDisk} (${partitionUuid}); nothing was opened or written; remove one of them, an install stick for ` +
        'instance, and restart',
    );
  }
  return found.table;
}

/** In either copy of the table: a damaged twin is a twin. */
function carries({ partitions, otherPartitions }: DecodedGpt, partitionUuid: string): boolean {
  return [...partitions, ...otherPartitions].some(({ uniqueGuid }) => uniqueGuid === partitionUuid);
}
