import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';

const isolate = ['--user', '--map-root-user', '--pid', '--fork', '--mount-proc'];
const canIsolate = spawnSync('unshare', [...isolate, 'true']).status === 0;

test('PID 1 reaps every orphan of a fork storm and takes no exit event from its own children', {
  skip: canIsolate ? false : 'this machine does not allow user and PID namespaces',
}, () => {
  const storm = join(import.meta.dirname, 'reaper-storm-main.ts');
  const run = spawnSync('unshare', [...isolate, process.execPath, storm], { encoding: 'utf8', timeout: 120_000 });
  assert.equal(run.status, 0, run.stderr);
  const result: unknown = JSON.parse(run.stdout);
  assert.ok(typeof result === 'object' && result !== null && 'reaped' in result && 'expected' in result);
  assert.partialDeepStrictEqual(result, { pid: 1, wrong: [], zombies: 0 });
  // The subshells' own processes may be reaped by the shell or fall to PID 1, so this is a floor.
  assert.ok(Number(result.reaped) >= Number(result.expected), JSON.stringify(result));
});
