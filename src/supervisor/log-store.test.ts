import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { lineSplitter, MAX_LINE_BYTES, printable } from './log-lines.ts';
import { createLogStore, type LogEntry } from './log-store.ts';
import { manualClock, settle } from './manual-clock.ts';

const texts = (entries: LogEntry[]) => entries.map((entry) => entry.text);

function linesOf(...chunks: (string | Uint8Array)[]): string[] {
  const lines: string[] = [];
  const splitter = lineSplitter((text) => lines.push(text));
  for (const chunk of chunks) splitter.push(typeof chunk === 'string' ? Buffer.from(chunk) : chunk);
  splitter.end();
  return lines;
}

test('a line is whole however its bytes arrive', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme', minLength: 1 }), fc.array(fc.nat(40)), (text, cuts) => {
      const bytes = Buffer.from(`${text.replaceAll(/[\r\n]/g, '')}x\n`);
      const at = [...new Set(cuts.map((cut) => cut % bytes.length))].sort((a, b) => a - b);
      const chunks = [0, ...at].map((from, i) => bytes.subarray(from, at[i] ?? bytes.length));
      assert.deepEqual(linesOf(...chunks), linesOf(bytes));
      assert.equal(linesOf(bytes).length, 1);
    }),
  );
});

test('output without a newline, empty lines, CRLF and invalid UTF-8 become clean lines', () => {
  assert.deepEqual(linesOf('a\r\n\n\nb'), ['a', 'b']);
  assert.deepEqual(linesOf(Uint8Array.of(0x61, 0xff, 0x62, 0x0a)), ['a\ufffdb']);
});

test('a line over the limit is cut and says by how much, in bounded memory', () => {
  const [line, next] = linesOf('x'.repeat(MAX_LINE_BYTES), 'y'.repeat(5000), 'z\nnext\n');
  assert.equal(line, `${'x'.repeat(MAX_LINE_BYTES)} [cut 5001 bytes]`);
  assert.equal(next, 'next');
});

test('escape sequences are kept as they came and shown harmless', () => {
  assert.deepEqual(linesOf('\u001b[31mred\u001b[0m\n'), ['\u001b[31mred\u001b[0m']);
  assert.equal(
    printable('\u001b[31mred \u009b2J \u202e\u0007 tab\there ä'),
    '\\x1b[31mred \\x9b2J \\u202e\\x07 tab\there ä',
  );
});

test('reading a name reads its subtree, in the order of writing', () => {
  const log = createLogStore({ clock: manualClock() });
  log.append('services.etcd', 'INFO', 'one');
  log.append('services', 'INFO', 'two');
  log.append('services-other', 'INFO', 'three');
  log.append('services.etcd', 'ERROR', 'four');
  assert.deepEqual(texts(log.read({ name: 'services' })), ['one', 'two', 'four']);
  assert.deepEqual(texts(log.read({ name: 'services.etcd', tail: 1 })), ['four']);
  assert.deepEqual(texts(log.read({ name: 'etcd' })), ['one', 'four']);
  assert.deepEqual(texts(log.read({ tail: 2 })), ['three', 'four']);
});

test('a ring forgets its oldest entries to stay in its bytes, and only its own', () => {
  const log = createLogStore({ clock: manualClock(), bytesPerName: 10_000 });
  log.append('quiet', 'INFO', 'kept');
  for (let i = 0; i < 1000; i++) log.append('loud', 'INFO', `line ${i} ${'x'.repeat(100)}`);
  const loud = log.read({ name: 'loud' });
  assert.ok(loud.length > 30 && loud.length < 60, `${loud.length} entries kept`);
  assert.match(loud.at(-1)?.text ?? '', /^line 999 /);
  assert.deepEqual(texts(log.read({ name: 'quiet' })), ['kept']);
});

test('a flood of output loses its own lines and the log says how many', async () => {
  const clock = manualClock();
  const log = createLogStore({ clock, linesPerSecond: 10, burstLines: 5 });
  const output = log.capture('loud', 'INFO');
  output.push(Buffer.from('line\n'.repeat(50)));
  assert.equal(log.read({ name: 'loud' }).length, 5);
  await clock.advance(1000);
  assert.equal(log.read({ name: 'loud' }).at(-1)?.text, 'dropped 45 lines: more than 10 a second');
  output.push(Buffer.from('later\n'));
  assert.equal(log.read({ name: 'loud' }).at(-1)?.text, 'later');
});

test('a follower gets what was there, then what comes, then ends when told', async () => {
  const log = createLogStore({ clock: manualClock() });
  const stop = new AbortController();
  const seen: string[] = [];
  log.append('a', 'INFO', 'before');
  const following = (async () => {
    for await (const entry of log.follow({ name: 'a' }, stop.signal)) seen.push(entry.text);
  })();
  await settle();
  log.append('b', 'INFO', 'another name');
  log.append('a', 'INFO', 'after');
  await settle();
  assert.deepEqual(seen, ['before', 'after']);
  stop.abort();
  await following;
});

test('a follower that is too slow loses entries and is told how many', async () => {
  const log = createLogStore({ clock: manualClock(), followerQueue: 3 });
  const stop = new AbortController();
  const reader = log.follow({ name: 'a' }, stop.signal);
  log.append('a', 'INFO', 'first');
  assert.equal((await reader.next()).value?.text, 'first');
  for (let i = 0; i < 10; i++) log.append('a', 'INFO', `line ${i}`);
  const seen: (string | undefined)[] = [];
  for (let i = 0; i < 4; i++) seen.push((await reader.next()).value?.text);
  assert.deepEqual(seen, ['line 0', 'line 1', 'line 2', 'this reader was too slow: 7 entries are missing here']);
  stop.abort();
  assert.equal((await reader.next()).done, true);
});
