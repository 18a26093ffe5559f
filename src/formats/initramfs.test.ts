import assert from 'node:assert/strict';
import { test } from 'node:test';
import { constants, gzipSync, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import fc from 'fast-check';
import { FormatError } from './byte-reader.ts';
import { decodeCpio, encodeCpio } from './cpio.ts';
import { splitInitramfs } from './initramfs.ts';

const archive = (path: string, size: number): Buffer =>
  Buffer.concat([...encodeCpio([{ path, mode: 0o644, type: 'file', data: Buffer.alloc(size, path) }])]);
const padded = (bytes: Uint8Array): Buffer => Buffer.concat([bytes, Buffer.alloc(4 + ((4 - (bytes.length % 4)) % 4))]);
const pathsIn = (bytes: Uint8Array): string[] => decodeCpio(bytes).map(({ path }) => path);

test('members are found behind one another: microcode uncompressed, then two of zstd', () => {
  const checked = zstdCompressSync(archive('second', 300_000), { params: { [constants.ZSTD_c_checksumFlag]: 1 } });
  const bytes = Buffer.concat([archive('first', 10), checked, zstdCompressSync(archive('third', 1))].map(padded));
  const members = splitInitramfs(bytes);
  assert.deepEqual(
    members.map(({ compression }) => compression),
    ['none', 'zstd', 'zstd'],
  );
  const [first, second, third] = members;
  assert.ok(first && second && third);
  assert.deepEqual(pathsIn(first.bytes), ['first']);
  assert.deepEqual(pathsIn(zstdDecompressSync(second.bytes)), ['second']);
  assert.deepEqual(pathsIn(zstdDecompressSync(third.bytes)), ['third']);
});

test('a gzip member reaches to the end', () => {
  const bytes = gzipSync(archive('only', 5));
  assert.deepEqual(splitInitramfs(bytes), [{ compression: 'gzip', bytes }]);
});

test('what is no member is refused by offset, and mutated members never pass their end', () => {
  assert.throws(() => splitInitramfs(Buffer.concat([padded(archive('a', 1)), Buffer.from('MZ')])), FormatError);
  const whole = Buffer.concat([padded(archive('a', 9)), zstdCompressSync(archive('b', 5000))]);
  fc.assert(
    fc.property(fc.nat(whole.length - 1), fc.nat(255), fc.nat(whole.length), (at, value, length) => {
      const mutated = Buffer.from(whole.subarray(0, length));
      if (at < length) mutated[at] = value;
      try {
        const total = splitInitramfs(mutated).reduce((sum, { bytes }) => sum + bytes.length, 0);
        assert.ok(total <= mutated.length);
      } catch (error) {
        assert.ok(error instanceof FormatError, String(error));
      }
    }),
  );
});
