import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { crc32 } from 'node:zlib';
import fc from 'fast-check';
import { FormatError } from './byte-reader.ts';
import { mutations, skipWithout } from './fixtures.ts';
import {
  addPartition,
  decodeGpt,
  encodeGpt,
  encodeGptEvent,
  type Gpt,
  gptHeadSize,
  gptTailSize,
  relocateGpt,
  setPartitionAttribute,
  usableLbas,
} from './gpt.ts';
import { decodeGuid, encodeGuid, formatUuid } from './guid.ts';

const directory = mkdtempSync(join(tmpdir(), 'ashlar-gpt-'));
after(() => rmSync(directory, { recursive: true }));

const espType = 'c12a7328-f81f-11d2-ba4b-00a0c93ec93b';
const systemType = '6173686c-6172-4273-8973-74656d000001';
const table: Gpt = {
  diskGuid: '11111111-2222-3333-4444-555555555555',
  sectorSize: 512,
  diskSectors: 20_480,
  partitions: [
    {
      number: 1,
      typeGuid: espType,
      uniqueGuid: 'aaaaaaaa-0000-0000-0000-000000000001',
      name: 'ESP',
      startLba: 2048,
      endLba: 4095,
      attributes: 0n,
    },
    {
      number: 2,
      typeGuid: systemType,
      uniqueGuid: 'aaaaaaaa-0000-0000-0000-000000000002',
      name: 'SYSTEM-A',
      startLba: 4096,
      endLba: 8191,
      attributes: 1n << 60n,
    },
  ],
};
const data = {
  number: 4,
  typeGuid: systemType,
  uniqueGuid: 'aaaaaaaa-0000-0000-0000-000000000004',
  name: 'DATA',
  startLba: 10_240,
  endLba: 20_000,
  attributes: 0n,
};

function imageOf(gpt: Gpt): Buffer {
  const image = Buffer.alloc(gpt.diskSectors * gpt.sectorSize);
  for (const { offset, bytes } of encodeGpt(gpt)) image.set(bytes, offset);
  return image;
}

const ends = (image: Uint8Array, sectorSize = 512) => ({
  head: image.subarray(0, gptHeadSize(sectorSize)),
  tail: image.subarray(image.length - gptTailSize(sectorSize)),
  sectorSize,
  diskSectors: image.length / sectorSize,
});

const plain = ({ diskGuid, sectorSize, diskSectors, partitions }: Gpt): Gpt => ({
  diskGuid,
  sectorSize,
  diskSectors,
  partitions,
});

