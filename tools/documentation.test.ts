import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { glob, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { test } from 'node:test';

const ROOT = join(import.meta.dirname, '..');

async function pages(): Promise<string[]> {
  const found = ['README.md'];
  for await (const path of glob(['docs/**/*.md', 'bench/**/*.md'], { cwd: ROOT })) found.push(path);
  return found.sort();
}

/** Targets of links and pictures in Markdown, without those to other sites and to places in the same page. */
function localLinks(text: string): string[] {
  const prose = text.replaceAll(/^```[\s\S]*?^```/gm, '').replaceAll(/`[^`\n]*`/g, '');
  return [...prose.matchAll(/\]\(([^)\s]+)\)/g)]
    .map(([, target = '']) => target.replace(/#.*/, ''))
    .filter((target) => target !== '' && !/^[a-z]+:/.test(target));
}

test('every link of the handbook leads to a file of this checkout', async () => {
  const dead: string[] = [];
  for (const page of await pages()) {
    for (const target of localLinks(await readFile(join(ROOT, page), 'utf8'))) {
      if (!existsSync(join(ROOT, dirname(page), target))) dead.push(`${page} → ${target}`);
    }
  }
  assert.deepEqual(dead, []);
});

test('the README leads to every page of the handbook', async () => {
  const links = localLinks(await readFile(join(ROOT, 'README.md'), 'utf8'));
  const missing = (await pages()).filter((page) => /^docs\/[^/]+\.md$/.test(page) && !links.includes(page));
  // Reached from the page about tests.
  assert.deepEqual(
    missing.filter((page) => page !== 'docs/full-test-result.md'),
    [],
  );
});

test('every npm script that the handbook names exists', async () => {
  const { scripts } = JSON.parse(await readFile(join(ROOT, 'package.json'), 'utf8')) as { scripts: object };
  const unknown: string[] = [];
  for (const page of await pages()) {
    const text = await readFile(join(ROOT, page), 'utf8');
    for (const [, name = ''] of text.matchAll(/npm run (?:-s )?([a-z][a-z:]*)/g)) {
      if (!Object.hasOwn(scripts, name)) unknown.push(`${page}: npm run ${name}`);
    }
  }
  assert.deepEqual(unknown, []);
});
