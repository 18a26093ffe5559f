import assert from 'node:assert/strict';
import { test } from 'node:test';
import { staleFiles } from './generate-protos.ts';

test('the committed protobuf code is what proto/ gives', async () => {
  assert.deepEqual(await staleFiles(), []);
});
