/** mount(2) and umount2(2). Flags from linux/mount.h. */
import { libcFunction } from './libc.ts';

export const MS_RDONLY = 0x1;
export const MS_NOSUID = 0x2;
export const MS_NODEV = 0x4;
export const MS_NOEXEC = 0x8;
export const MS_REMOUNT = 0x20;
export const MS_NOATIME = 0x400;
export const MS_BIND = 0x1000;
export const MS_MOVE = 0x2000;
export const MS_REC = 0x4000;
export const MS_PRIVATE = 1 << 18;

/** Detach now, finish when the last user is gone. */
export const MNT_DETACH = 2;

export interface MountRequest {
  readonly source: string;
  readonly target: string;
  /** File system type; not needed for bind, move and remount. */
  readonly type?: string;
  /** `MS_*`, or-ed. @default 0 */
  readonly flags?: number;
  /** File system options, comma separated. */
  readonly data?: string;
}

const mountFunction = libcFunction(
  'int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)',
);
const umount2 = libcFunction('int umount2(const char *target, int flags)');

/** Mounts a file system. Throws `LinuxError` (`EBUSY`: already mounted there; `ENODEV`: not in this kernel). */
export function mount({ source, target, type, flags = 0, data }: MountRequest): void {
  mountFunction(source, target, type ?? null, flags, data ?? null);
}

/** Unmounts `target`. Throws `LinuxError` (`EBUSY`: still in use, unless `MNT_DETACH`; `EINVAL`: not a mount point). */
export function unmount(target: string, flags = 0): void {
  umount2(target, flags);
}

/** Moves a mounted tree; `target` must exist. */
export function moveMount(source: string, target: string): void {
  mount({ source, target, flags: MS_MOVE });
}
