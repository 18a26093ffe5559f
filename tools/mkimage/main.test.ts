import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';

/** Runs `mkimage`, where a wrong command line is refused before any file is written. */
function refusalOf(...argv: string[]): string {
  const { status, stderr } = spawnSync(process.execPath, [join(import.meta.dirname, 'main.ts'), ...argv], {
    encoding: 'utf8',
    timeout: 60_000,
  });
  assert.equal(status, 2, stderr);
  return stderr;
}

test('a mirror that is no URI is refused at once, whatever the cache holds', () => {
  assert.match(refusalOf('build', '--mirror', 'not-a-uri'), /--mirror must be a URI .*got "not-a-uri"/);
  assert.match(refusalOf('lock', '--mirror', ''), /--mirror must be a URI .*got ""/);
});

test('an empty --out is refused, and is not the current directory', () => {
  assert.match(refusalOf('build', '--out', ''), /--out must name a directory/);
  assert.match(refusalOf('build', '--unsigned', '--out='), /--out must name a directory/);
});
