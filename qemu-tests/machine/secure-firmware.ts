/**
 * Firmware for the machines: OVMF as a package lock has it, with Secure Boot on and given keys enrolled in its
 * variables, as a machine's owner would have done before anything else; or in one of the states in which an owner, or
 * somebody else, may have left it.
 */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  efiGlobalVariable,
  efiImageSecurityDatabase,
  type SecureBootVariables,
  secureBootVariables,
} from '../../src/formats/efi-signature-list.ts';
import { enrollSecureBoot, readVariables, setVariable } from '../../src/formats/efi-variable-store.ts';
import bookworm from './bookworm-firmware.json' with { type: 'json' };
import { type LockedPackageOptions, unpackLockedPackage } from './locked-package.ts';
import type { Firmware } from './machine.ts';

const FIRMWARE_PATH = 'usr/share/OVMF';
/** OVMF's own switch beside the keys (gEfiSecureBootEnableDisableGuid). */
const SECURE_BOOT_ENABLE = { name: 'SecureBootEnable', vendorGuid: 'f0a30bc7-af08-4556-99c4-001009c93a44' } as const;
const NON_VOLATILE_BOOT_SERVICE = 0x03;

export interface SecureBootKeys {
  /** Stands beside each certificate in the variables, and so enters PCR 7. */
  readonly ownerGuid: string;
  readonly pkCertificatePem: string;
  readonly kekCertificatePem: string;
  readonly dbCertificatePem: string;
}

export interface FirmwareState {
  /** OVMF 2025.02 of trixie, or 2022.11 of bookworm. @default 'trixie' */
  readonly release?: 'trixie' | 'bookworm';
  /** `off`: the keys are there, and not looked at. `setup-mode`: there are no keys, anybody may enrol some. @default 'on' */
  readonly secureBoot?: 'on' | 'off' | 'setup-mode';
  /** The revocation list; `dummy` is what virt-fw-vars enrols. @default 'empty', no variable at all */
  readonly dbx?: 'empty' | 'dummy' | Uint8Array;
}

/** Writes the variables of a new machine into `directory`; the executable part stays in the cache. */
export async function makeSecureFirmware(
  directory: string,
  keys: SecureBootKeys,
  options: LockedPackageOptions,
  state: FirmwareState = {},
): Promise<Firmware> {
  const from = state.release === 'bookworm' ? { from: bookworm } : {};
  const ovmf = join(await unpackLockedPackage('test', 'ovmf', { ...options, ...from }), FIRMWARE_PATH);
  const template = await readFile(join(ovmf, 'OVMF_VARS_4M.fd'));
  const variablesPath = join(directory, 'variables.fd');
  await mkdir(directory, { recursive: true });
  await writeFile(variablesPath, putIntoState(template, keys, state));
  return { codePath: join(ovmf, 'OVMF_CODE_4M.secboot.fd'), variablesPath };
}

/** @param image OVMF_VARS_4M.fd as OVMF ships it, or of a machine that ran: what else is in it stays */
export function putIntoState(image: Uint8Array, keys: SecureBootKeys, state: FirmwareState): Uint8Array {
  if (state.secureBoot === 'setup-mode') {
    const databases = ['PK', 'KEK', 'db', 'dbx'];
    const keyed = readVariables(image).filter(({ name }) => databases.includes(name));
    return keyed.reduce((changed, variable) => setVariable(changed, { ...variable, data: new Uint8Array() }), image);
  }
  const enrolled = enrollSecureBoot(image, secureBootVariables({ ...keys, dbx: state.dbx ?? 'empty' }));
  if (state.secureBoot !== 'off') return enrolled;
  const off = { ...SECURE_BOOT_ENABLE, attributes: NON_VOLATILE_BOOT_SERVICE, data: Uint8Array.of(0) };
  return setVariable(enrolled, off);
}

/** The four Secure Boot variables in an image of OVMF's flash: what its firmware will measure into PCR 7. */
export function secureBootVariablesIn(image: Uint8Array): SecureBootVariables {
  const variables = readVariables(image);
  const data = (wanted: string, guid: string) =>
    variables.find(({ name, vendorGuid }) => name === wanted && vendorGuid === guid)?.data ?? new Uint8Array();
  return {
    pk: data('PK', efiGlobalVariable),
    kek: data('KEK', efiGlobalVariable),
    db: data('db', efiImageSecurityDatabase),
    dbx: data('dbx', efiImageSecurityDatabase),
  };
}
