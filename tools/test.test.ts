import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';

test('a pattern that selects no test file of the stages is a failure, also beside one that selects some', () => {
  for (const patterns of [['nosuchfilexyz'], ['tools/mkimage/keys', 'nosuchfilexyz']]) {
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      [join(import.meta.dirname, 'test.ts'), 'unit', ...patterns],
      { encoding: 'utf8', timeout: 60_000 },
    );
    assert.equal(status, 1);
    assert.equal(stderr, 'error: cannot run "nosuchfilexyz": no test file of unit has that in its path\n');
    assert.equal(stdout, '');
  }
});
