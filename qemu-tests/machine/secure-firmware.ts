/**
 * Firmware for the machines: OVMF as the package lock has it, with Secure Boot on and given keys enrolled in its
 * variables, as a machine's owner would have done before anything else.
 */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { secureBootVariables } from '../../src/formats/efi-signature-list.ts';
import { enrollSecureBoot } from '../../src/formats/efi-variable-store.ts';
import { type LockedPackageOptions, unpackLockedPackage } from './locked-package.ts';
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
  options: LockedPackageOptions,
): Promise<Firmware> {
  const ovmf = join(await unpackLockedPackage('test', 'ovmf', options), FIRMWARE_PATH);
  const template = await readFile(join(ovmf, 'OVMF_VARS_4M.fd'));
  const variablesPath = join(directory, 'variables.fd');
  await mkdir(directory, { recursive: true });
  await writeFile(variablesPath, enrollSecureBoot(template, secureBootVariables(keys)));
  return { codePath: join(ovmf, 'OVMF_CODE_4M.secboot.fd'), variablesPath };
}
