import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import fc from 'fast-check';
import { FormatError } from './byte-reader.ts';
import { decodeEventLog } from './event-log.ts';
import { encodeEventLog, mutations, skipWithout } from './fixtures.ts';

const directory = mkdtempSync(join(tmpdir(), 'ashlar-log-'));
after(() => rmSync(directory, { recursive: true }));

const events = [
  { pcr: 7, type: 0x8000_0001, data: Buffer.from('variable') },
  { pcr: 4, type: 0x8000_0007, data: Buffer.from('Calling EFI Application from Boot Option') },
  { pcr: 4, type: 4, data: Buffer.alloc(4) },
  { pcr: 11, type: 13, data: Buffer.alloc(0) },
];

describe('decodeEventLog', () => {
  it('reads every event back', () => {
    const event = fc.record({
      pcr: fc.integer({ min: 0, max: 23 }),
      type: fc.constantFrom(3, 4, 5, 13, 0x8000_0006),
      data: fc.uint8Array({ maxLength: 80 }),
    });
    fc.assert(
      fc.property(fc.array(event, { maxLength: 20 }), (list) => {
        const log = decodeEventLog(encodeEventLog(list));
        assert.deepEqual(log.algorithms, ['sha1', 'sha256']);
        assert.deepEqual(
          log.entries.map(({ pcr, type, data }) => ({ pcr, type, data: Buffer.from(data) })),
          list.map(({ pcr, type, data }) => ({ pcr, type, data: Buffer.from(data) })),
        );
        for (const [index, { data }] of list.entries()) {
          assert.deepEqual(
            Buffer.from(log.entries[index]?.digests.get('sha256') ?? []),
            createHash('sha256').update(data).digest(),
          );
        }
      }),
      { seed: 16, numRuns: 50 },
    );
  });

  it('is read alike by tpm2_eventlog', { skip: skipWithout('tpm2_eventlog') }, () => {
    const path = join(directory, 'log');
    writeFileSync(path, encodeEventLog(events.slice(1, 3)));
    const text = execFileSync('tpm2_eventlog', [path], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
    const types = [...text.matchAll(/EventType: (\S+)/g)].map((match) => match[1]);
    assert.deepEqual(types, [
      'EV_NO_ACTION',
      ...decodeEventLog(encodeEventLog(events.slice(1, 3))).entries.map(({ typeName }) => typeName),
    ]);
  });

  it('refuses what does not begin as a log, naming what is wrong and where', () => {
    assert.throws(() => decodeEventLog(new Uint8Array(0)), /it is empty/);
    assert.throws(() => decodeEventLog(Buffer.alloc(100)), /it is all zeros/);
    assert.throws(() => decodeEventLog(Buffer.from('this is a text and no log at all. '.repeat(4))), FormatError);
    const header = Buffer.from(encodeEventLog([]));
    header.writeUInt32LE(9, 32 + 24);
    assert.throws(() => decodeEventLog(header), /numberOfAlgorithms at offset 0x3c: 9 is not 1 to 8/);
    header.writeUInt32LE(2, 32 + 24);
    header.writeUInt16LE(21, 32 + 30);
    assert.throws(() => decodeEventLog(header), /sha1 with 21 bytes/);
  });

  it('keeps what came before a cut or a lie, and says how much is left', () => {
    const log = Buffer.from(encodeEventLog(events));
    const cut = decodeEventLog(log.subarray(0, log.length - 1));
    assert.equal(cut.entries.length, 3);
    assert.ok(cut.unreadBytes > 0);
    assert.match(cut.warnings.join(), /^event 4 at offset 0x[0-9a-f]+: .*needs.* bytes from there on are not read$/);
    const foreign = Buffer.from(log);
    foreign.writeUInt16LE(0x9999, 32 + 37 + 12);
    assert.deepEqual(decodeEventLog(foreign).entries, []);
    assert.match(
      decodeEventLog(foreign).warnings.join(),
      /digest algorithm at offset 0x51: 0x9999 is not in the header/,
    );
  });

  describe('of real machines', () => {
    const [separator] = [{ pcr: 7, type: 4, data: Buffer.alloc(4) }];
    const sha1Event = (pcr: number, type: number, data: Uint8Array): Buffer => {
      const frame = Buffer.alloc(32, 0xab);
      frame.writeUInt32LE(pcr, 0);
      frame.writeUInt32LE(type, 4);
      frame.writeUInt32LE(data.length, 28);
      return Buffer.concat([frame, data]);
    };

    it('is read when it has SHA-1 digests only', () => {
      const specId = Buffer.from('Spec ID Event00\0\0\0\0\0\0\x02\0\x01\0', 'latin1');
      const log = decodeEventLog(Buffer.concat([sha1Event(0, 3, specId), sha1Event(4, 5, Buffer.from('boot'))]));
      assert.deepEqual([log.format, log.algorithms, log.header], ['sha1', ['sha1'], undefined]);
      assert.deepEqual(
        log.entries.map(({ index, pcr, typeName, digests }) => [index, pcr, typeName, digests.get('sha1')?.length]),
        [
          [0, 0, 'EV_NO_ACTION', 20],
          [1, 4, 'EV_ACTION', 20],
        ],
      );
    });

    it('may be padded with zeros, or with erased flash', () => {
      for (const padding of [Buffer.alloc(5000), Buffer.alloc(37, 0xff)]) {
        const log = decodeEventLog(Buffer.concat([encodeEventLog([separator, separator]), padding]));
        assert.deepEqual([log.entries.length, log.unreadBytes, log.warnings], [2, 0, []]);
      }
    });

    it('may name algorithms that nobody knows, whose digests have the size that the header says', () => {
      const known = Buffer.from(encodeEventLog([separator]));
      // SHA-1 renamed, in the header and in the event.
      known.writeUInt16LE(0x0099, 32 + 28);
      known.writeUInt16LE(0x0099, 32 + 37 + 12);
      const log = decodeEventLog(known);
      assert.deepEqual(log.algorithms, ['0x0099', 'sha256']);
      assert.equal(log.entries[0]?.digests.get('0x0099')?.length, 20);
      assert.match(log.warnings.join(), /algorithm 0x0099, which is not known: that bank is not replayed/);
    });

    it('may have events of types and registers that are none', () => {
      const log = decodeEventLog(
        encodeEventLog([
          { pcr: 0xffff_ffff, type: 3, data: Buffer.from('maker') },
          { pcr: 0xffff_ffff, type: 0x402, data: Buffer.from('maker') },
        ]),
      );
      assert.deepEqual(
        log.entries.map(({ typeName, warnings }) => [typeName, warnings]),
        [
          ['EV_NO_ACTION', []],
          ['0x402', ['PCR 4294967295 is no register: it is not replayed']],
        ],
      );
    });

    it('may give a digest of a bank that the header does not name', () => {
      const other = Buffer.from(encodeEventLog([separator]));
      // The header names SHA-256 and SM3; the event has SHA-1 and SHA-256.
      other.writeUInt16LE(0x0012, 32 + 28);
      other.writeUInt16LE(32, 32 + 30);
      const log = decodeEventLog(other);
      assert.equal(log.unreadBytes, 0);
      assert.match(log.entries[0]?.warnings.join() ?? '', /sha1 digest is of a bank that the header does not name/);
      assert.match(log.entries[0]?.warnings.join() ?? '', /it has no sm3-256 digest/);
    });
  });

  it('answers mutated logs with a log or a FormatError', () => {
    for (const bytes of mutations(encodeEventLog(events), { seed: 17, count: 3000 })) {
      try {
        decodeEventLog(bytes);
      } catch (error) {
        assert.ok(error instanceof FormatError, String(error));
      }
    }
  });
});
