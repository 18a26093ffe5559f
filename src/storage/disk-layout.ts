/**
 * The partition table of a node, in one place: the image builder ships partitions 1 to 3, the node adds DATA.
 */
const MIB = 1024 * 1024;

export interface PartitionSpecification {
  readonly number: number;
  /** In the table, and on the console. */
  readonly name: string;
  readonly typeGuid: string;
}

/** A type GUID of our own: "ashlar", "Bs", "system" and a number in ASCII. */
const systemTypeGuid = '6173686c-6172-4273-8973-74656d000001';

/** The first four as they lie on the disk, one after another from 1 MiB on. */
export const diskLayout = {
  /** Firmware reads it: FAT32. */
  esp: { number: 1, name: 'ESP', typeGuid: 'c12a7328-f81f-11d2-ba4b-00a0c93ec93b', sizeBytes: 192 * MIB },
  systemA: { number: 2, name: 'SYSTEM-A', typeGuid: systemTypeGuid, sizeBytes: 256 * MIB },
  systemB: { number: 3, name: 'SYSTEM-B', typeGuid: systemTypeGuid, sizeBytes: 256 * MIB },
  /** Takes the rest of the disk. */
  data: { number: 4, name: 'DATA', typeGuid: '6173686c-6172-4264-8174-610000000001', minimumBytes: 512 * MIB },
} as const satisfies Record<string, PartitionSpecification & ({ sizeBytes: number } | { minimumBytes: number })>;

/** Partitions begin at multiples of it: erase blocks and RAID stripes divide it. */
export const partitionAlignmentBytes = MIB;

/** GPT attribute of DATA: set last, when its file system is on the disk. From then on nothing formats it. */
export const initialisedAttributeBit = 48;
