import assert from 'node:assert/strict';
import { test } from 'node:test';
import { emptyVariableStore } from '../../src/formats/fixtures.ts';
import { bootEntriesNamed, bootOrder, encodeBootEntry, putFirst, setBootOrder } from './boot-entries.ts';

const esp = {
  number: 1,
  name: 'ESP',
  typeGuid: 'c12a7328-f81f-11d2-ba4b-00a0c93ec93b',
  uniqueGuid: '11111111-2222-3333-4444-555555555555',
  startLba: 2048,
  endLba: 4095,
  attributes: 0n,
  offset: 1 << 20,
  sizeBytes: 1 << 20,
};

test('a boot entry is an EFI_LOAD_OPTION with a hard drive and a file, and its load options after them', () => {
  const entry = encodeBootEntry({ description: 'A', esp, path: '\\a', loadOptions: 'x' });
  const hex = (bytes: Buffer) => bytes.toString('hex');
  assert.equal(hex(entry.subarray(0, 6)), '010000003800', 'active; 42 + 10 + 4 bytes of device path');
  assert.equal(hex(entry.subarray(6, 10)), '41000000');
  const drive = `04012a00${'01000000'}${'0008000000000000'}${'0008000000000000'}`;
  assert.equal(hex(entry.subarray(10, 52)), `${drive}${'11111111222233334444555555555555'}0202`);
  assert.equal(hex(entry.subarray(52)), '04040a005c0061000000' + '7fff0400' + '78000000');
});

test('entries are found by what they are called, and the first in the order is tried first', () => {
  const empty = emptyVariableStore();
  const entry = encodeBootEntry({ description: 'Ashlar B', esp, path: '\\EFI\\ashlar\\b.efi' });
  const image = putFirst(setBootOrder(empty, [1, 2]), 0xa5, entry);
  assert.deepEqual(bootOrder(image), [0xa5, 1, 2]);
  assert.deepEqual(bootEntriesNamed(image, 'Ashlar'), [0xa5]);
  assert.deepEqual(bootEntriesNamed(image, 'HTTPv4'), []);
  assert.deepEqual(bootOrder(putFirst(image, 2, entry)), [2, 0xa5, 1]);
});
