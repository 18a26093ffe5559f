/** The power goes at every write: of a first boot, of a resealing, of one to a PCR 7 that is only predicted. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cutFirstBoot, cutPrediction, cutResealing } from './power-cut-fixture.ts';

for (const [what, cut, atLeast] of [
  ['a first boot is repeated or finished by the next', cutFirstBoot, 6],
  ['a resealing opens again, ends with one generation, and then the copy from before opens nothing', cutResealing, 13],
  [
    'a resealing to a new policy key does the same',
    (stride: number) => cutResealing(stride, { policyKey: 'next' }),
    13,
  ],
  ['a resealing for a PCR 7 to come opens with that of before, and then with the new one', cutPrediction, 8],
] as const) {
  test(`whenever the power goes, ${what}`, async (t) => {
    const writes = await cut(1);
    assert.ok(writes >= atLeast, `${writes} writes`);
    t.diagnostic(`${writes} writes`);
  });
}
