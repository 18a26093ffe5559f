/**
 * What has to happen to a disk until its data partition is mounted: computed as steps before anything is written. Pure.
 *
 *   no DATA partition           add it ─▶ show it to the kernel ─┐
 *   DATA, not initialised ───────────────────────────────────────┴▶ create volume ─▶ open ─▶ mkfs ─▶ mount ─▶ mark
 *   DATA, initialised ────────────────────────────────────────────────────────────▶ open ─▶ check ─▶ mount
 *
 * "Initialised" is GPT attribute bit 48 of the partition and is set last, when the file system is on the disk. A power
 * cut before that repeats everything; afterwards nothing formats ever again, whatever the header looks like. One whole
 * copy of the table that has the bit is enough, and it is rewritten only when the other one has it, too.
 */
import {
  addPartition,
  type DecodedGpt,
  type Gpt,
  type GptCopy,
  type GptPartition,
  relocateGpt,
  setPartitionAttribute,
  usableLbas,
} from '../formats/gpt.ts';
import { diskLayout, initialisedAttributeBit, partitionAlignmentBytes } from './disk-layout.ts';

/** The disk that holds our system partition, as found. */
export interface DiskState {
  readonly path: string;
  readonly gpt: DecodedGpt;
  /** What the kernel knows of the disk's partitions. */
  readonly kernelPartitions: readonly {
    readonly number: number;
    readonly startBytes: number;
    readonly sizeBytes: number;
  }[];
}

export type DataStep =
  | {
      readonly kind: 'write-table';
      readonly reason: string;
      readonly gpt: Gpt;
      /** The copy to write first: the other one holds the table until this one is durable. */
      readonly first: GptCopy;
    }
  | {
      readonly kind: 'show-to-kernel';
      readonly number: number;
      readonly startBytes: number;
      readonly sizeBytes: number;
    }
  | { readonly kind: 'create-volume' }
  | { readonly kind: 'open-volume' }
  | { readonly kind: 'make-filesystem' }
  | { readonly kind: 'check-filesystem' }
  | { readonly kind: 'mount' }
  | { readonly kind: 'mark-initialised'; readonly gpt: Gpt; readonly first: GptCopy };

export interface DataPlan {
  readonly partition: GptPartition;
  /** True when a volume is made: then, and only then, what the partition holds is lost. */
  readonly creates: boolean;
  readonly steps: readonly DataStep[];
}

/** A disk without room for the data partition. */
export class DiskTooSmallError extends Error {
  override readonly name = 'DiskTooSmallError';
}

const MIB = 1024 * 1024;

/**
 * @param newUuid GUID for the partition if it has to be added
 *
 * Throws `DiskTooSmallError`, or an error when the table holds something that is not ours where DATA belongs.
 */
export function planDataPartition(disk: DiskState, newUuid: string): DataPlan {
  const lostMark = markOnlyInBackup(disk);
  const found = relocateGpt(disk.gpt, disk.gpt.diskSectors);
  const table = lostMark === undefined ? found : setPartitionAttribute(found, lostMark, initialisedAttributeBit, true);
  const first: GptCopy = disk.gpt.source === 'backup' || lostMark !== undefined ? 'primary' : 'backup';
  const existing = table.partitions.find(({ typeGuid }) => typeGuid === diskLayout.data.typeGuid);
  const partition = existing ?? newDataPartition(disk.path, table, newUuid);
  const gpt = existing === undefined ? addPartition(table, partition) : table;
  const creates = !isInitialised(partition);
  const steps: DataStep[] = [];
  if (existing === undefined) steps.push({ kind: 'write-table', reason: 'add the data partition', gpt, first });
  else if (!disk.gpt.isConsistent)
    steps.push({ kind: 'write-table', reason: `repair: ${damageOf(disk.gpt, lostMark !== undefined)}`, gpt, first });
  const shown = showToKernel(disk, gpt, partition);
  if (shown !== undefined) steps.push(shown);
  if (!creates) {
    steps.push({ kind: 'open-volume' }, { kind: 'check-filesystem' }, { kind: 'mount' });
  } else {
    const marked = setPartitionAttribute(gpt, partition.number, initialisedAttributeBit, true);
    steps.push({ kind: 'create-volume' }, { kind: 'open-volume' }, { kind: 'make-filesystem' }, { kind: 'mount' });
    steps.push({ kind: 'mark-initialised', gpt: marked, first: 'backup' });
  }
  return { partition, creates, steps };
}

