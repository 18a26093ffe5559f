/**
 * `mkimage build`, from the lock to the finished files:
 *
 *     packages ─▶ tools ─┬─▶ kernel ───────────────────────────┐
 *                        ├─▶ executable ─┬─▶ initramfs ────────┼─▶ UKI ─┬─▶ disk image
 *     src/ ─▶ bundles ───┴───────────────┴─▶ system partition ─┘        └─▶ measurements
 *
 * Every stage is cached by the hash of its inputs, so a change of ours repeats only what depends on it.
 */
import { createHash, randomBytes } from 'node:crypto';
import { copyFile, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import packageJson from '../../package.json' with { type: 'json' };
import { exactly, integer, object } from '../../src/formats/json-shape.ts';
import { maxEpoch, policyRefOfEpoch } from '../../src/measure/policy.ts';
import { orderServices, parseServiceManifest } from '../../src/supervisor/service-manifest.ts';
import { fileSha256 } from '../host/cache.ts';
import type { Progress } from '../host/progress.ts';
import { BUNDLES, type Bundle, bundle } from './bundle.ts';
import { writeDiskImage } from './disk-image.ts';
import { createElfReader, type TreeEntry } from './file-tree.ts';
import type { BuiltFiles } from './image-manifest.ts';
import { openImagePackages, readIndexed } from './image-packages.ts';
import { buildInitramfs } from './initramfs.ts';
import { buildKernel } from './kernel.ts';
import { kernelCommandLine, kernelCommandLineWords } from './kernel-command-line.ts';
import { developmentKeys, loadKeys } from './keys.ts';
import { formatMeasurements, withDiskImage } from './measurements.ts';
import { fetchPackages, readPackageLock } from './packages.ts';
import { buildExecutable } from './sea.ts';
import { buildSystemImage } from './system-image.ts';
import { buildSystemTree, builtText } from './system-tree.ts';
import { noVariant, readTestVariant, refuseUnfitKeys } from './test-variant.ts';
import { openToolRoot } from './tool-root.ts';
import { assembleUki } from './uki.ts';

export interface BuildOptions {
  outDir: string;
  /** @default the development keys, made when they are not there */
  keysDir?: string | undefined;
  /** Services more, which attack the node; the keys must be test-only. @default none */
  testVariantDir?: string | undefined;
  /** Take the suite's newest where the mirror no longer has the locked version. @default false */
  allowDrift?: boolean | undefined;
  /** @default the mirror that the host's apt uses */
  mirror?: string | undefined;
  /** The image's epoch. @default the one in `image/epoch.json` */
  epoch?: number | undefined;
  progress: Progress;
  /** Parallel jobs of the kernel's build. The image does not depend on it. @default the processors */
  jobs?: number | undefined;
  signal?: AbortSignal | undefined;
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

const ROOT = join(import.meta.dirname, '../..');
const STUB = '/usr/lib/systemd/boot/efi/linuxx64.efi.stub';
const KOFFI = join(ROOT, 'node_modules/@koromix/koffi-linux-x64/linux_x64/koffi.node');
const SERVICE_DIRECTORY = join(ROOT, 'image/system/services');
const EPOCH_FILE = join(ROOT, 'image/epoch.json');
const epochFile = object({ version: exactly(1), epoch: integer({ min: 1, max: maxEpoch }) });

export async function buildImage(options: BuildOptions): Promise<BuiltImagePaths> {
  const { progress, signal, mirror, allowDrift } = options;
  const timings: Record<string, number> = {};
  const timed = async <T>(stage: string, work: () => Promise<T>): Promise<T> => {
    const startMs = performance.now();
    const result = await work();
    timings[stage] = Math.round(performance.now() - startMs);
    return result;
  };
  const { version } = packageJson;
  const epoch = options.epoch ?? (await readEpoch());
  const keys = options.keysDir === undefined ? await developmentKeys() : await loadKeys(options.keysDir);
  refuseUnfitKeys(keys, options.testVariantDir);

  const fetched = await timed('packages', async () =>
    fetchPackages(await readPackageLock(), ['tools', 'kernel', 'boot', 'firmware', 'image'], {
      progress,
      mirror,
      allowDrift,
      signal,
    }),
  );
  const buildTime = fetched.lockedAt;
  const toolRoot = await timed('tools', () => openToolRoot(fetched, progress));
  const packages = await timed('files', () => openImagePackages(fetched, ['boot', 'firmware', 'image'], progress));
  // The kernel takes minutes and needs both processors; everything else goes on beside it.
  const kernelBuilt = timed('kernel', () =>
    buildKernel({ packages: fetched, toolRoot, progress, jobs: options.jobs, signal }),
  );
  kernelBuilt.catch(() => {});

  const executable = await timed('executable', () => buildExecutable({ toolRoot, progress, signal }));
  const bundles = await timed('bundles', () =>
    Promise.all(Object.entries(BUNDLES).map(([name, entry]) => bundle(name, entry))),
  );
  const readElf = createElfReader();
  const variant = options.testVariantDir === undefined ? noVariant : await readTestVariant(options.testVariantDir);
  const built: BuiltFiles = {
    executable: await builtFile(executable.path, executable.sha256),
    'koffi.node': await builtFile(KOFFI),
    'release.json': builtText(`${JSON.stringify({ name: 'ashlar', version, buildTime })}\n`),
    'licences.txt': builtText(licences(bundles)),
    ...Object.fromEntries(bundles.map(({ name, code }) => [name, builtText(code)])),
  };
  const services = [...(await readServices()), ...variant.services];
  const systemEntries = await timed('system tree', () =>
    buildSystemTree({
      packages,
      services: orderServices(services.map(({ service }) => service)),
      serviceManifestTexts: Object.fromEntries(services.map(({ name, text }) => [name, text])),
      built,
      serviceFiles: variant.files,
      readElf,
    }),
  );
  const system = await timed('system image', () =>
    buildSystemImage({ entries: systemEntries, toolRoot, buildTime, progress, signal }),
  );
  const osRelease = osReleaseText(version);
  const { path: _path, sizeBytes: _size, sha256: systemSha256, ...verity } = system;
  const description = {
    version,
    buildTime,
    ...verity,
    blockSize: 4096,
    hashAlgorithm: 'sha256',
    policyKeyPem: keys.policyPublicKeyPem,
    sealing: { policyRef: policyRefOfEpoch(epoch) },
  };
  const initramfs = await timed('initramfs', () =>
    buildInitramfs({
      packages,
      toolRoot,
      built: {
        ...built,
        'system.json': builtText(`${JSON.stringify(description, undefined, 2)}\n`),
        'os-release': builtText(osRelease),
      },
      readElf,
      progress,
      signal,
    }),
  );
  const kernel = await kernelBuilt;
  const stub = packages.find(STUB);
  if (stub === undefined) throw new Error(`cannot build the UKI: systemd-boot-efi has no ${STUB}`);
  const { uki, measurements } = await timed('UKI', async () =>
    assembleUki({
      stub: await readIndexed(stub),
      kernel: await readFile(kernel.bzImage),
      initrd: initramfs.bytes,
      cmdline: kernelCommandLine(),
      osRelease,
      uname: kernel.release,
      epoch,
      keys,
    }),
  );

  const outDir = resolve(options.outDir);
  await mkdir(outDir, { recursive: true });
  const temporary = join(outDir, `.build-${randomBytes(6).toString('hex')}`);
  await mkdir(temporary);
  try {
    const name = `ashlar-${version}-x86_64`;
    const gpt = await timed('disk image', async () => {
      await writeFile(join(temporary, `${name}.efi`), uki);
      await copyFile(system.path, join(temporary, `${name}.system.img`));
      return writeDiskImage({ path: join(temporary, `${name}.disk.img`), uki, system, buildTime, toolRoot, signal });
    });
    await writeFile(join(temporary, 'measurements.json'), formatMeasurements(withDiskImage(measurements, gpt)));
    const manifest = {
      name: 'ashlar',
      version,
      buildTime,
      epoch,
      keys: {
        isDevelopment: keys.isDevelopment,
        ...(keys.isTestOnly && { isTestOnly: true }),
        dbCertificateSha256: sha256Of(keys.dbCertificatePem),
      },
      kernel: {
        release: kernel.release,
        configSha256: await fileSha256(kernel.config),
        commandLine: kernelCommandLineWords,
      },
      system: verity,
      partitions: gpt.partitions.map(({ attributes: _attributes, ...partition }) => partition),
      packages: fetched.packages.map(({ name: package_, version: packageVersion, sha256, groups }) => ({
        name: package_,
        version: packageVersion,
        sha256,
        groups,
      })),
      drift: fetched.drift,
      npmPackages: [...new Set(bundles.flatMap((made) => made.packages))].sort(),
      services: services.map(({ service }) => service.name),
      files: { system: systemEntries.map(manifestFile), initramfs: initramfs.entries.map(manifestFile) },
    };
    await writeFile(join(temporary, 'manifest.json'), `${JSON.stringify(manifest, undefined, 1)}\n`);
    await timed('sums', () =>
      publish(temporary, outDir, {
        [`${name}.efi`]: createHash('sha256').update(uki).digest('hex'),
        [`${name}.system.img`]: systemSha256,
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

/** The epoch of images of this source tree. */
async function readEpoch(): Promise<number> {
  return epochFile(JSON.parse(await readFile(EPOCH_FILE, 'utf8')), 'image/epoch.json').epoch;
}

async function readServices() {
  const names = (await readdir(SERVICE_DIRECTORY)).filter((name) => name.endsWith('.json')).sort();
  return Promise.all(
    names.map(async (name) => {
      const text = await readFile(join(SERVICE_DIRECTORY, name), 'utf8');
      return { name, text, service: parseServiceManifest(text, name) };
    }),
  );
}

async function builtFile(hostPath: string, sha256?: string) {
  const { size } = await stat(hostPath);
  return {
    content: { kind: 'host-file' as const, hostPath },
    sha256: sha256 ?? (await fileSha256(hostPath)),
    size,
    origin: 'ashlar',
  };
}

function osReleaseText(version: string): string {
  return `ID=ashlar\nNAME=Ashlar\nVERSION_ID=${version}\nPRETTY_NAME="Ashlar ${version}"\n`;
}

function licences(bundles: readonly Bundle[]): string {
  const texts = new Set(bundles.map((made) => made.licences.trim()).filter((text) => text !== ''));
  return `${[...texts].join('\n\n')}\n`;
}

function manifestFile(entry: TreeEntry) {
  const base = { path: entry.path, type: entry.type, mode: entry.mode.toString(8).padStart(4, '0'), owner: '0:0' };
  if (entry.type === 'file') return { ...base, size: entry.size, sha256: entry.sha256, origin: entry.origin };
  if (entry.type === 'link') return { ...base, target: entry.target };
  return base;
}

function sha256Of(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}
