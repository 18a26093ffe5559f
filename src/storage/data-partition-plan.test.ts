import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { decodeGpt, encodeGpt, type Gpt, gptHeadSize, gptTailSize } from '../formats/gpt.ts';
import { type DataPlan, type DiskState, DiskTooSmallError, planDataPartition } from './data-partition-plan.ts';
import { diskLayout, initialisedAttributeBit } from './disk-layout.ts';

const MIB = 1024 * 1024;
const NEW_UUID = '99999999-8888-4777-8666-555555555555';
const IMAGE_MIB = 706;

/** The table of the shipped image, as on a disk of that many sectors. */
function imageTable(sectorSize: number, diskSectors: number): Gpt {
  let next = MIB;
  const { esp, systemA, systemB } = diskLayout;
  const partitions = [esp, systemA, systemB].map(({ number, name, typeGuid, sizeBytes }) => {
    const startLba = next / sectorSize;
    next += sizeBytes;
    const uniqueGuid = `00000000-0000-4000-8000-00000000000${number}`;
    return { number, name, typeGuid, uniqueGuid, startLba, endLba: next / sectorSize - 1, attributes: 0n };
  });
  return { diskGuid: '00000000-0000-4000-8000-0000000000ff', sectorSize, diskSectors, partitions };
}

/** A disk in memory: only its two ends. */
function writeEnds(gpt: Gpt, diskSectors: number, write = encodeGpt(gpt)): { head: Buffer; tail: Buffer } {
  const head = Buffer.alloc(gptHeadSize(gpt.sectorSize));
  const tail = Buffer.alloc(gptTailSize(gpt.sectorSize));
  const tailOffset = diskSectors * gpt.sectorSize - tail.length;
  for (const { offset, bytes } of write) {
    if (offset === 0) head.set(bytes);
    else if (offset === tailOffset) tail.set(bytes);
  }
  return { head, tail };
}

/** The image copied to a disk of `mib`, its backup table still where the image ended. */
function freshDisk(mib: number, sectorSize = 512): DiskState {
  const diskSectors = (mib * MIB) / sectorSize;
  const image = imageTable(sectorSize, (IMAGE_MIB * MIB) / sectorSize);
  return diskOf(writeEnds(image, diskSectors), sectorSize, diskSectors);
}

function diskOf(ends: { head: Buffer; tail: Buffer }, sectorSize: number, diskSectors: number): DiskState {
  const gpt = decodeGpt({ ...ends, sectorSize, diskSectors });
  const kernelPartitions = gpt.partitions.map(({ number, startLba, endLba }) => ({
    number,
    startBytes: startLba * sectorSize,
    sizeBytes: (endLba - startLba + 1) * sectorSize,
  }));
  return { path: '/dev/vda', gpt, kernelPartitions };
}

/** The disk after all table writes of a plan, or after the first `count`, as the next boot finds it. */
function afterTables(disk: DiskState, plan: DataPlan, count = Infinity): DiskState {
  const tables = plan.steps.flatMap((step) => ('gpt' in step ? [step.gpt] : [])).slice(0, count);
  const last = tables.at(-1);
  return last === undefined ? disk : diskOf(writeEnds(last, last.diskSectors), last.sectorSize, last.diskSectors);
}

const kinds = (plan: DataPlan) => plan.steps.map(({ kind }) => kind);
const CREATION = ['create-volume', 'open-volume', 'make-filesystem', 'mount', 'mark-initialised'];

test('a fresh disk gets a data partition over the rest of it, and is marked last', () => {
  const plan = planDataPartition(freshDisk(2048), NEW_UUID);
  assert.deepEqual(kinds(plan), ['write-table', 'show-to-kernel', ...CREATION]);
  assert.equal(plan.partition.uniqueGuid, NEW_UUID);
  assert.equal(plan.partition.startLba * 512, 705 * MIB);
  assert.equal((plan.partition.endLba + 1) * 512, 2047 * MIB);
});

test('whatever size a disk has, the plan is a table without overlap whose data partition is aligned', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1218, max: 4_000_000 }), fc.constantFrom(512, 4096), (mib, sectorSize) => {
      const plan = planDataPartition(freshDisk(mib, sectorSize), NEW_UUID);
      const { startLba, endLba } = plan.partition;
      assert.equal((startLba * sectorSize) % MIB, 0);
      assert.equal(((endLba + 1) * sectorSize) % MIB, 0);
      assert.ok((endLba - startLba + 1) * sectorSize >= diskLayout.data.minimumBytes);
      for (const step of plan.steps) if ('gpt' in step) encodeGpt(step.gpt);
    }),
  );
});

