import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { constants, mkdtempSync, openSync, readFileSync, readSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { consoleLine, openConsole } from './console.ts';

test('a line shows seconds since the kernel started and the dotted name', () => {
  assert.equal(
    consoleLine({ name: 'init.data', atMs: 12_345, text: 'opened /dev/vda4' }),
    '[   12.345] init.data: opened /dev/vda4\n',
  );
});

test('a text cannot drive the terminal or begin a line of its own', () => {
  const line = consoleLine({ name: 'etcd', atMs: 0, text: 'a\u001b[2J\r\nb\u009b1m' });
  assert.equal(line, '[    0.000] etcd: a\\x1b[2J\\x0d\\x0ab\\x9b1m\n');
});

test('lines arrive in order and whole', async () => {
  const path = join(mkdtempSync(join(tmpdir(), 'console-')), 'tty');
  writeFileSync(path, '');
  const output = openConsole([path]);
  for (let i = 0; i < 200; i += 1) output.write(`line ${i}\n`);
  await output.flush();
  assert.deepEqual(
    readFileSync(path, 'utf8').trimEnd().split('\n'),
    Array.from({ length: 200 }, (_, i) => `line ${i}`),
  );
});

test('a console that takes nothing loses lines, says so later, and blocks nobody', async () => {
  const path = join(mkdtempSync(join(tmpdir(), 'console-')), 'fifo');
  assert.equal(spawnSync('mkfifo', [path]).status, 0);
  const reader = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  const output = openConsole([path]);
  const line = `${'x'.repeat(1000)}\n`;
  for (let i = 0; i < 1000; i += 1) output.write(line); // a pipe holds 64 KiB, the queue 512 lines
  const seen: Buffer[] = [];
  const drain = () => {
    const buffer = Buffer.alloc(1 << 20);
    try {
      seen.push(buffer.subarray(0, readSync(reader, buffer)));
    } catch (error) {
      assert.ok(error instanceof Error && 'code' in error && error.code === 'EAGAIN');
    }
  };
  const timer = setInterval(drain, 20);
  await output.flush();
  output.write('after\n');
  await output.flush();
  clearInterval(timer);
  drain();
  const text = Buffer.concat(seen).toString();
  assert.match(text, /… \d+ lines were lost: this console was too slow\nafter\n$/);
  assert.ok(text.split('\n').filter((one) => one.length === 1000).length >= 512);
});

test('no console at all is no error', () => openConsole(['/nonexistent/tty']).write('nobody reads this'));
