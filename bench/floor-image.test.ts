import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { FLOOR_LINE, floorInit } from './floor-image.ts';

test('the floor’s init is an executable that prints its line and stays', {
  skip: process.arch !== 'x64' || process.platform !== 'linux',
}, () => {
  const directory = mkdtempSync(join(tmpdir(), 'ashlar-floor-'));
  try {
    const path = join(directory, 'init');
    writeFileSync(path, floorInit(), { mode: 0o755 });
    const { stdout, signal } = spawnSync(path, { timeout: 500, killSignal: 'SIGKILL', encoding: 'utf8' });
    assert.equal(stdout, `${FLOOR_LINE}\n`);
    assert.equal(signal, 'SIGKILL', 'it must not end by itself');
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});