test('a disk without room is refused with how large it has to be', () => {
  const refused = (mib: number, message: RegExp) =>
    assert.throws(
      () => planDataPartition(freshDisk(mib), NEW_UUID),
      (error) => error instanceof DiskTooSmallError && message.test(error.message),
    );
  refused(1217, /^disk too small: \/dev\/vda has 1217 MiB, of which 511 MiB are left .* at least 1218 MiB$/);
  refused(IMAGE_MIB, /0 MiB are left/);
  assert.ok(planDataPartition(freshDisk(1218), NEW_UUID).creates);
});

test('a power cut at any time before the mark repeats the creation, in the same partition', () => {
  const disk = freshDisk(2048);
  const first = planDataPartition(disk, NEW_UUID);
  const cut = afterTables(disk, first, 1);
  const second = planDataPartition(cut, '11111111-8888-4777-8666-555555555555');
  assert.deepEqual(kinds(second), CREATION);
  assert.equal(second.partition.uniqueGuid, NEW_UUID);
});

test('a power cut between the two copies of the new table repeats the creation', () => {
  const disk = freshDisk(2048);
  const step = planDataPartition(disk, NEW_UUID).steps.find(({ kind }) => kind === 'write-table');
  assert.ok(step !== undefined && 'gpt' in step);
  const { head } = writeEnds(imageTable(512, (IMAGE_MIB * MIB) / 512), disk.gpt.diskSectors);
  const { tail } = writeEnds(step.gpt, disk.gpt.diskSectors);
  const again = planDataPartition(diskOf({ head, tail }, 512, disk.gpt.diskSectors), NEW_UUID);
  assert.deepEqual(kinds(again), ['write-table', 'show-to-kernel', ...CREATION]);
});

test('an initialised partition is only opened, never created', () => {
  const disk = freshDisk(2048);
  const next = afterTables(disk, planDataPartition(disk, NEW_UUID));
  const plan = planDataPartition(next, NEW_UUID);
  assert.deepEqual(kinds(plan), ['open-volume', 'check-filesystem', 'mount']);
  assert.equal(plan.creates, false);
  assert.equal(plan.partition.attributes, 1n << BigInt(initialisedAttributeBit));
});

for (const [damaged, reason] of [
  ['head', /the primary table is damaged/],
  ['tail', /the backup table is not at the end/],
] as const) {
  test(`an initialised disk whose ${damaged} table is damaged is repaired and opened`, () => {
    const disk = freshDisk(2048);
    const marked = planDataPartition(disk, NEW_UUID).steps.at(-1);
    assert.ok(marked !== undefined && 'gpt' in marked);
    const ends = writeEnds(marked.gpt, marked.gpt.diskSectors);
    ends[damaged].fill(0);
    const plan = planDataPartition(diskOf(ends, 512, marked.gpt.diskSectors), NEW_UUID);
    assert.deepEqual(kinds(plan), ['write-table', 'open-volume', 'check-filesystem', 'mount']);
    const [repair] = plan.steps;
    assert.ok(repair?.kind === 'write-table');
    assert.match(repair.reason, reason);
    assert.deepEqual(repair.gpt.partitions, marked.gpt.partitions);
  });
}

test('a foreign partition in the place of DATA is refused, not overwritten', () => {
  const disk = freshDisk(2048);
  const added = planDataPartition(disk, NEW_UUID).steps[0];
  assert.ok(added !== undefined && 'gpt' in added);
  const partitions = added.gpt.partitions.map((partition) =>
    partition.number === 4
      ? { ...partition, typeGuid: '0fc63daf-8483-4772-8e79-3d69d8477de4', name: 'photos' }
      : partition,
  );
  const foreign = diskOf(writeEnds({ ...added.gpt, partitions }, added.gpt.diskSectors), 512, added.gpt.diskSectors);
  assert.throws(() => planDataPartition(foreign, NEW_UUID), /partition 4 is "photos" .* which Ashlar did not make/);
});

test('a kernel that sees the partition elsewhere than the table is not believed', () => {
  const disk = freshDisk(2048);
  const next = afterTables(disk, planDataPartition(disk, NEW_UUID), 1);
  const kernelPartitions = next.kernelPartitions.map((partition) =>
    partition.number === 4 ? { ...partition, sizeBytes: partition.sizeBytes - MIB } : partition,
  );
  assert.throws(() => planDataPartition({ ...next, kernelPartitions }, NEW_UUID), /restart the machine/);
});

