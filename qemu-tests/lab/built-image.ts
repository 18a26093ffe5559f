/** An image as `mkimage build` leaves it in a directory: which file is which, and what is predicted of it. */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Measurements } from '../../tools/mkimage/measurements.ts';

/** The machines of qemu-tests/: OVMF, keys enrolled offline, nothing in dbx. A profile of measurements.json. */
const MACHINE_PROFILE = 'ovmf-empty-dbx';

export interface BuiltImage {
  readonly directory: string;
  readonly diskImagePath: string;
  readonly ukiPath: string;
  /** The system partition's content. */
  readonly systemImagePath: string;
  readonly measurementsPath: string;
  /** PCR 4, 7 and 11 of a node that runs this image in a machine of ours, in hex by index. */
  readonly predictedPcrs: Readonly<Record<string, string>>;
}

export async function readBuiltImage(directory: string): Promise<BuiltImage> {
  const names = await readdir(directory);
  const path = (ending: string) => {
    const found = names.filter((name) => name.startsWith('ashlar-') && name.endsWith(ending));
    if (found.length !== 1) {
      throw new Error(`cannot use the image in ${directory}: ${found.length} files end in ${ending}; build it anew`);
    }
    return join(directory, found[0] as string);
  };
  const measurementsPath = join(directory, 'measurements.json');
  const text = await readFile(measurementsPath, 'utf8');
  const { pcr4, pcr7, pcr11 } = JSON.parse(text) as Measurements;
  return {
    directory,
    diskImagePath: path('.disk.img'),
    ukiPath: path('.efi'),
    systemImagePath: path('.system.img'),
    measurementsPath,
    predictedPcrs: {
      '4': pcr4['secure-boot-on'],
      '7': pcr7[MACHINE_PROFILE] ?? '',
      '11': pcr11['leave-initrd'],
    },
  };
}
