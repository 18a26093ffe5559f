import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, openSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { hasPowerPress, watchPowerButton } from './power-button.ts';

function event(type: number, code: number, value: number): Buffer {
  const bytes = Buffer.alloc(24);
  bytes.writeUInt16LE(type, 16);
  bytes.writeUInt16LE(code, 18);
  bytes.writeInt32LE(value, 20);
  return bytes;
}

test('a press of the power key counts; its release, other keys and a cut event do not', () => {
  assert.ok(hasPowerPress(Buffer.concat([event(0, 0, 0), event(1, 116, 1)])));
  for (const other of [event(1, 116, 0), event(1, 30, 1), event(2, 116, 1), event(1, 116, 1).subarray(0, 23)])
    assert.ok(!hasPowerPress(other));
});

test('a press is seen on a device that appears later, while the loop runs on', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'input-'));
  const device = join(directory, 'event0');
  assert.equal(spawnSync('mkfifo', [device]).status, 0);
  let presses = 0;
  using _button = watchPowerButton(() => {
    presses += 1;
  }, directory);
  const writer = openSync(device, 'r+');
  writeSync(writer, Buffer.concat([event(1, 116, 1), event(0, 0, 0), event(1, 116, 0)]));
  for (let waited = 0; presses === 0 && waited < 3000; waited += 20) await sleep(20);
  assert.equal(presses, 1);
});
