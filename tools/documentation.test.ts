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

test('the tests that the handbook says how to run are in the stage that it names', async () => {
  const files: string[] = [];
  for await (const path of glob('{src,tools,bench,qemu-tests}/**/*.test.ts', { cwd: ROOT })) files.push(path);
  const stageOf = (path: string) => /\.(integration|full)\.test\.ts$/.exec(path)?.[1];
  const commands: string[] = [];
  const empty: string[] = [];
  for (const page of await pages()) {
    const text = await readFile(join(ROOT, page), 'utf8');
    for (const [, stage = '', words = ''] of text.matchAll(/npm run test:([a-z]+) --((?: [a-z][a-z-]*)+)/g)) {
      const wanted = ['integration', 'full'].includes(stage) ? stage : undefined;
      for (const word of words.trim().split(' ')) {
        commands.push(word);
        const isRun = files.some((path) => path.includes(word) && stageOf(path) === wanted);
        if (!isRun) empty.push(`${page}: npm run test:${stage} -- ${word}`);
      }
    }
  }
  assert.deepEqual(empty, []);
  assert.ok(commands.length > 0, 'the handbook names no tests: does it write the commands in another way?');
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