/** The two copies of different tables; undefined: damaged. */
function copies(primary: Gpt | undefined, backup: Gpt | undefined): { head: Buffer; tail: Buffer } {
  const { sectorSize, diskSectors } = (primary ?? backup) as Gpt;
  const damaged = {
    head: Buffer.alloc(gptHeadSize(sectorSize), 0xff),
    tail: Buffer.alloc(gptTailSize(sectorSize), 0xff),
  };
  return {
    head: primary === undefined ? damaged.head : writeEnds(primary, diskSectors).head,
    tail: backup === undefined ? damaged.tail : writeEnds(backup, diskSectors).tail,
  };
}

/** Tables of one disk: as shipped, with a new data partition, with an initialised one. */
function tables(): { fresh: Gpt; added: Gpt; marked: Gpt } {
  const disk = freshDisk(2048);
  const [added, marked] = planDataPartition(disk, NEW_UUID).steps.flatMap((step) => ('gpt' in step ? [step.gpt] : []));
  assert.ok(added !== undefined && marked !== undefined);
  return { fresh: imageTable(512, disk.gpt.diskSectors), added, marked };
}

test('a mark that only the backup has counts: the partition is opened, never created again', () => {
  const { added, marked } = tables();
  const plan = planDataPartition(diskOf(copies(added, marked), 512, marked.diskSectors), NEW_UUID);
  assert.deepEqual(kinds(plan), ['write-table', 'open-volume', 'check-filesystem', 'mount']);
  const [repair] = plan.steps;
  assert.ok(repair?.kind === 'write-table');
  assert.equal(repair.first, 'primary');
  assert.match(repair.reason, /only the backup table says/);
  assert.deepEqual(repair.gpt.partitions, marked.partitions);
});

test('nothing is made over an initialised partition that only the backup table knows', () => {
  const { fresh, added, marked } = tables();
  const elsewhere = {
    ...added,
    partitions: added.partitions.map((one) =>
      one.number === 4 ? { ...one, uniqueGuid: '77777777-8888-4777-8666-555555555555' } : one,
    ),
  };
  for (const primary of [fresh, elsewhere]) {
    assert.throws(
      () => planDataPartition(diskOf(copies(primary, marked), 512, marked.diskSectors), NEW_UUID),
      new RegExp(`an initialised data partition \\(${NEW_UUID}\\); nothing was written.*wipe the disk`),
    );
  }
});

test('wherever the power goes while tables are written, one copy is whole, and a mark that was there still counts', () => {
  const { fresh, added, marked } = tables();
  const { diskSectors } = fresh;
  const states: Record<string, readonly [Gpt | undefined, Gpt | undefined]> = {
    fresh: [fresh, fresh],
    'fresh, backup damaged': [fresh, undefined],
    'fresh, primary damaged': [undefined, fresh],
    'primary without the data partition': [fresh, added],
    added: [added, added],
    'added, primary damaged': [undefined, added],
    'half marked': [added, marked],
    'half marked the other way': [marked, added],
    'marked, backup damaged': [marked, undefined],
    'marked, primary damaged': [undefined, marked],
  };
  const decode = (ends: { head: Buffer; tail: Buffer }) => diskOf(ends, 512, diskSectors);
  fc.assert(
    fc.property(
      fc.constantFrom(...Object.values(states)),
      fc.nat({ max: 5 }),
      fc.oneof(fc.nat({ max: 2048 }), fc.nat({ max: 17_408 })),
      (state, count, cut) => {
        const ends = copies(...state);
        const isMarked = state.includes(marked);
        const plan = planDataPartition(decode(ends), NEW_UUID);
        const writes = plan.steps.flatMap((step) => ('gpt' in step ? encodeGpt(step.gpt, step.first) : []));
        for (const [index, { offset, bytes }] of writes.slice(0, count + 1).entries()) {
          const end = offset === 0 ? ends.head : ends.tail;
          end.set(index === count ? bytes.subarray(0, cut) : bytes);
        }
        const next = planDataPartition(decode(ends), '11111111-8888-4777-8666-555555555555');
        if (isMarked) {
          assert.equal(plan.creates, false);
          assert.equal(next.creates, false);
          assert.equal(next.partition.uniqueGuid, NEW_UUID);
        }
      },
    ),
    { numRuns: 300 },
  );
});
