/** A disk image that boots something else: a copy of ours with another file where the firmware looks. */
import { runProcess } from '../../tools/host/run-process.ts';
import { partitionNamed, readPartitions } from './disk-partitions.ts';

/** @param ukiPath becomes `EFI/BOOT/BOOTX64.EFI` of the copy */
export async function diskWithUki(diskImagePath: string, ukiPath: string, copyPath: string): Promise<void> {
  await runProcess('cp', ['--sparse=always', '--reflink=auto', diskImagePath, copyPath]);
  const esp = partitionNamed(await readPartitions(copyPath), 'ESP');
  await runProcess('mcopy', ['-o', '-i', `${copyPath}@@${esp.offset}`, ukiPath, '::/EFI/BOOT/BOOTX64.EFI']);
}
