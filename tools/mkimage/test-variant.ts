/**
 * A test variant: an image with services more, which attack the node from inside it (`mkimage build --test-variant DIR`).
 *
 * DIR holds NAME.json, a service manifest, and NAME.ts, the bundle that it runs. The program is the image's one executable
 * under a role that it knows; in the service's own root that role's bundle is NAME.ts. So what attacks runs with exactly
 * the means of a compromised service, on the executable, kernel and init of every other image.
 *
 * Such an image must never pass for another, and no other may be signed with its keys: only keys marked as test-only sign
 * it, and they sign nothing else.
 */
import { readdir, readFile } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { parseServiceManifest, type ServiceManifest } from '../../src/supervisor/service-manifest.ts';
import { bundle } from './bundle.ts';
import type { BuiltFiles } from './image-manifest.ts';
import type { Keys } from './keys.ts';
import { builtText } from './system-tree.ts';

export interface ServiceSource {
  /** File name of the manifest. */
  readonly name: string;
  readonly text: string;
  readonly service: ServiceManifest;
}

export interface TestVariant {
  readonly services: readonly ServiceSource[];
  /** By service: files for /usr/lib/ashlar of its root, in place of the image's of the same name. */
  readonly files: Readonly<Record<string, BuiltFiles>>;
}

export const noVariant: TestVariant = { services: [], files: {} };

/** @throws Error unless test-only keys and a test variant come together, or neither */
export function refuseUnfitKeys(
  keys: Pick<Keys, 'directory' | 'isTestOnly'>,
  variantDirectory: string | undefined,
): void {
  if (keys.isTestOnly && variantDirectory === undefined) {
    throw new Error(
      `cannot build with the keys in ${keys.directory}: they are marked as test-only, for images that attack their node; ` +
        'use other keys (mkimage keys generate --out DIR), or build that variant with --test-variant DIR',
    );
  }
  if (!keys.isTestOnly && variantDirectory !== undefined) {
    throw new Error(
      `cannot build the test variant ${variantDirectory} with the keys in ${keys.directory}: machines that trust them would ` +
        'run its attackers; make keys of its own with: mkimage keys generate --test-only --out DIR',
    );
  }
}

/** Reads and bundles a variant. @throws Error naming what is wrong with it */
export async function readTestVariant(directory: string): Promise<TestVariant> {
  const names = (await readdir(directory)).filter((name) => name.endsWith('.json')).sort();
  if (names.length === 0) throw new Error(`cannot build the test variant ${directory}: it has no service (NAME.json)`);
  const services = [];
  const files: Record<string, BuiltFiles> = {};
  for (const name of names) {
    const text = await readFile(join(directory, name), 'utf8');
    const service = parseServiceManifest(text, name);
    const role = basename(service.process.args[0] ?? '');
    const { code } = await bundle(`${role}.js`, resolve(directory, name.replace(/json$/, 'ts')));
    services.push({ name, text, service });
    files[service.name] = { [`${role}.js`]: builtText(code) };
  }
  return { services, files };
}
