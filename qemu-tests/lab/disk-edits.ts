/** What somebody with the disk of a machine that is off can do to it: partitions, files on the ESP, the other slot. */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { decodeGpt, encodeGpt, type Gpt, gptHeadSize, gptTailSize } from '../../src/formats/gpt.ts';
import { runProcess } from '../../tools/host/run-process.ts';
import type { Machine } from '../machine/machine.ts';
import { type PartitionExtent, partitionNamed, readPartitionsWith } from './disk-partitions.ts';

const SECTOR = 512;

/** A partition of the machine's disk. @throws Error that lists what there is */
export async function partitionOf(machine: Machine, name: string): Promise<PartitionExtent> {
  const read = (offset: number, length: number) => machine.readDisk(offset, length);
  return partitionNamed(await readPartitionsWith(read, await machine.diskSizeBytes()), name);
}

/** Copies a partition to a file, lets `edit` change it, and writes it back. */
export async function editPartition(
  machine: Machine,
  name: string,
  edit: (path: string) => Promise<void>,
): Promise<void> {
  const partition = await partitionOf(machine, name);
  const path = join(machine.directory, `partition-${name}`);
  await machine.copyFromDisk(partition.offset, partition.sizeBytes, path);
  await edit(path);
  await machine.copyToDisk(path, partition.offset);
  await rm(path);
}

/** Puts files on the ESP; directories are made. @param files path on the ESP, with slashes → file on this host */
export async function putOnEsp(machine: Machine, files: Readonly<Record<string, string>>): Promise<void> {
  await editPartition(machine, 'ESP', async (esp) => {
    for (const [target, source] of Object.entries(files)) {
      const parents = target.split('/').slice(1, -1);
      for (const [index] of parents.entries()) {
        const directory = `::/${parents.slice(0, index + 1).join('/')}`;
        // -D s: there may be one already.
        await runProcess('mmd', ['-D', 's', '-i', esp, directory], { allowFailure: true });
      }
      await runProcess('mcopy', ['-o', '-i', esp, source, `::${target}`]);
    }
  });
}

/** The partition table of the machine's disk. */
export async function readTable(machine: Machine): Promise<Gpt> {
  const sizeBytes = await machine.diskSizeBytes();
  const head = await machine.readDisk(0, gptHeadSize(SECTOR));
  const tail = await machine.readDisk(sizeBytes - gptTailSize(SECTOR), gptTailSize(SECTOR));
  return decodeGpt({ head, tail, sectorSize: SECTOR, diskSectors: sizeBytes / SECTOR });
}

export async function writeTable(machine: Machine, gpt: Gpt): Promise<void> {
  for (const { offset, bytes } of encodeGpt(gpt)) await machine.writeDisk(offset, bytes);
}

/**
 * Moves the system from slot A to slot B, as an update would have put it there: the content, the PARTUUID that goes with
 * it, and the UKI at EFI/ashlar/b.efi. Slot A is left with a PARTUUID that no image asks for.
 */
export async function moveSystemToSlotB(machine: Machine, image: { systemImagePath: string; ukiPath: string }) {
  const table = await readTable(machine);
  const guidOf = (name: string) => table.partitions.find((partition) => partition.name === name)?.uniqueGuid ?? '';
  const swapped: Readonly<Record<string, string>> = { 'SYSTEM-A': guidOf('SYSTEM-B'), 'SYSTEM-B': guidOf('SYSTEM-A') };
  await machine.copyToDisk(image.systemImagePath, (await partitionOf(machine, 'SYSTEM-B')).offset);
  const { diskGuid, sectorSize, diskSectors } = table;
  const partitions = table.partitions.map((one) => ({ ...one, uniqueGuid: swapped[one.name] ?? one.uniqueGuid }));
  await writeTable(machine, { diskGuid, sectorSize, diskSectors, partitions });
  await putOnEsp(machine, { '/EFI/ashlar/b.efi': image.ukiPath });
}
