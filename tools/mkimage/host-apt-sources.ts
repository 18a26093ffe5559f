/**
 * Where this host gets Debian from. An image is made of packages of one suite whatever the host runs, but the mirror
 * that works here (a local one, one behind a proxy, one on a medium) is known to the host's apt alone.
 *
 * Both forms of sources.list(5) are read: one-line `.list` and deb822 `.sources`.
 */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';

export interface DebianMirror {
  /** Base of the main archive, as in `http://mirror.example/debian`. */
  archive: string;
  /** Base of the security archive. */
  security: string;
}

interface Source {
  uri: string;
  suite: string;
}

// What Debian calls its suites; anything else in the host's sources is somebody else's archive.
const DEBIAN_SUITE =
  /^(?:buster|bullseye|bookworm|trixie|forky|sid|oldoldstable|oldstable|stable|testing|unstable)(?:-(updates|security|backports|proposed-updates))?$/;

/** Has the form of an archive's base URI, as apt takes it. */
export function isMirrorUri(text: string): boolean {
  return /^[a-z+]+:\S+$/.test(text);
}

/**
 * The host's Debian mirror, or the one given.
 *
 * @param mirror base of the main archive; the security archive is then `…-security` beside it
 * @param aptDirectory @default '/etc/apt'
 * @throws when the host's apt names none
 */
export async function findDebianMirror(mirror?: string, aptDirectory = '/etc/apt'): Promise<DebianMirror> {
  if (mirror !== undefined) {
    const archive = withoutSlash(mirror);
    if (!isMirrorUri(archive)) {
      throw new Error(`cannot use ${JSON.stringify(mirror)} as a mirror: it is not a URI such as http://HOST/debian`);
    }
    return { archive, security: `${archive}-security` };
  }
  const sources = await readSources(aptDirectory);
  const archive = sources.find(({ suite }) => /^[a-z]+(?:-updates)?$/.test(suite))?.uri;
  if (archive === undefined) {
    throw new Error(
      `cannot find a Debian mirror: no enabled deb line of ${aptDirectory} names a Debian suite; name one with --mirror URI`,
    );
  }
  const security = sources.find(({ suite }) => suite.endsWith('-security'))?.uri ?? `${archive}-security`;
  return { archive, security };
}

async function readSources(aptDirectory: string): Promise<Source[]> {
  const parts = join(aptDirectory, 'sources.list.d');
  const names = (await readdir(parts).catch((): string[] => [])).sort();
  const files = [join(aptDirectory, 'sources.list'), ...names.map((name) => join(parts, name))];
  const sources: Source[] = [];
  for (const file of files) {
    const parse = file.endsWith('.list') ? parseOneLine : file.endsWith('.sources') ? parseDeb822 : undefined;
    if (parse === undefined) continue;
    const text = await readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return '';
      throw error;
    });
    sources.push(...parse(text));
  }
  return sources.filter(({ suite }) => DEBIAN_SUITE.test(suite));
}

/** `deb [options] URI SUITE COMPONENT…` */
export function parseOneLine(text: string): Source[] {
  const sources: Source[] = [];
  for (const line of text.split('\n')) {
    const match = /^\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)/.exec(line);
    if (match?.[1] !== undefined && match[2] !== undefined) {
      sources.push({ uri: withoutSlash(match[1]), suite: withoutSlash(match[2]) });
    }
  }
  return sources;
}

/** Stanzas of `Field: value`, continued by indented lines. */
export function parseDeb822(text: string): Source[] {
  const sources: Source[] = [];
  const withoutComments = text.replace(/^#.*\n?/gm, '');
  for (const stanza of withoutComments.split(/\n[ \t]*\n/)) {
    const fields = new Map<string, string[]>();
    for (const match of stanza.matchAll(/^([\w-]+):([^\n]*(?:\n[ \t][^\n]*)*)/gm)) {
      fields.set((match[1] ?? '').toLowerCase(), (match[2] ?? '').split(/\s+/).filter(Boolean));
    }
    if (fields.get('enabled')?.[0]?.toLowerCase() === 'no') continue;
    if (fields.get('types')?.includes('deb') !== true) continue;
    for (const uri of fields.get('uris') ?? []) {
      for (const suite of fields.get('suites') ?? []) {
        sources.push({ uri: withoutSlash(uri), suite: withoutSlash(suite) });
      }
    }
  }
  return sources;
}

function withoutSlash(text: string): string {
  return text.replace(/\/+$/, '');
}
