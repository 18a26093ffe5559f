import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { DecodedGpt, GptPartition } from '../formats/gpt.ts';
import { type DiskTable, systemDiskTable, TwoSystemDisksError } from './system-disk.ts';

const SYSTEM = '01234567-89ab-4def-8123-456789abcdef';
const partition = (uniqueGuid: string): GptPartition => ({
  number: 2,
  typeGuid: '6173686c-6172-4273-8973-74656d000001',
  uniqueGuid,
  name: 'SYSTEM-A',
  startLba: 2048,
  endLba: 4095,
  attributes: 0n,
});

function disk(path: string, uniqueGuid: string, other?: string): DiskTable {
  const table: DecodedGpt = {
    diskGuid: '00000000-0000-4000-8000-0000000000ff',
    sectorSize: 512,
    diskSectors: 10_000,
    partitions: [partition(uniqueGuid)],
    source: 'primary',
    otherPartitions: other === undefined ? [] : [partition(other)],
    isConsistent: false,
  };
  return { path, table };
}

const FOREIGN = 'ffffffff-89ab-4def-8123-456789abcdef';
const unreadable: DiskTable = { path: '/dev/vdz', table: new Error('cannot decode GPT: no signature') };

test('the disk that stage 1 read is taken, whatever its name and whatever other disks hold', () => {
  const own = disk('/dev/vdb', SYSTEM);
  assert.equal(systemDiskTable([disk('/dev/vda', FOREIGN), own, unreadable], '/dev/vdb', SYSTEM), own.table);
});

test('two disks with the same system are refused, whichever of them stage 1 read', () => {
  const disks = [disk('/dev/vda', SYSTEM), disk('/dev/vdb', SYSTEM), disk('/dev/vdc', FOREIGN)];
  for (const [booted, other] of [
    ['/dev/vda', '/dev/vdb'],
    ['/dev/vdb', '/dev/vda'],
  ] as const) {
    assert.throws(
      () => systemDiskTable(disks, booted, SYSTEM),
      (error) =>
        error instanceof TwoSystemDisksError &&
        error.message.includes(`${other} has the same system partition as ${booted}`) &&
        /nothing was opened or written; remove one/.test(error.message),
    );
  }
});

test('a second disk that has the system in its backup table only is one, too', () => {
  const disks = [disk('/dev/vda', SYSTEM), disk('/dev/vdb', FOREIGN, SYSTEM)];
  assert.throws(() => systemDiskTable(disks, '/dev/vda', SYSTEM), TwoSystemDisksError);
});

test('another disk never stands in for the one that stage 1 read', () => {
  const other = disk('/dev/vda', SYSTEM);
  const find =
    (...disks: DiskTable[]) =>
    () =>
      systemDiskTable([other, ...disks], '/dev/vdz', SYSTEM);
  assert.throws(find(), /on \/dev\/vdz, where it was a moment ago: the disk is gone/);
  assert.throws(find(unreadable), /a moment ago: cannot decode GPT/);
  assert.throws(find(disk('/dev/vdz', FOREIGN)), /its partition table does not have it/);
});
