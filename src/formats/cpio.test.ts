import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { FormatError } from './byte-reader.ts';
import { type CpioEntry, decodeCpio, encodeCpio } from './cpio.ts';
import { mutations, skipWithout } from './fixtures.ts';

const entries: CpioEntry[] = [
  { type: 'symlink', path: 'init', mode: 0o777, target: 'usr/bin/ashlar' },
  { type: 'file', path: 'usr/bin/ashlar', mode: 0o755, data: Buffer.from('node!') },
  { type: 'directory', path: 'usr', mode: 0o755 },
  { type: 'directory', path: 'usr/bin', mode: 0o755 },
  { type: 'directory', path: 'dev', mode: 0o755 },
  { type: 'character-device', path: 'dev/console', mode: 0o600, major: 5, minor: 1 },
];
const archive = (list: CpioEntry[], mtime = 0): Buffer => Buffer.concat([...encodeCpio(list, { mtime })]);

describe('cpio', () => {
  it('is listed by cpio as it was written', { skip: skipWithout('cpio') }, () => {
    const listing = execFileSync('cpio', ['-itv', '--quiet', '--numeric-uid-gid'], {
      input: archive(entries),
      encoding: 'utf8',
      env: { ...process.env, TZ: 'UTC', LC_ALL: 'C' },
    });
    const lines = listing
      .trimEnd()
      .split('\n')
      .map((line) => line.replace(/ +/g, ' '));
    assert.deepEqual(lines, [
      'drwxr-xr-x 2 0 0 0 Jan 1 1970 dev',
      'crw------- 1 0 0 5, 1 Jan 1 1970 dev/console',
      'lrwxrwxrwx 1 0 0 14 Jan 1 1970 init -> usr/bin/ashlar',
      'drwxr-xr-x 2 0 0 0 Jan 1 1970 usr',
      'drwxr-xr-x 2 0 0 0 Jan 1 1970 usr/bin',
      '-rwxr-xr-x 1 0 0 5 Jan 1 1970 usr/bin/ashlar',
    ]);
  });

  it('does not depend on the order of the entries', () => {
    assert.deepEqual(archive(entries.toReversed()), archive(entries));
  });

  it('yields file contents without copying them', () => {
    const data = new Uint8Array(1000);
    const chunks = [...encodeCpio([{ type: 'file', path: 'big', mode: 0o644, data }])];
    assert.ok(chunks.includes(data));
  });

  it('reads back what it wrote', () => {
    const name = fc.stringMatching(/^[a-zß-]{1,8}$/);
    fc.assert(
      fc.property(
        fc.uniqueArray(fc.tuple(name, fc.uint8Array({ maxLength: 50 })), { selector: ([path]) => path, maxLength: 10 }),
        fc.nat(2 ** 31),
        (files, mtime) => {
          const list = files.map(([path, data]): CpioEntry => ({ type: 'file', path, mode: 0o640, data }));
          const read = decodeCpio(archive(list, mtime));
          assert.deepEqual(
            read.map(({ path, data, mode, mtime: stamp }) => [path, Buffer.from(data).toString('hex'), mode, stamp]),
            files
              .toSorted(([a], [b]) => (a < b ? -1 : 1))
              .map(([path, data]) => [path, Buffer.from(data).toString('hex'), 0o640, mtime]),
          );
        },
      ),
      { seed: 7, numRuns: 60 },
    );
  });

  it('refuses paths that an unpacker would read differently', () => {
    const write =
      (...paths: string[]) =>
      () =>
        archive(paths.map((path) => ({ type: 'file', path, mode: 0o644, data: new Uint8Array(0) })));
    assert.throws(write('/etc'), /"\/etc": not a plain relative path/);
    assert.throws(write('../x'), /not a plain relative path/);
    assert.throws(write('a/b'), /its directory is not an entry/);
    assert.throws(write('a', 'a'), /is there twice/);
  });

  it('answers mutated archives with entries or a FormatError', () => {
    for (const bytes of mutations(archive(entries), { seed: 8, count: 3000 })) {
      try {
        decodeCpio(bytes);
      } catch (error) {
        assert.ok(error instanceof FormatError, String(error));
      }
    }
  });
});
