/**
 * Directories and files that init makes on the data partition. Each is made in a directory that is root's alone; never
 * in one that a service may write, where a service that was taken over could have left anything: what a service needs
 * of init it gets in its /config.
 */
import { constants } from 'node:fs';
import { chmod, chown, lstat, mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { isErrno } from '../linux/libc.ts';

/** Makes a directory of `uid` with mode 0700; whatever else has its name is removed. */
export async function ensureOwnedDirectory(path: string, uid: number): Promise<void> {
  try {
    const found = await lstat(path);
    if (!found.isDirectory()) await rm(path);
  } catch (error) {
    if (!isErrno(error, 'ENOENT')) throw error;
  }
  try {
    await mkdir(path, { mode: 0o700 });
    await syncDirectory(dirname(path));
  } catch (error) {
    if (!isErrno(error, 'EEXIST')) throw error;
  }
  await chown(path, uid, uid);
  await chmod(path, 0o700);
}

/**
 * Writes a file that is either wholly old or wholly new after a power cut: a new name, contents on the disk, then the
 * rename. Does nothing when the file is already so.
 */
export async function writeOwnedFile(path: string, content: string, uid: number): Promise<void> {
  if ((await readOwnedFile(path)) === content && (await isPlainFileOf(path, uid))) return;
  const temporary = join(dirname(path), `.${basename(path)}.new`);
  await rm(temporary, { force: true, recursive: true });
  // O_EXCL with O_CREAT never follows a link in the last part of the path.
  const file = await open(temporary, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL, 0o600);
  try {
    await file.writeFile(content);
    await file.chown(uid, uid);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(temporary, path);
  await syncDirectory(dirname(path));
}

/** The content of a plain file, or null when there is none. */
export async function readOwnedFile(path: string): Promise<string | null> {
  try {
    if (!(await lstat(path)).isFile()) return null;
    return await readFile(path, 'utf8');
  } catch (error) {
    if (isErrno(error, 'ENOENT')) return null;
    throw error;
  }
}

async function isPlainFileOf(path: string, uid: number): Promise<boolean> {
  const found = await lstat(path);
  return found.isFile() && found.uid === uid && (found.mode & 0o777) === 0o600;
}

async function syncDirectory(path: string): Promise<void> {
  await using directory = await open(path, 'r');
  await directory.sync();
}
