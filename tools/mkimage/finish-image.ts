/** The end of a build: from a signed UKI to the finished files, the same way whoever signed, and when. */
import { randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { access, copyFile, mkdir, readdir, rename, rm, stat, writeFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import type { EnrolmentFiles } from '../../src/formats/secure-boot-enrolment.ts';
import { fileSha256 } from '../host/cache.ts';
import { lockFile } from '../host/file-lock.ts';
import { writeDiskImage } from './disk-image.ts';
import type { PublicKeys } from './keys.ts';
import { formatMeasurements, predictMeasurements, withDiskImage } from './measurements.ts';
import type { SystemImage } from './system-image.ts';
import type { ToolRoot } from './tool-root.ts';

/** An image but for its signatures and what follows from them. */
export interface PreparedImage {
  readonly version: string;
  /** Seconds since 1970. */
  readonly buildTime: number;
  readonly epoch: number;
  /** Names the tools that made it, and that must finish it. */
  readonly toolsKey: string;
  readonly keys: PublicKeys;
  /** With zeros in place of signatures. */
  readonly uki: Uint8Array;
  readonly system: SystemImage;
  /** For the ESP. */
  readonly enrolment: EnrolmentFiles | undefined;
  /** manifest.json, with an empty list of partitions. */
  readonly manifest: Readonly<Record<string, unknown>>;
}

export interface BuiltImagePaths {
  version: string;
  uki: string;
  systemImage: string;
  diskImage: string;
  measurements: string;
  manifest: string;
  /** Milliseconds by stage. */
  timings: Record<string, number>;
}

export const imageName = (version: string): string => `ashlar-${version}-x86_64`;

/** Runs a stage and keeps its milliseconds. */
export function timer(timings: Record<string, number>) {
  return async <T>(stage: string, work: () => Promise<T>): Promise<T> => {
    const startMs = performance.now();
    const result = await work();
    timings[stage] = Math.round(performance.now() - startMs);
    return result;
  };
}

/** @param options.uki of `prepared`, signed */
export async function finishImage(options: {
  prepared: PreparedImage;
  uki: Uint8Array;
  outDir: string;
  toolRoot: ToolRoot;
  timings: Record<string, number>;
  signal?: AbortSignal | undefined;
}): Promise<BuiltImagePaths> {
  const { prepared, uki, toolRoot, timings, signal } = options;
  const { version, buildTime, system, keys, epoch } = prepared;
  const timed = timer(timings);
  const outDir = resolve(options.outDir);
  await prepareOutDirectory(outDir);
  await using _lock = await holdOutDirectory(outDir, signal);
  const temporary = join(outDir, `.build-${randomBytes(6).toString('hex')}`);
  await mkdir(temporary);
  try {
    const name = imageName(version);
    const gpt = await timed('disk image', async () => {
      await writeFile(join(temporary, `${name}.efi`), uki);
      await copyFile(system.path, join(temporary, `${name}.system.img`));
      const path = join(temporary, `${name}.disk.img`);
      const { enrolment } = prepared;
      return writeDiskImage({ path, uki, enrolment, system, buildTime, toolRoot, signal });
    });
    const measurements = withDiskImage(predictMeasurements(uki, keys, epoch), gpt);
    await writeFile(join(temporary, 'measurements.json'), formatMeasurements(measurements));
    const partitions = gpt.partitions.map(({ attributes: _attributes, ...partition }) => partition);
    const manifest = { ...prepared.manifest, partitions };
    await writeFile(join(temporary, 'manifest.json'), `${JSON.stringify(manifest, undefined, 1)}\n`);
    await timed('sums', () => publish(temporary, outDir, signal));
    const path = (fileName: string) => join(outDir, fileName);
    return {
      version,
      uki: path(`${name}.efi`),
      systemImage: path(`${name}.system.img`),
      diskImage: path(`${name}.disk.img`),
      measurements: path('measurements.json'),
      manifest: path('manifest.json'),
      timings,
    };
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

/**
 * Makes the directory that an image goes to. Called before the long work too, which would be in vain when nothing can be
 * written.
 *
 * @throws Error naming the directory and why nothing can be written to it
 */
export async function prepareOutDirectory(outDir: string): Promise<void> {
  try {
    await makeDirectory(outDir);
    await access(outDir, constants.W_OK | constants.X_OK);
  } catch (error) {
    throw new Error(
      `cannot write the image to ${outDir}: ${error instanceof Error ? error.message : String(error)}; choose another --out`,
      { cause: error },
    );
  }
}

/**
 * Waits until no other build writes its files there, so that two never mix, and takes away what killed ones left: while
 * this is held, nothing unfinished is anybody's.
 */
export async function holdOutDirectory(outDir: string, signal: AbortSignal | undefined): Promise<AsyncDisposable> {
  const lock = await lockFile(join(outDir, '.lock'), { signal });
  for (const name of await readdir(outDir))
    if (name.startsWith('.build-')) await rm(join(outDir, name), { recursive: true, force: true });
  return lock;
}

/** One at a time: Node's own recursive mkdir never ends where a parent answers ENOENT, as in /proc. */
async function makeDirectory(path: string): Promise<void> {
  const found = await stat(path).catch(() => undefined);
  if (found?.isDirectory() === true) return;
  if (found !== undefined) throw new Error(`${path} is no directory`);
  const parent = dirname(path);
  if (parent !== path) await makeDirectory(parent);
  await mkdir(path).catch((error: NodeJS.ErrnoException) => {
    // Somebody else was first.
    if (error.code !== 'EEXIST') throw error;
  });
}

/** Each file appears whole; SHA256SUMS last, so whoever finds it finds what it names. */
async function publish(temporary: string, outDir: string, signal: AbortSignal | undefined): Promise<void> {
  const names = (await readdir(temporary)).sort();
  const sums = await Promise.all(names.map(async (name) => `${await fileSha256(join(temporary, name))}  ${name}\n`));
  // From here on it takes no time, and half of it would be worse than all.
  signal?.throwIfAborted();
  await writeFile(join(temporary, 'SHA256SUMS'), sums.join(''));
  await rm(join(outDir, 'SHA256SUMS'), { force: true });
  for (const name of [...names, 'SHA256SUMS']) await rename(join(temporary, name), join(outDir, name));
}
