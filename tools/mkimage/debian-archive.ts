/**
 * A private apt: own sources, lists, cache and an empty status, so that neither what the host has installed nor its
 * pins and hooks reach into an image, and nothing of ours reaches into the host. The host's other settings (proxies)
 * hold. Signatures are always checked, against Debian's own archive keyring.
 */
import { createHash } from 'node:crypto';
import { mkdir, rename, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { cacheDirectory } from '../host/cache.ts';
import { lockFile } from '../host/file-lock.ts';
import { type ProcessResult, runProcess } from '../host/run-process.ts';
import { findDebianMirror } from './host-apt-sources.ts';

/** One version of one binary package as the archive's signed index has it. */
export interface ArchivePackage {
  name: string;
  version: string;
  architecture: string;
  suite: string;
  /** Path below the archive's base. */
  path: string;
  sha256: string;
  size: number;
}

export interface DebianArchive {
  /** Brings the lists up to date. */
  update(): Promise<void>;
  /** Names and versions that installing `names` into nothing would install. */
  closure(names: readonly string[]): Promise<{ name: string; version: string }[]>;
  /** What the lists say about these versions; those that they do not have are left out. */
  describe(packages: readonly { name: string; version: string }[]): Promise<ArchivePackage[]>;
  /** The newest version of each name. */
  newest(names: readonly string[]): Promise<{ name: string; version: string }[]>;
  /** Downloads into a directory; file names are apt's. */
  download(
    packages: readonly { name: string; version: string }[],
    directory: string,
    onProgress: (percent: number) => void,
  ): Promise<void>;
}

const KEYRINGS = [
  '/usr/share/keyrings/debian-archive-keyring.pgp',
  '/usr/share/keyrings/debian-archive-keyring.gpg',
] as const;

export async function openDebianArchive(options: {
  suites: readonly string[];
  components: readonly string[];
  mirror?: string | undefined;
  signal?: AbortSignal | undefined;
}): Promise<DebianArchive> {
  const mirror = await findDebianMirror(options.mirror);
  const keyring = await findKeyring();
  const sources = options.suites
    .map((suite) => {
      const uri = suite.endsWith('-security') ? mirror.security : mirror.archive;
      return `deb [arch=amd64 signed-by=${keyring}] ${uri} ${suite} ${options.components.join(' ')}\n`;
    })
    .join('');
  // One state for each set of sources: two checkouts that use different mirrors do not throw each other's lists away.
  const key = createHash('sha256').update(sources).digest('hex').slice(0, 16);
  const directory = join(cacheDirectory(), 'apt', key);
  await mkdir(join(directory, 'lists', 'partial'), { recursive: true });
  await mkdir(join(directory, 'cache', 'archives', 'partial'), { recursive: true });
  await writeWhole(join(directory, 'sources.list'), sources);
  await writeWhole(join(directory, 'status'), '');
  await writeWhole(join(directory, 'apt.conf'), aptConfiguration(directory));

  const apt = (program: string, args: readonly string[], extra: Partial<Parameters<typeof runProcess>[2]> = {}) =>
    runProcess(program, ['-c', join(directory, 'apt.conf'), ...args], {
      env: { ...inheritedEnvironment(), LC_ALL: 'C.UTF-8', DEBIAN_FRONTEND: 'noninteractive' },
      ...(options.signal === undefined ? {} : { signal: options.signal }),
      ...extra,
    });
  const locked = async (work: () => Promise<ProcessResult>) => {
    await using _lock = await lockFile(join(directory, 'lock'), { signal: options.signal });
    return await work();
  };

  return {
    async update() {
      await locked(() => apt('apt-get', ['-q', '-o', 'APT::Update::Error-Mode=any', 'update']));
    },
    async closure(names) {
      const { stdout } = await locked(() => apt('apt-get', ['-q', '--simulate', 'install', ...names]));
      return [...stdout.matchAll(/^Inst (\S+) \((\S+) /gm)].map(([, name, version]) => ({
        name: (name ?? '').replace(/:amd64$/, ''),
        version: version ?? '',
      }));
    },
    async describe(packages) {
      if (packages.length === 0) return [];
      const names = packages.map(({ name }) => name);
      const suites = parseMadison((await locked(() => apt('apt-cache', ['madison', ...names]))).stdout);
      const known = packages.filter(({ name, version }) => suites.has(`${name} ${version}`));
      if (known.length === 0) return [];
      const asked = known.map(({ name, version }) => `${name}=${version}`);
      const { stdout } = await locked(() => apt('apt-cache', ['show', ...asked]));
      return parseRecords(stdout, suites);
    },
    async newest(names) {
      const { stdout } = await locked(() => apt('apt-cache', ['policy', ...names]));
      return [...stdout.matchAll(/^(\S+):\n {2}Installed: .*\n {2}Candidate: (\S+)$/gm)]
        .map(([, name, version]) => ({ name: name ?? '', version: version ?? '' }))
        .filter(({ version }) => version !== '(none)');
    },
    async download(packages, target, onProgress) {
      const asked = packages.map(({ name, version }) => `${name}=${version}`);
      await locked(() =>
        apt('apt-get', ['-q', '-o', 'APT::Status-Fd=1', 'download', ...asked], {
          cwd: target,
          onLine: (line) => {
            const percent = /^dlstatus:\d+:([\d.]+):/.exec(line)?.[1];
            if (percent !== undefined) onProgress(Number(percent));
          },
        }),
      );
    },
  };
}

function aptConfiguration(directory: string): string {
  return `// Written by mkimage; a change is overwritten.
Dir::Etc::sourcelist "${directory}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State::lists "${directory}/lists";
Dir::State::status "${directory}/status";
Dir::State::extended_states "${directory}/extended_states";
Dir::Cache "${directory}/cache";
#clear APT::Architectures;
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
#clear APT::Default-Release;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
#clear Acquire::IndexTargets::deb::DEP-11;
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Get::AllowUnauthenticated "false";
APT::Sandbox::User "root";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "3";
`;
}

/** `name | version | URI SUITE/COMPONENT ARCH Packages` → suite by "name version". */
export function parseMadison(text: string): Map<string, string> {
  const suites = new Map<string, string>();
  for (const line of text.split('\n')) {
    const match = /^\s*(\S+) \|\s*(\S+) \| \S+ ([^/\s]+)\/\S+ \S+ Packages$/.exec(line);
    if (match?.[1] === undefined || match[2] === undefined || match[3] === undefined) continue;
    const key = `${match[1]} ${match[2]}`;
    if (!suites.has(key)) suites.set(key, match[3]);
  }
  return suites;
}

function parseRecords(text: string, suites: ReadonlyMap<string, string>): ArchivePackage[] {
  const packages = new Map<string, ArchivePackage>();
  for (const stanza of text.split('\n\n')) {
    const field = (name: string) => new RegExp(`^${name}: (.*)$`, 'm').exec(stanza)?.[1] ?? '';
    const name = field('Package');
    const version = field('Version');
    const suite = suites.get(`${name} ${version}`);
    if (suite === undefined || packages.has(name)) continue;
    const sha256 = field('SHA256');
    if (!/^[0-9a-f]{64}$/.test(sha256))
      throw new Error(`cannot use ${name} ${version}: the index has no SHA-256 of it`);
    packages.set(name, {
      name,
      version,
      architecture: field('Architecture'),
      suite,
      path: field('Filename'),
      sha256,
      size: Number(field('Size')),
    });
  }
  return [...packages.values()];
}

async function findKeyring(): Promise<string> {
  for (const path of KEYRINGS) {
    if (await stat(path).catch(() => undefined)) return path;
  }
  throw new Error(
    `cannot verify Debian's signatures: ${KEYRINGS.join(' and ')} are missing; install them with: apt-get install debian-archive-keyring`,
  );
}

function inheritedEnvironment(): Record<string, string> {
  return Object.fromEntries(Object.entries(process.env).filter((entry): entry is [string, string] => !!entry[1]));
}

/** Another process may be reading it: it finds the old content or the new one. */
async function writeWhole(path: string, content: string): Promise<void> {
  const temporary = `${path}.${process.pid}`;
  await writeFile(temporary, content);
  await rename(temporary, path);
}
