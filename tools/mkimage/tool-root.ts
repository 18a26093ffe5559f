/**
 * The tools that decide bytes (compiler, mkfs, packers) run from a root of their own, made of the locked `tools`
 * packages: so an image does not depend on the host's Debian, user, time zone, locale, umask or paths. The root is
 * unpacked, not installed: no maintainer script runs, and the few links that such scripts would make are made here.
 *
 * Commands see /usr read-only, an empty /tmp, no network, and what is bound for them under fixed names.
 */
import { lstat, mkdir, readdir, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { cachedDirectory, inputHash } from '../host/cache.ts';
import type { Progress } from '../host/progress.ts';
import { type ProcessResult, runProcess } from '../host/run-process.ts';
import type { FetchedPackages, LockedPackage } from './packages.ts';

export interface ToolRoot {
  path: string;
  /** Names exactly these tools: a part of the key of everything made with them. */
  key: string;
  /** Names and versions of what compiles: the compiler's part of `key`. */
  compiler: string;
}

export interface Bind {
  /** On the host. */
  source: string;
  /** In the tool root: an absolute path. */
  target: string;
  /** @default false */
  writable?: boolean;
}

export interface ToolOptions {
  binds?: readonly Bind[];
  /** @default '/' */
  cwd?: string;
  env?: Readonly<Record<string, string>>;
  input?: Uint8Array | string;
  signal?: AbortSignal | undefined;
  onLine?: (line: string, stream: 'stdout' | 'stderr') => void;
  allowFailure?: boolean;
}

/** What update-alternatives and other maintainer scripts would have linked. */
const LINKS = {
  'usr/bin/awk': 'mawk',
  'usr/bin/cc': 'gcc-14',
  'usr/bin/cpp': 'cpp-14',
  'usr/bin/gcc': 'gcc-14',
} as const;

const COMPILER_PACKAGES = ['binutils-x86-64-linux-gnu', 'cpp-14-x86-64-linux-gnu', 'gcc-14-x86-64-linux-gnu'] as const;

export async function openToolRoot(packages: FetchedPackages, progress: Progress): Promise<ToolRoot> {
  const tools = packages.packages.filter(({ groups }) => groups.includes('tools'));
  const key = inputHash('tool-root-1', JSON.stringify(LINKS), ...tools.map(({ sha256 }) => sha256).sort());
  const path = await cachedDirectory('toolroot', key.slice(0, 32), (directory) =>
    progress.step('tools: unpack', async (report) => {
      await mergeUsr(directory);
      for (const [index, entry] of tools.entries()) {
        report({ fraction: index / tools.length, detail: entry.name });
        await unpackPackage(packages, entry, directory);
      }
      for (const [link, target] of Object.entries(LINKS)) await symlink(target, join(directory, link));
      await checkMerged(directory);
    }),
  );
  const compiler = COMPILER_PACKAGES.map((name) => `${name}=${tools.find((entry) => entry.name === name)?.version}`);
  return { path, key, compiler: compiler.join(' ') };
}

/** Unpacks a .deb's files; no script of it runs. */
export async function unpackPackage(packages: FetchedPackages, entry: LockedPackage, directory: string): Promise<void> {
  await runProcess('dpkg-deb', ['--extract', await packages.file(entry), directory]);
}

/** Runs a tool of the root. @throws ProcessError as `runProcess` does */
export async function runInToolRoot(
  toolRoot: ToolRoot,
  command: string,
  args: readonly string[],
  options: ToolOptions = {},
): Promise<ProcessResult> {
  const environment = { PATH: '/usr/bin:/usr/sbin', HOME: '/tmp', TZ: 'UTC', LC_ALL: 'C.UTF-8', ...options.env };
  const bwrap = [
    ...['--unshare-all', '--die-with-parent', '--new-session', '--clearenv'],
    ...['--uid', '0', '--gid', '0', '--hostname', 'build'],
    ...['--ro-bind', join(toolRoot.path, 'usr'), '/usr'],
    ...['bin', 'sbin', 'lib', 'lib64'].flatMap((name) => ['--symlink', `usr/${name}`, `/${name}`]),
    ...['--dir', '/etc', '--proc', '/proc', '--dev', '/dev', '--tmpfs', '/tmp'],
    ...(options.binds ?? []).flatMap(({ source, target, writable }) => [
      writable === true ? '--bind' : '--ro-bind',
      source,
      target,
    ]),
    ...Object.entries(environment).flatMap(([name, value]) => ['--setenv', name, value]),
    ...['--chdir', options.cwd ?? '/'],
    // The umask is inherited through everything; only a shell sets it.
    ...['/usr/bin/sh', '-c', 'umask 022; exec "$0" "$@"', command, ...args],
  ];
  return runProcess('bwrap', bwrap, {
    env: { PATH: process.env['PATH'] ?? '/usr/bin:/bin' },
    ...(options.input === undefined ? {} : { input: options.input }),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
    ...(options.onLine === undefined ? {} : { onLine: options.onLine }),
    ...(options.allowFailure === undefined ? {} : { allowFailure: options.allowFailure }),
  });
}

/** Debian's merged /usr: packages still ship files under /lib and /bin, which these links lead to /usr. */
export async function mergeUsr(directory: string): Promise<void> {
  for (const name of ['bin', 'sbin', 'lib', 'lib64']) {
    await mkdir(join(directory, 'usr', name), { recursive: true });
    await symlink(`usr/${name}`, join(directory, name));
  }
}

async function checkMerged(directory: string): Promise<void> {
  for (const name of await readdir(directory)) {
    if (['bin', 'sbin', 'lib', 'lib64'].includes(name) && !(await lstat(join(directory, name))).isSymbolicLink()) {
      throw new Error(
        `cannot use the tools: unpacking replaced the link /${name} by a directory; is dpkg-deb older than 1.18?`,
      );
    }
  }
}
