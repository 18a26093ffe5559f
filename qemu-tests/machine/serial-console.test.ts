import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SerialConsole } from './serial-console.ts';

const wait = { from: 0, deadlineMs: 5000 };

test('a line that came before the wait is found', async () => {
  const console = new SerialConsole();
  console.receive(Buffer.from('one\r\ntwo\r\n'));
  assert.equal((await console.waitFor(/two/, wait)).index, 1);
});

test('a line that comes in pieces, in the middle of a character, is one line', async () => {
  const console = new SerialConsole();
  const bytes = Buffer.from('node räddy\n');
  const found = console.waitFor(/^node räddy$/, wait);
  for (const byte of bytes) console.receive(Buffer.from([byte]));
  assert.equal((await found).text, 'node räddy');
});

test('escape sequences of the firmware are no part of a line', () => {
  const console = new SerialConsole();
  console.receive(Buffer.from('\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: loading\r\n\x1b[0m\r\n'));
  assert.deepEqual(
    console.lines.map((line) => line.text),
    ['BdsDxe: loading'],
  );
});

test('a wait ends at a line that makes it pointless, and quotes the console', async () => {
  const console = new SerialConsole();
  const waiting = console.waitFor(/ready/, { ...wait, failOn: /panic/ });
  console.receive(Buffer.from('starting\nKernel panic: no init\n'));
  await assert.rejects(waiting, /cannot wait for \/ready\/.*Kernel panic: no init.*\n.*starting/s);
});

test('a wait ends at its deadline', async () => {
  const console = new SerialConsole();
  await assert.rejects(console.waitFor(/ready/, { from: 0, deadlineMs: 10 }), /did not come in 0 s/);
});

test('a wait looks only from the line it is told to', async () => {
  const console = new SerialConsole();
  console.receive(Buffer.from('ready\n'));
  const second = console.waitFor(/ready/, { from: 1, deadlineMs: 5000 });
  console.receive(Buffer.from('ready\n'));
  assert.equal((await second).index, 1);
});

test('half a line at a power cut is kept, and does not run into the next boot', () => {
  const console = new SerialConsole();
  console.receive(Buffer.from('writing the'));
  console.powerOn();
  console.receive(Buffer.from('first\n'));
  assert.deepEqual(
    console.lines.map((line) => line.text),
    ['writing the', 'first'],
  );
});
