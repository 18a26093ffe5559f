import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { ProcessError, runProcess } from './run-process.ts';

test('output, input and environment go where they belong', async () => {
  const script = 'cat; printf "%s" "$WORD" >&2';
  const result = await runProcess('/bin/sh', ['-c', script], {
    input: 'ünïcode',
    env: { WORD: 'w', PATH: '/usr/bin:/bin' },
  });
  assert.deepEqual(result, { code: 0, stdout: 'ünïcode', stderr: 'w' });
});

test('each line is passed on as it comes, the unfinished last one too', async () => {
  const lines: string[] = [];
  await runProcess('/bin/sh', ['-c', 'printf "a\\r\\n\\nb" ; printf "c\\n" >&2'], {
    onLine: (line, stream) => lines.push(`${stream}:${line}`),
  });
  assert.deepEqual(
    lines.filter((line) => line.startsWith('stdout')),
    ['stdout:a', 'stdout:', 'stdout:b'],
  );
  assert.deepEqual(
    lines.filter((line) => line.startsWith('stderr')),
    ['stderr:c'],
  );
});

test('a failure names the command, the exit code and the last lines of stderr', async () => {
  const script = 'for n in $(seq 30); do echo "line $n" >&2; done; exit 3';
  await assert.rejects(runProcess('/bin/sh', ['-c', script]), (error) => {
    assert.ok(error instanceof ProcessError);
    assert.equal(error.code, 3);
    assert.match(error.message, /^\/bin\/sh -c 'for n.*' exited with 3:\nline 19\n/);
    assert.match(error.message, /\nline 30$/);
    return true;
  });
});

test('a failure can be allowed', async () => {
  assert.equal((await runProcess('/bin/sh', ['-c', 'exit 3'], { allowFailure: true })).code, 3);
  assert.equal((await runProcess('/bin/sh', ['-c', 'kill -9 $$'], { allowFailure: true })).code, 137);
});

test('a missing program is named together with its Debian package', async () => {
  const env = { PATH: '/nonexistent' };
  await assert.rejects(runProcess('sgdisk', ['-v'], { env }), /^Error: cannot run sgdisk: .*apt-get install gdisk$/);
  await assert.rejects(
    runProcess('no-such-program', [], { env }),
    /^Error: cannot run no-such-program: there is no such program$/,
  );
  await assert.rejects(
    runProcess('true', [], { cwd: '/nonexistent' }),
    /working directory \/nonexistent does not exist/,
  );
});

test('input that the program does not read is no failure', async () => {
  assert.equal((await runProcess('true', [], { input: Buffer.alloc(1 << 20) })).code, 0);
});

test('an abort ends the program and what it started', { timeout: 15_000 }, async () => {
  const abort = new AbortController();
  let grandchild = 0;
  const running = runProcess('/bin/sh', ['-c', 'sleep 300 & echo $!; wait'], {
    signal: abort.signal,
    onLine: (line) => {
      grandchild = Number(line);
      abort.abort(new Error('enough'));
    },
  });
  await assert.rejects(running, /enough/);
  for (let attempt = 0; attempt < 100 && isRunning(grandchild); attempt++) await sleep(10);
  assert.equal(isRunning(grandchild), false);
});

test('an aborted signal starts nothing', async () => {
  await assert.rejects(runProcess('no-such-program', [], { signal: AbortSignal.abort(new Error('before')) }), /before/);
});

/** A zombie counts as ended: in a container nobody may reap orphans. */
function isRunning(pid: number): boolean {
  try {
    return !/^\d+ \(.*\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false;
  }
}
