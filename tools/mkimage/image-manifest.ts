/**
 * image/system/manifest.json and image/initramfs/manifest.json: every file that is put into an image by name.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Checked, integer, list, object, oneOf, text } from '../../src/formats/json-shape.ts';
import type { FileTree, TreeFile } from './file-tree.ts';

const path = text({ min: 2, max: 256, pattern: /^(?:\/(?!\.{1,2}(?:\/|$))[A-Za-z0-9._+-]+)+$/ });
const mode = text({ min: 4, max: 4, pattern: /^0[0-7]{3}$/ });
const name = text({ min: 1, max: 100 });

const manifest = object(
  {
    why: text({ min: 1, max: 400 }),
    directories: list(object({ path, mode }), { max: 100 }),
    links: list(object({ path, target: name }), { max: 100 }),
    files: list(object({ path, mode }, { package: name, from: path, built: name, part: oneOf('constant', 'ours') }), {
      max: 200,
    }),
  },
  {
    trees: list(object({ path, mode, package: name }), { max: 20 }),
    libraries: list(object({ name, why: name }), { max: 50 }),
    devices: list(
      object({ path, mode, major: integer({ min: 0, max: 4095 }), minor: integer({ min: 0, max: 1 << 20 }) }),
      { max: 20 },
    ),
  },
);

export type ImageManifest = Checked<typeof manifest>;

/** What the build makes itself, by the name that manifests call it. */
export type BuiltFiles = Readonly<Record<string, Omit<TreeFile, 'path' | 'mode' | 'type'>>>;

export async function readImageManifest(which: 'system' | 'initramfs'): Promise<ImageManifest> {
  const file = join(import.meta.dirname, '../../image', which, 'manifest.json');
  try {
    return manifest(JSON.parse(await readFile(file, 'utf8')), '');
  } catch (error) {
    throw new Error(
      `cannot use image/${which}/manifest.json: ${error instanceof Error ? error.message : String(error)}`,
      {
        cause: error,
      },
    );
  }
}

/** Puts the manifest's entries into a tree. @param part only the files of this part */
export async function addManifest(
  tree: FileTree,
  from: ImageManifest,
  built: BuiltFiles,
  part?: 'constant' | 'ours',
): Promise<void> {
  const isWanted = (ofFile: 'constant' | 'ours' | undefined) => part === undefined || (ofFile ?? 'constant') === part;
  if (isWanted('constant')) {
    for (const entry of from.directories) tree.directory(entry.path, octal(entry.mode));
    for (const entry of from.links) tree.link(entry.path, entry.target);
    for (const entry of from.devices ?? []) tree.add({ type: 'device', ...entry, mode: octal(entry.mode) });
    for (const entry of from.trees ?? []) {
      tree.packageDirectory(entry.path, { mode: octal(entry.mode), package: entry.package });
    }
  }
  for (const entry of from.files.filter((file) => isWanted(file.part))) {
    if ((entry.built === undefined) === (entry.package === undefined)) {
      throw new Error(`cannot place ${entry.path}: its manifest entry must have one of "package" and "built"`);
    }
    if (entry.built !== undefined) {
      const made = built[entry.built];
      if (made === undefined)
        throw new Error(`cannot place ${entry.path}: the build makes no ${JSON.stringify(entry.built)}`);
      tree.add({ type: 'file', path: entry.path, mode: octal(entry.mode), ...made });
    } else {
      tree.packageFile(entry.path, {
        mode: octal(entry.mode),
        ...(entry.package === undefined ? {} : { package: entry.package }),
        ...(entry.from === undefined ? {} : { from: entry.from }),
      });
    }
  }
  if (isWanted('constant')) {
    for (const entry of from.libraries ?? []) await tree.library(entry.name, '', entry.why);
    await tree.closeOverLibraries();
  }
}

function octal(text: string): number {
  return Number.parseInt(text, 8);
}
