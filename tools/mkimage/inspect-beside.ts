/** What mkimage wrote beside an image, and the image itself cannot say: contents of the system, PCR 7 of its keys. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { UkiInspection } from './inspect.ts';

const maxJsonBytes = 64 * 1024 * 1024;
/** Groups of image/packages.json whose bytes are built in: the kernel and the stub are parts of the UKI, no files. */
const builtInGroups: readonly unknown[] = ['kernel', 'boot'];

export interface Beside {
  /** PCR 7 by machine profile, from measurements.json: the image does not hold the keys. */
  readonly pcr7?: Readonly<Record<string, string>>;
  /** From manifest.json. */
  readonly services?: readonly string[];
  /** All that the lock had: with bytes in the image, or not. From manifest.json. */
  readonly packages?: readonly { name: string; version: string; isInImage: boolean }[];
  /** What is not there, so that nothing is known of what it says. */
  readonly missing: readonly ('manifest.json' | 'measurements.json')[];
}

export async function inspectBeside(directory: string, uki: UkiInspection, problems: string[]): Promise<Beside> {
  const measurements = await readJson(join(directory, 'measurements.json'));
  const manifest = await readJson(join(directory, 'manifest.json'));
  const pcr7 = stringRecord(measurements?.['pcr7']);
  const pcr11 = stringRecord(measurements?.['pcr11']);
  const isOurs = pcr11?.['leave-initrd'] === uki.pcrs.pcr11['leave-initrd'];
  if (measurements !== undefined && !isOurs) problems.push('measurements.json beside it is of another image');
  return {
    ...(isOurs && pcr7 !== undefined ? { pcr7 } : {}),
    ...(manifest === undefined ? {} : { services: servicesOf(manifest), packages: packagesOf(manifest) }),
    missing: [
      ...(manifest === undefined ? (['manifest.json'] as const) : []),
      ...(measurements === undefined ? (['measurements.json'] as const) : []),
    ],
  };
}

function servicesOf(manifest: Record<string, unknown>): string[] {
  const named = manifest['services'];
  return (Array.isArray(named) ? named.filter((name) => typeof name === 'string') : []).sort();
}

/** The lock has the closure of each package's libraries; the image takes those that its programs name. */
function packagesOf(manifest: Record<string, unknown>): NonNullable<Beside['packages']> {
  const files = isRecord(manifest['files']) ? Object.values(manifest['files']).flatMap(list) : [];
  const owners = new Set(files.map(({ origin }) => origin));
  const isBuiltIn = (groups: unknown) => Array.isArray(groups) && groups.some((group) => builtInGroups.includes(group));
  return list(manifest['packages']).flatMap(({ name, version, groups }) =>
    typeof name === 'string' && typeof version === 'string'
      ? [{ name, version, isInImage: owners.has(name) || isBuiltIn(groups) }]
      : [],
  );
}

async function readJson(path: string): Promise<Record<string, unknown> | undefined> {
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    // Only what is absent may be called so; what cannot be read is an error like any other.
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return undefined;
    throw error;
  }
  if (text.length > maxJsonBytes)
    throw new Error(`${path} has ${text.length} characters, over the limit of ${maxJsonBytes}`);
  const value: unknown = JSON.parse(text);
  return isRecord(value) ? value : undefined;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

const list = (value: unknown): Record<string, unknown>[] => (Array.isArray(value) ? value.filter(isRecord) : []);

function stringRecord(value: unknown): Record<string, string> | undefined {
  if (!isRecord(value)) return undefined;
  return Object.fromEntries(
    Object.entries(value).flatMap(([key, entry]) => (typeof entry === 'string' ? [[key, entry]] : [])),
  );
}
