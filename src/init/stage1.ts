/**
 * Stage 1: from the signed initramfs to the verified system.
 *
 *     firmware → UKI (kernel + this initramfs) → stage 1 → dm-verity → execve the same init → stage 2
 *
 * Everything here is measured and signed with the UKI. It trusts one thing beyond itself: the root hash that it carries.
 * Any failure is said on the console and restarts the machine; the watchdog covers what cannot say anything.
 */
import { createHash } from 'node:crypto';
import { copyFile, mkdir } from 'node:fs/promises';
import { isErrno } from '../linux/libc.ts';
import { MS_NODEV, MS_NOSUID, MS_RDONLY, mount, moveMount, unmount } from '../linux/mount.ts';
import { changeRoot } from '../linux/system.ts';
import { openVerity } from '../storage/verity.ts';
import type { Logger, LogStore } from '../supervisor/log-store.ts';
import { type Timeline, writeStage1Record } from './boot-record.ts';
import type { Console } from './console.ts';
import { extendPcr } from './extend-pcr.ts';
import { findSystemPartition, type SystemPartition } from './find-system-partition.ts';
import { freeInitramfs } from './free-initramfs.ts';
import { takePreviousBootEnd } from './previous-boot.ts';
import { readSystemDescription, type SystemDescription } from './system-description.ts';
import { armWatchdogs } from './watchdog.ts';

const DISK_DEADLINE_MS = 30_000;
const SYSTEM_DESCRIPTION = '/etc/ashlar/system.json';
/** Where systemd-stub puts what it took from the UKI's own sections, all of it measured or signed. */
const PCR_SIGNATURES = '/.extra/tpm2-pcr-signature.json';
const NEW_ROOT = '/sysroot';
/** All that stage 2 inherits: whatever the kernel's command line put into the environment ends here. */
const STAGE2_ENVIRONMENT = {
  PATH: '/usr/sbin:/usr/bin',
  // PID 1's threads allocate little; an arena for each of them would cost two megabytes.
  MALLOC_ARENA_MAX: '1',
};

export interface Stage {
  readonly console: Console;
  readonly logStore: LogStore;
  readonly log: Logger;
  readonly timeline: Timeline;
}

/** Runs stage 1 after /proc, /sys, /dev and /run are mounted. Does not return: execve ends it. */
export async function runStage1({ console, logStore, log, timeline }: Stage): Promise<void> {
  timeline.reach('init.stage1', 'start');
  await showPreviousBoot(log, console);
  const watchdogs = armWatchdogs(log);
  const hasTpm = await measurePhase(log);

  const system = await readSystemDescription(SYSTEM_DESCRIPTION);
  const partition = await findSystemPartition(system.partitionUuid, DISK_DEADLINE_MS);
  log.info(`system ${system.version} is ${partition.name} at ${partition.path}`);
  await mountSystem(partition, system);
  timeline.reach('init.stage1', 'system verified');

  await keepForStage2(partition, hasTpm, timeline, logStore);
  watchdogs.handOver();
  await console.flush();
  switchRoot();
  process.execve?.('/usr/bin/init', ['init'], STAGE2_ENVIRONMENT);
  throw new Error('cannot start stage 2: execve of /usr/bin/init returned');
}

async function showPreviousBoot(log: Logger, console: Console): Promise<void> {
  try {
    mount({ source: 'pstore', target: '/sys/fs/pstore', type: 'pstore' });
  } catch (error) {
    log.warning(`how the last boot ended is not known: ${String(error)}`);
    return;
  }
  try {
    const end = await takePreviousBootEnd();
    if (end === null) return;
    log.error(`previous boot ended in ${end.summary}`);
    for (const line of end.tail) log.info(`previous boot: ${line}`);
    // On the console before anything else: what ended that boot may end this one in a moment, too.
    await console.flush();
  } catch (error) {
    log.warning(`cannot read how the last boot ended: ${String(error)}`);
  } finally {
    unmount('/sys/fs/pstore');
  }
}

/** From here until "leave-initrd" the TPM releases what is sealed to this image. */
async function measurePhase(log: Logger): Promise<boolean> {
  const hasTpm = await extendPcr(11, createHash('sha256').update('enter-initrd').digest());
  if (!hasTpm) log.warning('this machine has no TPM: nothing is measured');
  return hasTpm;
}

async function mountSystem(partition: SystemPartition, system: SystemDescription): Promise<void> {
  const verified = openVerity('ashlar-system', partition.path, system);
  await mkdir(NEW_ROOT, { recursive: true });
  mount({ source: verified.path, target: NEW_ROOT, type: 'erofs', flags: MS_RDONLY | MS_NOSUID | MS_NODEV });
}

async function keepForStage2(
  partition: SystemPartition,
  hasTpm: boolean,
  timeline: Timeline,
  logStore: LogStore,
): Promise<void> {
  await mkdir('/run/ashlar', { recursive: true, mode: 0o755 });
  await copyFile(SYSTEM_DESCRIPTION, '/run/ashlar/system.json');
  try {
    await copyFile(PCR_SIGNATURES, '/run/ashlar/tpm2-pcr-signature.json');
  } catch (error) {
    // An image started without the stub (a kernel and initramfs given to QEMU) has none, and will not unseal.
    if (!isErrno(error, 'ENOENT')) throw error;
  }
  await writeStage1Record({
    slot: partition.name === 'SYSTEM-A' ? 'A' : partition.name === 'SYSTEM-B' ? 'B' : 'unknown',
    disk: partition.disk.name,
    systemPartition: partition.path,
    hasTpm: hasTpm ? 'yes' : 'no',
    timeline: [...timeline.entries],
    log: logStore.read({ tail: 1000 }),
  });
}

/** Makes the verified system the root. What it needs of this one is moved, the rest is given back as memory. */
function switchRoot(): void {
  for (const target of ['/proc', '/sys', '/dev', '/run']) moveMount(target, `${NEW_ROOT}${target}`);
  freeInitramfs('/', NEW_ROOT);
  process.chdir(NEW_ROOT);
  moveMount(NEW_ROOT, '/');
  changeRoot('.');
  process.chdir('/');
}
