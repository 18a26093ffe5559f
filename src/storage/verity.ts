/**
 * dm-verity: a partition as a read-only device whose every block is checked against a root hash when it is read
 * (kernel documentation: admin-guide/device-mapper/verity). Corruption panics the kernel, so that a changed system
 * never runs on; the panic record and the reboot are what the next boot shows.
 */
import { createReadOnlyMapping, type MappedDevice } from '../linux/device-mapper.ts';

export interface VerityDescription {
  /** Lower-case hex, SHA-256. */
  readonly rootHash: string;
  readonly salt: string;
  readonly dataBlocks: number;
  /** Where the hash tree starts in the same device, in blocks, after the superblock. */
  readonly hashStartBlock: number;
  readonly blockSize: number;
  readonly hashAlgorithm: string;
}

/** Opens `device` as mapping `name`. Throws `LinuxError`; the first reads decide whether its content is genuine. */
export function openVerity(name: string, device: string, verity: VerityDescription): MappedDevice {
  return createReadOnlyMapping(name, {
    type: 'verity',
    sizeBytes: verity.dataBlocks * verity.blockSize,
    parameters: verityParameters(device, verity),
  });
}

/** The target's parameters: format version 1, data and hash tree on one device, one optional feature. */
export function verityParameters(device: string, verity: VerityDescription): string {
  const { blockSize, dataBlocks, hashStartBlock, hashAlgorithm, rootHash, salt } = verity;
  return [
    1,
    device,
    device,
    blockSize,
    blockSize,
    dataBlocks,
    hashStartBlock,
    hashAlgorithm,
    rootHash,
    salt === '' ? '-' : salt,
    1,
    'panic_on_corruption',
  ].join(' ');
}
