/** The end of a build: from a signed UKI to the finished files, the same way whoever signed, and when. */
import { createHash, randomBytes } from 'node:crypto';
import { copyFile, mkdir, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import type { EnrolmentFiles } from '../../src/formats/secure-boot-enrolment.ts';
import { fileSha256 } from '../host/cache.ts';
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
  await mkdir(outDir, { recursive: true });
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
    await timed('sums', () =>
      publish(temporary, outDir, {
        [`${name}.efi`]: createHash('sha256').update(uki).digest('hex'),
        [`${name}.system.img`]: system.sha256,
      }),
    );
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

/** Each file appears whole; SHA256SUMS last, so whoever finds it finds what it names. */
async function publish(temporary: string, outDir: string, known: Readonly<Record<string, string>>): Promise<void> {
  const names = (await readdir(temporary)).sort();
  const sums = await Promise.all(
    names.map(async (name) => `${known[name] ?? (await fileSha256(join(temporary, name)))}  ${name}\n`),
  );
  await writeFile(join(temporary, 'SHA256SUMS'), sums.join(''));
  await rm(join(outDir, 'SHA256SUMS'), { force: true });
  for (const name of [...names, 'SHA256SUMS']) await rename(join(temporary, name), join(outDir, name));
}
