/**
 * Firmware for the machines: OVMF as the package lock has it, with Secure Boot on and given keys enrolled in its
 * variables, as a machine's owner would have done before anything else.
 */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { secureBootVariables } from '../../src/formats/efi-signature-list.ts';
import { enrollSecureBoot } from '../../src/formats/efi-variable-store.ts';
import { cachedDirectory } from '../../tools/host/cache.ts';
import type { Progress } from '../../tools/host/progress.ts';
import { runProcess } from '../../tools/host/run-process.ts';
import { fetchPackages, readPackageLock } from '../../tools/mkimage/packages.ts';
import type { Firmware } from './machine.ts';

const FIRMWARE_PATH = 'usr/share/OVMF';

export interface SecureBootKeys {
  /** Stands beside each certificate in the variables, and so enters PCR 7. */
  readonly ownerGuid: string;
  readonly pkCertificatePem: string;
  readonly kekCertificatePem: string;
  readonly dbCertificatePem: string;
}

/** Writes the variables of a new machine into `directory`; the executable part stays in the cache. */
export async function makeSecureFirmware(
  directory: string,
  keys: SecureBootKeys,
  options: { progress: Progress; allowDrift?: boolean },
): Promise<Firmware> {
  const ovmf = join(await unpackOvmf(options), FIRMWARE_PATH);
  const template = await readFile(join(ovmf, 'OVMF_VARS_4M.fd'));
  const variablesPath = join(directory, 'variables.fd');
  await mkdir(directory, { recursive: true });
  await writeFile(variablesPath, enrollSecureBoot(template, secureBootVariables(keys)));
  return { codePath: join(ovmf, 'OVMF_CODE_4M.secboot.fd'), variablesPath };
}

async function unpackOvmf(options: { progress: Progress; allowDrift?: boolean }): Promise<string> {
  const packages = await fetchPackages(await readPackageLock(), ['test'], options);
  const ovmf = packages.packages.find((entry) => entry.name === 'ovmf');
  if (ovmf === undefined)
    throw new Error('cannot find firmware: the package lock has no ovmf; make a new one with: mkimage lock');
  return cachedDirectory('objects', `ovmf-${ovmf.sha256}`, async (directory) => {
    await runProcess('dpkg-deb', ['-x', await packages.file(ovmf), directory]);
  });
}
