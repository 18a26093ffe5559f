/**
 * The kernel: Debian's source, our configuration fragments on an empty base, the locked compiler. Same inputs, same
 * bytes: paths, user, host, time and umask are fixed by the tool root and the KBUILD variables.
 */
import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { cacheDirectory, cachedDirectory, inputHash } from '../host/cache.ts';
import type { Progress } from '../host/progress.ts';
import { kernelCommandLine, kernelCommandLineFragment } from './kernel-command-line.ts';
import type { FetchedPackages } from './packages.ts';
import { type Bind, runInToolRoot, type ToolRoot, unpackPackage } from './tool-root.ts';

export interface Kernel {
  bzImage: string;
  /** As `uname -r` says it. */
  release: string;
  /** The complete configuration that came of the fragments. */
  config: string;
  /** Names exactly this kernel's inputs. */
  key: string;
}

const SOURCE_PACKAGE = 'linux-source-6.12';
const FRAGMENT_DIRECTORY = join(import.meta.dirname, '../../image/kernel-config');
/** Lines that a whole build prints; only the progress display depends on it. */
const BUILD_LINES = 2900;

/** What the build may not learn from the host, so that it learns the same everywhere. */
const BUILD_IDENTITY = {
  KBUILD_BUILD_TIMESTAMP: 'Thu Jan  1 00:00:00 UTC 1970',
  KBUILD_BUILD_USER: 'ashlar',
  KBUILD_BUILD_HOST: 'ashlar',
  KBUILD_BUILD_VERSION: '1',
} as const;

// Sources of drivers and architectures that no fragment can ask for; their Kconfig files stay, since others include
// them. They are two thirds of the tree.
const FOREIGN_ARCHITECTURES =
  'alpha arc arm arm64 csky hexagon loongarch m68k microblaze mips nios2 openrisc parisc powerpc riscv s390 sh sparc xtensa';
const NOT_UNPACKED = [
  ...['*.rst', '*.yaml', '*.txt'].map((name) => `--exclude=*/Documentation/${name}`),
  ...['tools/testing', 'tools/perf'].map((path) => `--exclude=*/${path}`),
  ...FOREIGN_ARCHITECTURES.split(' ').flatMap((name) => [
    `--exclude=*/arch/${name}/*.[chS]`,
    `--exclude=*/arch/${name}/*.dts*`,
  ]),
  ...['drivers/gpu/drm/*', 'drivers/media', 'drivers/staging', 'drivers/net/wireless', 'sound'].map(
    (path) => `--exclude=*/${path}/*.[ch]`,
  ),
];

export async function buildKernel(options: {
  packages: FetchedPackages;
  toolRoot: ToolRoot;
  progress: Progress;
  jobs?: number | undefined;
  signal?: AbortSignal | undefined;
}): Promise<Kernel> {
  const { packages, toolRoot, progress } = options;
  const source = packages.packages.find(({ name }) => name === SOURCE_PACKAGE);
  if (source === undefined)
    throw new Error(`cannot build the kernel: image/lock.json lacks ${SOURCE_PACKAGE}; run: mkimage lock`);
  const requested = mergeFragments(await readFragments());
  const key = inputHash('kernel-1', source.sha256, requested.text, JSON.stringify(BUILD_IDENTITY), toolRoot.key);

  const directory = await cachedDirectory(
    'kernel',
    key.slice(0, 32),
    async (output) => {
      const sourceDirectory = await unpackSource({ ...options, sha256: source.sha256 });
      const binds = await bindsFor(sourceDirectory, output);
      await configure(toolRoot, binds, requested, options.signal);
      await progress.step('kernel: compile', async (report) => {
        let lines = 0;
        await runInToolRoot(toolRoot, 'nice', ['-n', '5', 'make', ...makeArguments(options.jobs), 'bzImage'], {
          binds,
          env: { ...BUILD_IDENTITY, ...ccacheEnvironment(toolRoot) },
          signal: options.signal,
          onLine: (line) => {
            if (/^ {2}[A-Z]/.test(line))
              report({ fraction: ++lines / BUILD_LINES, detail: line.trim().replace(/\s+/g, ' ') });
          },
        });
      });
      const built = join(output, 'build');
      await rename(join(built, 'arch/x86/boot/bzImage'), join(output, 'bzImage'));
      await rename(join(built, '.config'), join(output, 'config'));
      await rename(join(built, 'include/config/kernel.release'), join(output, 'release'));
      await rm(built, { recursive: true });
    },
    { signal: options.signal, isChecked: true },
  );
  return {
    bzImage: join(directory, 'bzImage'),
    config: join(directory, 'config'),
    release: (await readFile(join(directory, 'release'), 'utf8')).trim(),
    key,
  };
}

export interface RequestedConfig {
  /** All fragments after one another. */
  text: string;
  /** By symbol, without `CONFIG_`: the value asked for, `undefined` for "is not set". */
  symbols: Map<string, { value: string | undefined; fragment: string }>;
}

