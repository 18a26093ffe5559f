import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decodeTestRecord, encodeTestRecord, mergeTestRecord } from './test-record.ts';

const run = { date: '2026-01-02', commit: 'abc', seed: '7' };
const result = (name: string, passed = true) => ({ name, passed, durationMs: 1600, counts: '1 passed, 0 failed' });

test('a record read back is the record', () => {
  const rows = mergeTestRecord({
    before: [],
    ran: [result('unit'), result('a.full.test.ts', false)],
    run,
    known: ['unit', 'a.full.test.ts'],
  });
  assert.deepEqual(decodeTestRecord(encodeTestRecord(rows)), rows);
  assert.deepEqual(
    rows.map(({ name, result: verdict, time }) => [name, verdict, time]),
    [
      ['unit', 'passed', '2 s'],
      ['a.full.test.ts', 'FAILED', '2 s'],
    ],
  );
});

test('what did not run keeps its row, what ran gets a new one, and what is gone goes', () => {
  const old = { ...run, date: '2025-12-31' };
  const before = mergeTestRecord({
    before: [],
    ran: [result('kept'), result('again', false), result('gone')],
    run: old,
    known: ['kept', 'again', 'gone'],
  });
  const rows = mergeTestRecord({ before, ran: [result('again')], run, known: ['again', 'kept', 'never ran'] });
  assert.deepEqual(
    rows.map(({ name, result: verdict, date }) => [name, verdict, date]),
    [
      ['again', 'passed', '2026-01-02'],
      ['kept', 'passed', '2025-12-31'],
    ],
  );
});
