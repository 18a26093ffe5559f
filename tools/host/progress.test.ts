import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';
import { mock, test } from 'node:test';
import { createProgress, formatDuration } from './progress.ts';

function fakeStream(tty: boolean): { stream: NodeJS.WriteStream; text: () => string } {
  const stream = Object.assign(new PassThrough(), {
    isTTY: tty,
    columns: 60,
    rows: 24,
  }) as unknown as NodeJS.WriteStream;
  let text = '';
  stream.on('data', (chunk: Buffer) => {
    text += chunk.toString();
  });
  return { stream, text: () => text };
}

/** What a terminal shows after `output`, for the two sequences that we use and for lines that do not wrap. */
function screenAfter(output: string): string[] {
  const lines: string[] = [];
  let row = 0;
  for (const [token, up] of output.matchAll(/\x1b\[(\d+)F|\x1b\[J|[^\x1b\n]*\n/g)) {
    if (up !== undefined) row -= Number(up);
    else if (token === '\x1b[J') lines.length = row;
    else lines[row++] = token.slice(0, -1);
  }
  return lines;
}

test('a step passes on the result and the error of its work', async () => {
  const { stream } = fakeStream(false);
  const progress = createProgress({ stream });
  assert.equal(await progress.step('good', async () => 5), 5);
  await assert.rejects(
    progress.step('bad', async () => {
      throw new Error('broken');
    }),
    /broken/,
  );
});

test('without a terminal a step is a line at its start, a line every 15 seconds and a line at its end', async () => {
  let nowMs = 0;
  const { stream, text } = fakeStream(false);
  const progress = createProgress({ stream, now: () => nowMs });
  await progress.step('kernel', async (report) => {
    for (nowMs = 0; nowMs < 40_000; nowMs += 1000) report({ fraction: nowMs / 80_000, detail: 'CC x.o' });
  });
  progress.warn('be careful');
  assert.deepEqual(text().split('\n'), [
    'kernel …',
    'kernel   18 %  15s  CC x.o',
    'kernel   37 %  30s  CC x.o',
    'kernel: done 40s',
    'warning: be careful',
    '',
  ]);
});

test('without a terminal a step that reports nothing still shows that it lives', async () => {
  mock.timers.enable({ apis: ['setInterval'] });
  try {
    let nowMs = 0;
    const { stream, text } = fakeStream(false);
    await createProgress({ stream, now: () => nowMs }).step('image', async () => {
      nowMs = 15_000;
      mock.timers.tick(1000);
    });
    assert.deepEqual(text().split('\n'), ['image …', 'image  15s', 'image: done 15s', '']);
  } finally {
    mock.timers.reset();
  }
});

test('on a terminal concurrent and nested steps keep one line each, below what is finished', async () => {
  mock.timers.enable({ apis: ['setInterval'] });
  try {
    let nowMs = 0;
    const { stream, text } = fakeStream(true);
    const progress = createProgress({ stream, now: () => nowMs });
    await progress.step('outer', async (reportOuter) => {
      nowMs = 72_000;
      reportOuter({ fraction: 0.42, detail: `long ${'x'.repeat(100)}\nand \x1b[2J evil` });
      await progress.step('inner one', async () => {
        await progress.step('inner two', async () => {
          mock.timers.tick(100);
          const [first, ...rest] = screenAfter(text());
          assert.match(first ?? '', /^⠋ outer {3}42 % {2}1m12s {2}long x+…$/);
          assert.equal(first?.length, 59);
          assert.deepEqual(rest, ['⠋ inner one  0s', '⠋ inner two  0s']);
        });
        progress.note('a word');
      });
      assert.deepEqual(screenAfter(text()).slice(0, 3), ['✓ inner two 0s', 'a word', '✓ inner one 0s']);
    });
    assert.deepEqual(screenAfter(text()), ['✓ inner two 0s', 'a word', '✓ inner one 0s', '✓ outer 1m12s']);
  } finally {
    mock.timers.reset();
  }
});

test('on a terminal many reports cause no more than ten drawings a second', async () => {
  mock.timers.enable({ apis: ['setInterval'] });
  try {
    const { stream, text } = fakeStream(true);
    await createProgress({ stream, now: () => 0 }).step('busy', async (report) => {
      for (let index = 0; index < 1000; index++) {
        report({ fraction: index / 1000 });
        mock.timers.tick(1);
      }
    });
    const drawings = text().split('\x1b[J').length - 1;
    assert.ok(drawings <= 12, `${drawings} drawings in one second`);
  } finally {
    mock.timers.reset();
  }
});

test('a failed step is marked as failed', async () => {
  const { stream, text } = fakeStream(true);
  const progress = createProgress({ stream, now: () => 0 });
  await assert.rejects(progress.step('fetch', () => Promise.reject(new Error('no'))));
  assert.deepEqual(screenAfter(text()), ['✗ fetch 0s']);
});

test('durations have the two largest units', () => {
  assert.deepEqual([0, 59_999, 60_000, 72_000, 3_720_000].map(formatDuration), [
    '0s',
    '59s',
    '1m00s',
    '1m12s',
    '1h02m',
  ]);
});
