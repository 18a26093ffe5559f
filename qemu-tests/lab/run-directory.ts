/**
 * What the test files of one run share: each is a process of its own, and the image should be built, and the first node
 * provisioned, once. The run is named after the test runner's process, and its directory goes when that process has.
 */
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { lockFile } from '../../tools/host/file-lock.ts';

/** In the checkout, because /tmp may be memory, and disks are large. */
const OUT = join(import.meta.dirname, '..', '..', 'out');

const DONE = 'done';

export const evidenceDirectory = join(OUT, 'test-evidence');

export interface RunDirectory {
  readonly path: string;
  /** The directory `name` in it, filled by `make` in the first process that asks; others wait for it. */
  shared(name: string, make: (directory: string) => Promise<void>): Promise<string>;
}

export async function openRunDirectory(): Promise<RunDirectory> {
  const runs = join(OUT, 'test-runs');
  await mkdir(runs, { recursive: true });
  await sweep(runs);
  // Under the test runner the parent is the runner, which all files of the run share. A file started by hand is a run
  // of its own: its parent is a shell, which lives on while the sources change.
  const pid = process.env.NODE_TEST_CONTEXT === undefined ? process.pid : process.ppid;
  const path = join(runs, `${pid}-${await startTime(pid)}`);
  await mkdir(path, { recursive: true });
  return { path, shared: (name, make) => shared(path, name, make) };
}

async function shared(path: string, name: string, make: (directory: string) => Promise<void>): Promise<string> {
  const directory = join(path, name);
  await using _lock = await lockFile(join(path, `${name}.lock`));
  const outcome = await readFile(join(path, `${name}.outcome`), 'utf8').catch(() => undefined);
  if (outcome === DONE) return directory;
  if (outcome !== undefined)
    throw new Error(`cannot go on: an earlier test of this run failed to make ${name}: ${outcome}`);
  await rm(directory, { recursive: true, force: true });
  await mkdir(directory);
  try {
    await make(directory);
  } catch (error) {
    // Not tried again: it would fail again, after the same minutes.
    await writeFile(join(path, `${name}.outcome`), error instanceof Error ? error.message : String(error));
    throw error;
  }
  await writeFile(join(path, `${name}.outcome`), DONE);
  return directory;
}

/** Removes what runs left whose process is gone. */
async function sweep(runs: string): Promise<void> {
  for (const name of await readdir(runs)) {
    const [pid, started] = name.split('-');
    if ((await startTime(Number(pid))) !== started) await rm(join(runs, name), { recursive: true, force: true });
  }
}

/** Field 22 of /proc/PID/stat: with it a process number names one process for the life of this host. */
async function startTime(pid: number): Promise<string | undefined> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined);
  return stat?.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
}
