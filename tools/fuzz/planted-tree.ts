/** A copy of the decoders with a bug in it, so that what is tested is not this tree's files. */
import { cp, mkdtemp, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { plant, type SeededBug } from './seeded-bugs.ts';

const root = new URL('../..', import.meta.url).pathname;
/** The pure floors: they import nothing else. */
const folders = ['src/formats', 'src/measure'];

/** @returns the copy's root; whoever asked removes it. */
export async function plantedTree(bug: SeededBug): Promise<string> {
  const tree = await mkdtemp(join(tmpdir(), 'ashlar-bug-'));
  for (const folder of folders) {
    await cp(join(root, folder), join(tree, folder), {
      recursive: true,
      filter: (path) => !path.endsWith('.test.ts'),
    });
  }
  await writeFile(join(tree, 'package.json'), '{ "type": "module" }\n');
  const path = join(tree, bug.file);
  await writeFile(path, plant(bug, await readFile(path, 'utf8')));
  return tree;
}
