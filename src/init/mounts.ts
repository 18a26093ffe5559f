/** Every kernel file system of a node, in the order they are mounted, with the reason for each option. */
import { mkdirSync } from 'node:fs';
import { isErrno } from '../linux/libc.ts';
import { type MountRequest, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REMOUNT, mount } from '../linux/mount.ts';
import type { Logger } from '../supervisor/log-store.ts';

const LOCKED = MS_NOSUID | MS_NODEV | MS_NOEXEC;

/** What stage 1 needs; it moves these into the system's root. */
export const STAGE1_MOUNTS: readonly MountRequest[] = [
  { source: 'proc', target: '/proc', type: 'proc', flags: LOCKED },
  { source: 'sysfs', target: '/sys', type: 'sysfs', flags: LOCKED },
  // Device nodes are what /dev is for; nothing there is executable.
  { source: 'devtmpfs', target: '/dev', type: 'devtmpfs', flags: MS_NOSUID | MS_NOEXEC, data: 'mode=0755' },
  { source: 'tmpfs', target: '/run', type: 'tmpfs', flags: LOCKED, data: 'mode=0755,size=16m' },
];

/** What stage 2 adds. */
export const STAGE2_MOUNTS: readonly MountRequest[] = [
  // nsdelegate: a cgroup namespace is a boundary, so a service cannot lift limits from within.
  {
    source: 'cgroup2',
    target: '/sys/fs/cgroup',
    type: 'cgroup2',
    flags: LOCKED,
    data: 'nsdelegate,memory_recursiveprot',
  },
  // The TPM's event log.
  { source: 'securityfs', target: '/sys/kernel/security', type: 'securityfs', flags: LOCKED },
  {
    source: 'devpts',
    target: '/dev/pts',
    type: 'devpts',
    flags: MS_NOSUID | MS_NOEXEC,
    data: 'mode=0600,ptmxmode=0000',
  },
  { source: 'tmpfs', target: '/dev/shm', type: 'tmpfs', flags: LOCKED, data: 'mode=1777,size=16m' },
  { source: 'tmpfs', target: '/tmp', type: 'tmpfs', flags: LOCKED, data: 'mode=0700,size=16m' },
];

/** Read-only: nothing changes firmware variables in ordinary running. */
const EFI_VARIABLES = {
  source: 'efivarfs',
  target: '/sys/firmware/efi/efivars',
  type: 'efivarfs',
  flags: LOCKED | MS_RDONLY,
} as const;

/** Mounted when the machine has them. */
const OPTIONAL_MOUNTS: readonly MountRequest[] = [EFI_VARIABLES];

/** Makes firmware variables writable while `use` runs. */
export function withWritableEfiVariables<T>(use: (directory: string) => T): T {
  mount({ ...EFI_VARIABLES, flags: MS_REMOUNT | LOCKED });
  try {
    return use(EFI_VARIABLES.target);
  } finally {
    mount({ ...EFI_VARIABLES, flags: MS_REMOUNT | EFI_VARIABLES.flags });
  }
}

/** Mounts each; what is mounted already (by the kernel, or by the stage before) is left as it is. */
export function mountAll(requests: readonly MountRequest[]): void {
  for (const request of requests) {
    try {
      mkdirSync(request.target, { recursive: true });
    } catch (error) {
      // A read-only root must bring the mount points; when it does not, the mount below says which.
      if (!isErrno(error, 'EEXIST', 'EROFS', 'EPERM', 'EACCES', 'ENOENT')) throw error;
    }
    try {
      mount(request);
    } catch (error) {
      if (!isErrno(error, 'EBUSY')) throw error;
    }
  }
}

/** Mounts what a machine may lack: without UEFI there are no variables, and Secure Boot is then unknown. */
export function mountOptional(log: Logger): void {
  for (const request of OPTIONAL_MOUNTS) {
    try {
      mountAll([request]);
    } catch (error) {
      log.debug(`no ${request.type}: ${String(error)}`);
    }
  }
}
