import { type FileHandle, mkdir, open } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { isErrno, libcFunction } from '../../src/linux/libc.ts';

// flock(2) and not a lock file's mere existence: the kernel drops it when the holder dies, however it dies, so no
// build is ever blocked by a process that is gone. The lock belongs to the open file, so it also excludes two callers
// in one process. Node opens with O_CLOEXEC: children do not inherit it.
const flock = libcFunction('int flock(int fd, int operation)');
const LOCK_EX = 2;
const LOCK_NB = 4;

export interface LockOptions {
  /** Ends the wait. */
  signal?: AbortSignal | undefined;
  /** Called once, when somebody else holds the lock. */
  onWait?: (() => void) | undefined;
}

/** Takes an exclusive lock if it is free, else returns undefined at once. The file is made and never removed. */
export async function tryLockFile(path: string): Promise<AsyncDisposable | undefined> {
  await mkdir(dirname(path), { recursive: true });
  const file = await open(path, 'a', 0o600);
  if (lockNow(file)) return file;
  await file.close();
  return undefined;
}

/** Takes an exclusive lock, waiting without blocking the event loop; disposing of the result releases it. */
export async function lockFile(path: string, options: LockOptions = {}): Promise<AsyncDisposable> {
  await mkdir(dirname(path), { recursive: true });
  const file = await open(path, 'a', 0o600);
  try {
    for (let delayMs = 20; !lockNow(file); delayMs = Math.min(delayMs * 1.5, 1000)) {
      if (delayMs === 20) options.onWait?.();
      await sleep(delayMs, undefined, { signal: options.signal });
    }
    return file;
  } catch (error) {
    await file.close();
    throw error;
  }
}

function lockNow(file: FileHandle): boolean {
  try {
    flock(file.fd, LOCK_EX | LOCK_NB);
    return true;
  } catch (error) {
    if (isErrno(error, 'EAGAIN', 'EWOULDBLOCK', 'EINTR')) return false;
    throw error;
  }
}
