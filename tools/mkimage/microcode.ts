/**
 * Processor microcode in the form of the kernel's early loader (Documentation/arch/x86/microcode.rst): one file for each
 * vendor, the packages' files after one another.
 *
 * All of AMD's is small. Of Intel's 14 MB that of the Xeon Scalable generations 1 to 5 is taken: each megabyte of the UKI
 * is hashed four times by the firmware and the stub at every boot. (Xeon 6 alone would be another 5 MB.)
 */
import { posix } from 'node:path';
import { type ImagePackages, type PackageFile, readIndexed } from './image-packages.ts';

const AMD_DIRECTORY = '/usr/lib/firmware/amd-ucode';
const INTEL_DIRECTORY = '/usr/lib/firmware/intel-ucode';

/** Family, model and stepping; docs/hardware.md lists them by name. */
const INTEL_SERVERS = /^06-(?:55-0[4-7b]|6a-06|8f-0[4-8]|cf-02)$/;

export interface Microcode {
  readonly name: string;
  readonly data: Buffer;
  /** The package's name. */
  readonly origin: string;
}

export async function readMicrocode(packages: ImagePackages): Promise<Microcode[]> {
  const amd = packages.below(AMD_DIRECTORY).filter(({ path }) => path.endsWith('.bin'));
  const intel = packages.below(INTEL_DIRECTORY).filter(({ path }) => INTEL_SERVERS.test(posix.basename(path)));
  if (amd.length === 0 || intel.length === 0) {
    throw new Error(
      'cannot find microcode: amd64-microcode or intel-microcode has none where it was; compare image/lock.json',
    );
  }
  const join = async (files: readonly PackageFile[]) => {
    // Several steppings share one file under several names.
    const different = [...new Map(files.map((file) => [file.sha256, file])).values()];
    return Buffer.concat(await Promise.all(different.map(readIndexed)));
  };
  return [
    { name: 'AuthenticAMD.bin', data: await join(amd), origin: 'amd64-microcode' },
    { name: 'GenuineIntel.bin', data: await join(intel), origin: 'intel-microcode' },
  ];
}
