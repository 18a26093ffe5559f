/** Why a TPM could not be opened, found out by looking at the machine as Linux shows it. */
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { ownFailure, type TpmError } from './tpm-error.ts';

/** What is looked at; another root or another open() in tests. */
export interface DeviceView {
  /** @default '/' */
  readonly root: string;
  /** Opens for reading and writing, closes, or throws what open(2) says. */
  tryOpen(path: string): void;
}

const MACHINE: DeviceView = { root: '/', tryOpen: (path) => closeSync(openSync(path, 'r+')) };

/**
 * The trouble with the device or socket that a TCTI names, for after a failed attempt. Undefined when it looks well: then
 * the stack's own word is the best there is.
 *
 * The kernel makes /dev/tpmrm0 (the resource manager) for a TPM 2.0 only; a TPM 1.2 has /dev/tpm0 alone.
 */
export function unusableDevice(tcti: string, view: DeviceView = MACHINE): TpmError | undefined {
  const named = /^(device:|swtpm:path=)(\/.+)$/.exec(tcti);
  if (named?.[1] === undefined || named[2] === undefined) return undefined;
  const open = `open TPM ${tcti}`;
  const path = named[2];
  const isSocket = named[1] !== 'device:';
  if (!existsSync(join(view.root, path))) {
    const index = /^\/dev\/tpmrm(\d+)$/.exec(path)?.[1];
    const raw = `/dev/tpm${index}`;
    if (index === undefined || !existsSync(join(view.root, raw))) {
      return ownFailure(open, 'no-tpm', isSocket ? `there is no socket ${path}` : `there is no device ${path}`);
    }
    if (versionOf(basename(raw), view) === '1') return ownFailure(open, 'tpm-1.2', `${raw} is a TPM 1.2`);
    return ownFailure(open, 'resource-manager-absent', `there is ${raw}, but no ${path}`);
  }
  if (isSocket) return undefined;
  try {
    view.tryOpen(join(view.root, path));
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined;
    if (code === 'EBUSY') return ownFailure(open, 'tpm-busy', `another program has ${path} open`);
    if (code === 'ENODEV' || code === 'ENXIO') return ownFailure(open, 'no-tpm', `${path} has no device behind it`);
  }
  return versionOf(basename(path), view) === '1' ? ownFailure(open, 'tpm-1.2', `${path} is a TPM 1.2`) : undefined;
}

/** Linux 5.6 and later say it. */
function versionOf(device: string, { root }: DeviceView): string | undefined {
  const path = join(root, 'sys/class/tpm', device, 'tpm_version_major');
  return existsSync(path) ? readFileSync(path, 'latin1').trim() : undefined;
}
