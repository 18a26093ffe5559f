import assert from 'node:assert/strict';
import { test } from 'node:test';
import { verityParameters } from './verity.ts';

const verity = {
  rootHash: 'ab'.repeat(32),
  salt: '0011',
  dataBlocks: 100,
  hashStartBlock: 101,
  blockSize: 4096,
  hashAlgorithm: 'sha256',
};

test('the table names data and hash tree on one device, and panics on corruption', () => {
  assert.equal(
    verityParameters('/dev/vda2', verity),
    `1 /dev/vda2 /dev/vda2 4096 4096 100 101 sha256 ${'ab'.repeat(32)} 0011 1 panic_on_corruption`,
  );
});

test('no salt is written as a dash', () => {
  assert.match(verityParameters('/dev/vda2', { ...verity, salt: '' }), / - 1 panic_on_corruption$/);
});