/** Data was made on this disk, says either copy of its table. */
export function holdsInitialisedData(gpt: DecodedGpt): boolean {
  const isData = ({ typeGuid }: GptPartition) => typeGuid === diskLayout.data.typeGuid;
  return [...gpt.partitions, ...gpt.otherPartitions].some((partition) => isData(partition) && isInitialised(partition));
}

function isInitialised({ attributes }: GptPartition): boolean {
  return (attributes & (1n << BigInt(initialisedAttributeBit))) !== 0n;
}

/**
 * The number of the data partition that only the backup marks as initialised: the power went while the mark was written.
 * Throws when the backup's is not the partition of the primary: that is somebody's data, and nothing is made over it.
 */
function markOnlyInBackup({ path, gpt }: DiskState): number | undefined {
  const isData = ({ typeGuid }: GptPartition) => typeGuid === diskLayout.data.typeGuid;
  const counting = gpt.partitions.find(isData);
  const other = gpt.otherPartitions.find((partition) => isData(partition) && isInitialised(partition));
  if (other === undefined || (counting !== undefined && isInitialised(counting))) return undefined;
  const isSame =
    counting !== undefined &&
    (['number', 'uniqueGuid', 'startLba', 'endLba'] as const).every((key) => counting[key] === other[key]);
  if (isSame) return counting.number;
  throw new Error(
    `cannot make a data partition on ${path}: the table at its start has no data yet, but the one at its end has an ` +
      `initialised data partition (${other.uniqueGuid}); nothing was written. To keep that data, restore the table ` +
      '(sgdisk --load-backup, or "use backup header" of gdisk); to give it up, wipe the disk before the image is written to it',
  );
}

function newDataPartition(path: string, table: Gpt, uuid: string): GptPartition {
  const { number, typeGuid, name, minimumBytes } = diskLayout.data;
  const taken = table.partitions.find((partition) => partition.number === number);
  if (taken !== undefined) {
    throw new Error(
      `cannot add the data partition to ${path}: partition ${number} is "${taken.name}" of type ${taken.typeGuid}, ` +
        'which Ashlar did not make; install Ashlar on a disk of its own',
    );
  }
  const alignment = partitionAlignmentBytes / table.sectorSize;
  const lastUsed = table.partitions.reduce((last, { endLba }) => Math.max(last, endLba), usableLbas(table).first - 1);
  const startLba = Math.ceil((lastUsed + 1) / alignment) * alignment;
  const endLba = Math.floor((usableLbas(table).last + 1) / alignment) * alignment - 1;
  const sizeBytes = Math.max(0, (endLba - startLba + 1) * table.sectorSize);
  if (sizeBytes < minimumBytes) {
    const diskMib = Math.floor((table.diskSectors * table.sectorSize) / MIB);
    const missingMib = Math.ceil((minimumBytes - sizeBytes) / MIB);
    throw new DiskTooSmallError(
      `disk too small: ${path} has ${diskMib} MiB, of which ${Math.floor(sizeBytes / MIB)} MiB are left for data and ` +
        `${minimumBytes / MIB} MiB are needed; use a disk of at least ${diskMib + missingMib} MiB`,
    );
  }
  return { number, typeGuid, uniqueGuid: uuid, name, startLba, endLba, attributes: 0n };
}

function damageOf(gpt: DecodedGpt, isMarkLost: boolean): string {
  if (isMarkLost) return 'only the backup table says that the data partition is initialised';
  if (gpt.source === 'backup') return 'the primary table is damaged';
  return gpt.otherPartitions.length > 0 ? 'the two tables differ' : 'the backup table is not at the end of the disk';
}

/** The kernel does not know a partition that was added after it had read the table. */
function showToKernel(disk: DiskState, gpt: Gpt, partition: GptPartition): DataStep | undefined {
  const { number } = partition;
  const startBytes = partition.startLba * gpt.sectorSize;
  const sizeBytes = (partition.endLba - partition.startLba + 1) * gpt.sectorSize;
  const known = disk.kernelPartitions.find((candidate) => candidate.number === number);
  if (known === undefined) return { kind: 'show-to-kernel', number, startBytes, sizeBytes };
  if (known.startBytes !== startBytes || known.sizeBytes !== sizeBytes) {
    throw new Error(
      `cannot use the data partition of ${disk.path}: the kernel has partition ${number} at ${known.startBytes} with ` +
        `${known.sizeBytes} bytes, the table at ${startBytes} with ${sizeBytes}; restart the machine`,
    );
  }
  return undefined;
}
