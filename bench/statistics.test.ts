import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatSpread, spread } from './statistics.ts';

test('the median of an even number of values lies between the two in the middle', () => {
  assert.deepEqual(spread([4, 1, 3, 2]), { n: 4, median: 2.5, min: 1, max: 4 });
});

test('values are sorted as numbers', () => {
  assert.equal(spread([9, 10, 100]).median, 10);
});

test('without values there is nothing to say', () => {
  assert.throws(() => spread([]), RangeError);
});

test('a single run shows no spread', () => {
  assert.equal(formatSpread(spread([1.26])), '1.3');
  assert.equal(formatSpread(spread([1, 2, 4])), '2.0 (1.0–4.0)');
});
