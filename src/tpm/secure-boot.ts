/** What the firmware says of Secure Boot (UEFI 3.3), through efivarfs. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const EFI_GLOBAL_VARIABLE = '8be4df61-93ca-11d2-aa0d-00e098032b8c';
/** efivarfs puts four bytes of attributes before the value. */
const ATTRIBUTES_BYTES = 4;

export interface SecureBootState {
  /** Images are verified. */
  readonly isEnforced: boolean;
  /** Anybody may enrol keys. */
  readonly isSetupMode: boolean;
}

/** A variable that is missing (no UEFI firmware, no efivarfs) counts as Secure Boot off. */
export function readSecureBootState(efivars = '/sys/firmware/efi/efivars'): SecureBootState {
  return {
    isEnforced: readFlag(efivars, 'SecureBoot') === 1,
    isSetupMode: readFlag(efivars, 'SetupMode') !== 0,
  };
}

function readFlag(efivars: string, name: string): number | undefined {
  try {
    const bytes = readFileSync(join(efivars, `${name}-${EFI_GLOBAL_VARIABLE}`));
    return bytes.length === ATTRIBUTES_BYTES + 1 ? bytes[ATTRIBUTES_BYTES] : undefined;
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
    throw error;
  }
}
