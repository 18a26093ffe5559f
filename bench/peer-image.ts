/**
 * Builds the peer (bench/peer/README.md): trixie's mkosi in a trixie root of its own, so that the host's release does
 * not matter. That root is made once; it needs debootstrap, and root, because mkosi there works with real users.
 */
import { randomUUID } from 'node:crypto';
import { cp, mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { cachedDirectory, inputHash } from '../tools/host/cache.ts';
import type { Progress } from '../tools/host/progress.ts';
import { runProcess } from '../tools/host/run-process.ts';
import { findDebianMirror } from '../tools/mkimage/host-apt-sources.ts';

const CONFIGURATION = join(import.meta.dirname, 'peer');
/** Inside the trixie root. */
const WORK = '/peer';
const TOOLS = [
  ...[
    'mkosi',
    'systemd-repart',
    'systemd-ukify',
    'systemd-boot-efi',
    'systemd-boot-tools',
    'erofs-utils',
    'dosfstools',
  ],
  ...[
    'mtools',
    'e2fsprogs',
    'cryptsetup-bin',
    'zstd',
    'python3-cryptography',
    'python3-pefile',
    'kmod',
    'cpio',
    'udev',
  ],
  ...['openssl', 'debian-archive-keyring'],
];

export interface PeerImage {
  readonly diskPath: string;
  readonly ukiBytes: number;
  /** Root file system and its hash tree. */
  readonly systemBytes: number;
  /** With the packages in mkosi's cache. */
  readonly buildMs: number;
  /** After one line of one file has changed. */
  readonly rebuildMs: number;
}

export interface PeerOptions {
  readonly directory: string;
  /** The key whose certificate the machines' firmware trusts. */
  readonly dbKeyPath: string;
  readonly dbCertificatePath: string;
  readonly progress: Progress;
  readonly signal: AbortSignal;
}

/** @throws Error when this is not run as root or debootstrap is missing */
export async function buildPeer(options: PeerOptions): Promise<PeerImage> {
  if (process.getuid?.() !== 0) {
    throw new Error('cannot build the peer: mkosi in a root of its own needs real root; run it with sudo');
  }
  const mirror = await findDebianMirror();
  const root = await options.progress.step('peer: trixie root with mkosi', () => makeToolRoot(mirror, options.signal));
  const work = join(options.directory, 'peer');
  await configure(work, mirror, options);
  const mkosi = (title: string) =>
    options.progress.step(title, (report) => runMkosi(root, work, report, options.signal));
  await mkosi('peer: packages and first build');
  const buildMs = await mkosi('peer: build');
  // What an edit costs: one line of a file that goes into the image.
  const report = join(work, 'mkosi.extra', 'usr', 'lib', 'peer', 'report');
  await writeFile(report, `${await readFile(report, 'utf8')}# ${randomUUID()}\n`);
  const rebuildMs = await mkosi('peer: rebuild after a one-line change');
  const out = join(work, 'out');
  const sizeOf = async (name: string) => (await stat(join(out, name))).size;
  return {
    diskPath: join(out, 'peer.raw'),
    ukiBytes: await sizeOf('peer.efi'),
    systemBytes: (await sizeOf('peer.root-x86-64.raw')) + (await sizeOf('peer.root-x86-64-verity.raw')),
    buildMs,
    rebuildMs,
  };
}

async function makeToolRoot(mirror: { archive: string; security: string }, signal: AbortSignal): Promise<string> {
  return cachedDirectory('objects', `peer-tools-${inputHash(...TOOLS).slice(0, 16)}`, async (directory) => {
    await runProcess('debootstrap', ['--variant=minbase', 'trixie', directory, mirror.archive], { signal });
    // Not debootstrap's --include: it does not understand packages that others provide.
    const install = `set -e; export DEBIAN_FRONTEND=noninteractive; apt-get -qq update; apt-get -qq -y install --no-install-recommends ${TOOLS.join(' ')}`;
    await inRoot(directory, undefined, install, { signal });
  });
}

async function configure(
  work: string,
  mirror: { archive: string; security: string },
  options: PeerOptions,
): Promise<void> {
  await rm(work, { recursive: true, force: true });
  await cp(CONFIGURATION, work, { recursive: true });
  for (const name of ['out', 'keys', 'pkgcache', 'mkcache', 'ws']) await mkdir(join(work, name), { recursive: true });
  const values = { '@MIRROR@': mirror.archive, '@SECURITY_MIRROR@': mirror.security, '@WORK@': WORK };
  for (const path of ['mkosi.conf', ...(await filesBelow(work, 'mkosi.sandbox'))]) {
    let text = await readFile(join(work, path), 'utf8');
    for (const [name, value] of Object.entries(values)) text = text.replaceAll(name, value);
    await writeFile(join(work, path), text);
  }
  await cp(options.dbKeyPath, join(work, 'keys', 'db.key'));
  await cp(options.dbCertificatePath, join(work, 'keys', 'db.crt'));
  await runProcess('openssl', [
    ...['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=peer policy key', '-days', '3650'],
    ...['-keyout', join(work, 'keys', 'pol.key'), '-out', join(work, 'keys', 'pol.crt')],
  ]);
}

async function filesBelow(base: string, directory: string): Promise<string[]> {
  const entries = await readdir(join(base, directory), { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(base.length + 1));
}

async function runMkosi(
  root: string,
  work: string,
  report: (update: { detail: string }) => void,
  signal: AbortSignal,
): Promise<number> {
  const startMs = performance.now();
  await inRoot(root, work, `cd ${WORK} && mkosi --force build`, { signal, onLine: (line) => report({ detail: line }) });
  return performance.now() - startMs;
}

/** Runs a script in the root, in a mount namespace of its own: nothing stays mounted, however this ends. */
async function inRoot(
  root: string,
  work: string | undefined,
  script: string,
  options: { signal: AbortSignal; onLine?: (line: string) => void },
): Promise<void> {
  const mounts = [
    'set -e',
    'mount --bind "$0" "$0"',
    'for d in proc sys dev; do mount --rbind "/$d" "$0/$d"; done',
    'for d in run tmp; do mount -t tmpfs tmpfs "$0/$d"; done',
    'cp -L /etc/resolv.conf "$0/etc/resolv.conf"',
    `if [ -n "$1" ]; then mkdir -p "$0${WORK}"; mount --bind "$1" "$0${WORK}"; fi`,
    'exec chroot "$0" sh -c "$2"',
  ].join('\n');
  await runProcess(
    'unshare',
    ['--mount', '--propagation', 'private', 'sh', '-c', mounts, root, work ?? '', script],
    options,
  );
}