describe('GPT', () => {
  it('is found without fault by sgdisk, also after growing and adding a partition', {
    skip: skipWithout('sgdisk'),
  }, () => {
    const path = join(directory, 'disk.img');
    const fd = openSync(path, 'w');
    const write = (gpt: Gpt) => {
      ftruncateSync(fd, gpt.diskSectors * 512);
      for (const { offset, bytes } of encodeGpt(gpt)) writeSync(fd, bytes, 0, bytes.length, offset);
      const { stdout, status } = spawnSync('sgdisk', ['-v', path], { encoding: 'utf8' });
      assert.equal(status, 0);
      assert.match(stdout, /No problems found/);
    };
    write(table);
    write(addPartition(relocateGpt(table, 40_960), { ...data, endLba: 40_000 }));
    closeSync(fd);
    const info = spawnSync('sgdisk', ['-i', '4', path], { encoding: 'utf8' }).stdout;
    assert.match(info, /Partition name: 'DATA'/);
    assert.match(info, /Last sector: 40000/);
  });

  it("reads sgdisk's table", { skip: skipWithout('sgdisk') }, () => {
    const path = join(directory, 'theirs.img');
    const fd = openSync(path, 'w');
    ftruncateSync(fd, 8 * 1024 * 1024);
    closeSync(fd);
    const made = spawnSync('sgdisk', [
      '--clear',
      '-U',
      table.diskGuid,
      '-n',
      '3:2048:4095',
      '-t',
      `3:${espType}`,
      '-c',
      '3:Grüße',
      '-A',
      '3:set:48',
      path,
    ]);
    assert.equal(made.status, 0);
    const gpt = decodeGpt(ends(readFileSync(path)));
    assert.equal(gpt.isConsistent, true);
    assert.equal(gpt.diskGuid, table.diskGuid);
    assert.equal(gpt.partitions.length, 1);
    const { number, name, typeGuid, startLba, endLba, attributes } = gpt.partitions[0]!;
    assert.deepEqual(
      { number, name, typeGuid, startLba, endLba, attributes },
      { number: 3, name: 'Grüße', typeGuid: espType, startLba: 2048, endLba: 4095, attributes: 1n << 48n },
    );
  });

  it('reads back what it wrote', () => {
    const partition = fc.record({
      length: fc.integer({ min: 1, max: 90 }),
      name: fc.string({ maxLength: 36 }),
      attributes: fc.bigInt(0n, 2n ** 64n - 1n),
    });
    fc.assert(
      fc.property(fc.array(partition, { maxLength: 20 }), fc.constantFrom(512, 4096), (specs, sectorSize) => {
        const partitions = specs.map(({ length, name, attributes }, index) => ({
          number: index + 1,
          typeGuid: espType,
          uniqueGuid: formatUuid(Uint8Array.from({ length: 16 }, (_, i) => index + i)),
          name: name.replaceAll('\0', ''),
          startLba: 100 + index * 100,
          endLba: 100 + index * 100 + length,
          attributes,
        }));
        const gpt = { diskGuid: table.diskGuid, sectorSize, diskSectors: 3000, partitions };
        const decoded = decodeGpt(ends(imageOf(gpt), sectorSize));
        assert.deepEqual(plain(decoded), gpt);
        assert.equal(decoded.isConsistent, true);
      }),
      { seed: 4, numRuns: 40 },
    );
  });

  it('uses the backup when the primary is damaged, and says so', () => {
    const image = imageOf(table);
    image[600] = (image[600] ?? 0) ^ 1;
    const { head, tail, ...rest } = ends(image);
    const gpt = decodeGpt({ head, tail, ...rest });
    assert.equal(gpt.source, 'backup');
    assert.equal(gpt.isConsistent, false);
    assert.deepEqual(plain(gpt), table);
    tail.fill(0);
    assert.throws(() => decodeGpt({ head, tail, ...rest }), /signature|CRC32/);
  });

  it('does not believe a whole header about entries that changed', () => {
    const image = imageOf(table);
    image[1024 + 60] = (image[1024 + 60] ?? 0) ^ 1;
    const gpt = decodeGpt(ends(image));
    assert.equal(gpt.source, 'backup');
    assert.deepEqual(plain(gpt), table);
  });

  it('says that the backup of a grown disk is not at its end, and moves it', () => {
    const grown = Buffer.concat([imageOf(table), Buffer.alloc(512 * 1000)]);
    const found = decodeGpt(ends(grown));
    assert.equal(found.isConsistent, false);
    for (const { offset, bytes } of encodeGpt(relocateGpt(found, found.diskSectors))) grown.set(bytes, offset);
    assert.equal(decodeGpt(ends(grown)).isConsistent, true);
  });

  for (const [state, damage, first] of [
    ['both copies are whole', undefined, 'backup'],
    ['both copies are whole', undefined, 'primary'],
    ['the backup is damaged', 'tail', 'backup'],
    ['the primary is damaged', 'head', 'primary'],
  ] as const) {
    it(`keeps one whole copy wherever the power goes while it writes the ${first} first: ${state}`, () => {
      const before = imageOf(table);
      if (damage !== undefined) ends(before)[damage].fill(0xff);
      const next = setPartitionAttribute(addPartition(table, data), 4, 48, true);
      const writes = encodeGpt(next, first);
      const expected = [table, next].map((gpt) => JSON.stringify(gpt.partitions, big));
      const longest = Math.max(...writes.map(({ bytes }) => bytes.length));
      const torn = (index: number, cut: number) => {
        const image = Buffer.from(before);
        for (const { offset, bytes } of writes.slice(0, index)) image.set(bytes, offset);
        const last = writes[index];
        if (last !== undefined) image.set(last.bytes.subarray(0, cut), last.offset);
        return JSON.stringify(decodeGpt(ends(image)).partitions, big);
      };
      fc.assert(
        fc.property(fc.nat({ max: writes.length }), fc.nat({ max: longest }), (index, cut) => {
          assert.ok(expected.includes(torn(index, cut)));
        }),
        {
          numRuns: 40,
          examples: [512, 1024, 16_384, 16_896].flatMap((cut) => writes.map((_, i) => [i, cut] as [number, number])),
        },
      );
    });
  }

  function big(_: string, value: unknown) {
    return typeof value === 'bigint' ? value.toString() : value;
  }

  it('says what the other copy has when both are whole', () => {
    const image = imageOf(table);
    const backup = encodeGpt(addPartition(table, data), 'backup')[0];
    assert.ok(backup !== undefined);
    image.set(backup.bytes, backup.offset);
    const found = decodeGpt(ends(image));
    assert.deepEqual([found.source, found.isConsistent], ['primary', false]);
    assert.deepEqual(plain(found), table);
    assert.deepEqual(found.otherPartitions.at(-1), data);
    image[600] = (image[600] ?? 0) ^ 1;
    assert.deepEqual(decodeGpt(ends(image)).otherPartitions, []);
  });

  it('sets and clears one attribute bit', () => {
    const set = setPartitionAttribute(table, 1, 48, true);
    assert.equal(set.partitions[0]?.attributes, 1n << 48n);
    assert.deepEqual(setPartitionAttribute(set, 1, 48, false), table);
    assert.throws(() => setPartitionAttribute(table, 9, 48, true), /no partition 9/);
  });

  it('refuses tables that would lose data', () => {
    const add = (change: Partial<typeof data>) => () => addPartition(table, { ...data, ...change });
    assert.throws(add({ startLba: 8000 }), /partitions 2 and 4 overlap/);
    assert.throws(add({ endLba: 20_479 }), /not within 34 to 20446/);
    assert.throws(add({ number: 1 }), /number is taken/);
    assert.throws(add({ uniqueGuid: 'AAAAAAAA-0000-0000-0000-000000000001' }), /is taken/);
    assert.throws(() => relocateGpt(table, 8000), /not within/);
    assert.deepEqual(usableLbas(table), { first: 34, last: 20_446 });
  });

  it('answers mutated tables with a table or a FormatError, whatever the CRCs say', () => {
    const image = imageOf(table);
    let turn = 0;
    for (const head of mutations(image.subarray(0, gptHeadSize(512)), { seed: 6, count: 2000, window: 1500 })) {
      // Half of them with CRCs made right again, so that the fields behind them are reached.
      if (head.length === gptHeadSize(512) && turn++ % 2 === 0) {
        const fixed = Buffer.from(head.buffer, head.byteOffset, head.length);
        fixed.writeUInt32LE(crc32(fixed.subarray(1024)), 512 + 88);
        fixed.writeUInt32LE(0, 512 + 16);
        fixed.writeUInt32LE(crc32(fixed.subarray(512, 512 + 92)), 512 + 16);
      }
      try {
        decodeGpt({ ...ends(image), head, tail: new Uint8Array(gptTailSize(512)) });
      } catch (error) {
        assert.ok(error instanceof FormatError, String(error));
      }
    }
  });

  it('measures header, count and used entries', () => {
    const event = encodeGptEvent(table);
    assert.equal(event.length, 92 + 8 + 2 * 128);
    assert.equal(Buffer.from(event).readBigUInt64LE(92), 2n);
  });
});

describe('GUID', () => {
  it('stores the first three groups little-endian', () => {
    assert.equal(Buffer.from(encodeGuid(espType)).toString('hex'), '28732ac11ff8d211ba4b00a0c93ec93b');
    assert.equal(decodeGuid(encodeGuid(espType)), espType);
    assert.throws(() => encodeGuid('nonsense'), /"nonsense" is not of the form/);
  });
});