/** @throws on a line that is neither comment nor setting, and on a symbol that two lines set */
export function mergeFragments(fragments: readonly { name: string; text: string }[]): RequestedConfig {
  const symbols: RequestedConfig['symbols'] = new Map();
  for (const { name, text } of fragments) {
    for (const [index, line] of text.split('\n').entries()) {
      const unset = /^# CONFIG_(\w+) is not set$/.exec(line);
      const set = /^CONFIG_(\w+)=(\S.*)$/.exec(line);
      const symbol = unset?.[1] ?? set?.[1];
      if (symbol === undefined) {
        if (line === '' || /^#(?! CONFIG_)/.test(line)) continue;
        throw new Error(`cannot read ${name} line ${index + 1}: ${JSON.stringify(line)} is no setting and no comment`);
      }
      const before = symbols.get(symbol);
      if (before !== undefined) {
        throw new Error(
          `cannot merge ${name}: CONFIG_${symbol} is set in ${before.fragment} already; keep one of them`,
        );
      }
      symbols.set(symbol, { value: set?.[2], fragment: name });
    }
  }
  return { text: fragments.map(({ text }) => text).join('\n'), symbols };
}

/** The requested symbols that kconfig did not take as asked, each as a line for a person. */
export function unmetSymbols(requested: RequestedConfig, config: string): string[] {
  const actual = new Map([...config.matchAll(/^CONFIG_(\w+)=(.*)$/gm)].map(([, symbol, value]) => [symbol, value]));
  return [...requested.symbols].flatMap(([symbol, { value, fragment }]) => {
    const got = actual.get(symbol);
    if (got === value) return [];
    return [`CONFIG_${symbol} (${fragment}): asked for ${value ?? 'not set'}, got ${got ?? 'not set'}`];
  });
}

async function readFragments(): Promise<{ name: string; text: string }[]> {
  const names = (await readdir(FRAGMENT_DIRECTORY)).filter((name) => name.endsWith('.config')).sort();
  const written = await Promise.all(
    names.map(async (name) => ({ name, text: await readFile(join(FRAGMENT_DIRECTORY, name), 'utf8') })),
  );
  return [...written, { name: 'kernel-command-line.json', text: kernelCommandLineFragment(kernelCommandLine()) }];
}

async function unpackSource(options: {
  packages: FetchedPackages;
  toolRoot: ToolRoot;
  progress: Progress;
  sha256: string;
  signal?: AbortSignal | undefined;
}): Promise<string> {
  const { packages, toolRoot, progress, sha256 } = options;
  const key = inputHash('kernel-source-1', sha256, ...NOT_UNPACKED).slice(0, 32);
  return cachedDirectory('kernel-source', key, (directory) =>
    progress.step('kernel: unpack the source', async () => {
      const entry = packages.packages.find((candidate) => candidate.sha256 === sha256);
      if (entry === undefined) throw new Error(`cannot unpack the kernel: no package has SHA-256 ${sha256}`);
      const unpacked = join(directory, 'deb');
      await mkdir(unpacked);
      await unpackPackage(packages, entry, unpacked);
      const archive = `/deb/usr/src/${SOURCE_PACKAGE}.tar.xz`;
      await runInToolRoot(
        toolRoot,
        'tar',
        [
          '--extract',
          '--file',
          archive,
          '--strip-components=1',
          '--no-same-owner',
          '--directory=/src',
          ...NOT_UNPACKED,
        ],
        {
          binds: [
            { source: unpacked, target: '/deb' },
            { source: directory, target: '/src', writable: true },
          ],
          env: { XZ_DEFAULTS: '--threads=0' },
          signal: options.signal,
        },
      );
      await rm(unpacked, { recursive: true });
    }),
  );
}

async function bindsFor(source: string, output: string): Promise<Bind[]> {
  const build = join(output, 'build');
  const ccache = join(cacheDirectory(), 'ccache');
  await mkdir(build, { recursive: true });
  await mkdir(ccache, { recursive: true });
  return [
    { source, target: '/src' },
    { source: build, target: '/build', writable: true },
    { source: ccache, target: '/ccache', writable: true },
  ];
}

async function configure(
  toolRoot: ToolRoot,
  binds: readonly Bind[],
  requested: RequestedConfig,
  signal: AbortSignal | undefined,
): Promise<void> {
  const build = binds.find(({ target }) => target === '/build')?.source ?? '';
  await writeFile(join(build, 'requested.config'), requested.text);
  // What scripts/kconfig/merge_config.sh -n comes down to, without its temporary files in the source.
  await runInToolRoot(
    toolRoot,
    'make',
    [...makeArguments(1), 'KCONFIG_ALLCONFIG=/build/requested.config', 'allnoconfig'],
    {
      binds,
      env: { ...BUILD_IDENTITY, ...ccacheEnvironment(toolRoot) },
      signal,
    },
  );
  const unmet = unmetSymbols(requested, await readFile(join(build, '.config'), 'utf8'));
  if (unmet.length > 0) {
    throw new Error(
      `cannot configure the kernel: ${unmet.length} settings of image/kernel-config did not hold (renamed, or a dependency is missing):\n  ${unmet.join('\n  ')}`,
    );
  }
}

function makeArguments(jobs = availableParallelism()): string[] {
  return ['-C', '/src', 'O=/build', `-j${jobs}`, 'CC=ccache gcc-14', 'HOSTCC=ccache gcc-14'];
}

function ccacheEnvironment(toolRoot: ToolRoot): Record<string, string> {
  return {
    CCACHE_DIR: '/ccache',
    // The compiler is what the lock says it is, and always at the same paths: so are the sources.
    CCACHE_COMPILERCHECK: `string:${toolRoot.compiler}`,
    CCACHE_NOHASHDIR: '1',
    // The kernel's own dependency lists say what a file includes: no preprocessor run of ccache's beside the compiler's.
    CCACHE_DEPEND: '1',
    CCACHE_MAXSIZE: '2G',
  };
}
