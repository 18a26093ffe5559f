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
