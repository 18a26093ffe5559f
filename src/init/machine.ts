/** What the machine says of itself: Secure Boot, TPM, memory. All of it read from files, none of it trusted. */
import { readFile } from 'node:fs/promises';
import type { NodeStatus } from '../rpc/init-protocol.ts';

const EFI_GLOBAL_VARIABLE = '8be4df61-93ca-11d2-aa0d-00e098032b8c';
const EFIVARS = '/sys/firmware/efi/efivars';
const PCR_COUNT = 24;

/** The firmware's own word on Secure Boot. What counts for keys is PCR 7, not this. */
export async function readSecureBoot(directory = EFIVARS): Promise<NodeStatus['secureBoot']> {
  const [setupMode, secureBoot] = await Promise.all(
    ['SetupMode', 'SecureBoot'].map((name) => readEfiFlag(`${directory}/${name}-${EFI_GLOBAL_VARIABLE}`)),
  );
  if (setupMode === 1) return 'setup';
  if (secureBoot === undefined) return 'unknown';
  return secureBoot === 1 ? 'enabled' : 'disabled';
}

/** The SHA-256 bank in lower-case hex by index; empty without a TPM. Each register is one command to the TPM. */
export async function readPcrs(directory = '/sys/class/tpm/tpm0/pcr-sha256'): Promise<Record<string, string>> {
  const pcrs: Record<string, string> = {};
  for (let index = 0; index < PCR_COUNT; index += 1) {
    const value = await readText(`${directory}/${index}`);
    if (value === null) return {};
    pcrs[index] = value.trim().toLowerCase();
  }
  return pcrs;
}

export async function readMemory(): Promise<NodeStatus['memory']> {
  const text = await readFile('/proc/meminfo', 'ascii');
  const bytes = (key: string) => Number(new RegExp(`^${key}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1] ?? 0) * 1024;
  return { totalBytes: bytes('MemTotal'), availableBytes: bytes('MemAvailable') };
}

/** The firmware's TPM event log, or null when there is none. */
export async function readEventLog(): Promise<Buffer | null> {
  try {
    return await readFile('/sys/kernel/security/tpm0/binary_bios_measurements');
  } catch {
    return null;
  }
}

/** efivarfs gives four bytes of attributes, then the value. */
async function readEfiFlag(path: string): Promise<number | undefined> {
  try {
    return (await readFile(path))[4];
  } catch {
    return undefined;
  }
}

async function readText(path: string): Promise<string | null> {
  try {
    return await readFile(path, 'ascii');
  } catch {
    return null;
  }
}
