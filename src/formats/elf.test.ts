import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { FormatError } from './byte-reader.ts';
import { decodeElf, elfMachineX64, isElf } from './elf.ts';
import { mutations, skipWithout } from './fixtures.ts';

const node = readFileSync(process.execPath);

describe('decodeElf', () => {
  it('finds what readelf finds in Node itself', { skip: skipWithout('readelf') }, () => {
    const text = execFileSync('readelf', ['-dlW', process.execPath], { encoding: 'utf8' });
    const needed = [...text.matchAll(/\(NEEDED\)\s+Shared library: \[(.+?)\]/g)].map((match) => match[1]);
    const elf = decodeElf(node);
    assert.deepEqual(elf.needed, needed);
    assert.equal(elf.interpreter, /program interpreter: (.+?)\]/.exec(text)?.[1]);
    assert.equal(elf.machine, elfMachineX64);
  });

  it('reads the soname of a library', () => {
    const report = process.report.getReport() as unknown as { sharedObjects: string[] };
    const libc = report.sharedObjects.find((path) => /\/libc\.so\.6$/.test(path));
    assert.ok(libc);
    assert.equal(decodeElf(readFileSync(libc)).soname, 'libc.so.6');
  });

  it('says what is not ELF', () => {
    assert.equal(isElf(Buffer.from('#!/bin/sh')), false);
    assert.throws(() => decodeElf(Buffer.from('#!/bin/sh')), /magic at offset 0x0: not an ELF file/);
  });

  it('answers mutated files with dependencies or a FormatError', () => {
    const small = smallElf();
    assert.deepEqual(decodeElf(small), {
      machine: 62,
      interpreter: '/ld.so',
      soname: 'me.so',
      needed: ['libc.so.6'],
      runpath: undefined,
    });
    for (const bytes of mutations(small, { seed: 9, count: 3000 })) {
      try {
        decodeElf(bytes);
      } catch (error) {
        assert.ok(error instanceof FormatError, String(error));
      }
    }
  });
});

/** Three program headers, an interpreter, a dynamic section and its strings; loaded at 0x10000. */
function smallElf(): Buffer {
  const strings = Buffer.from('\0libc.so.6\0me.so\0');
  const interpreter = Buffer.from('/ld.so\0');
  const dynamic: [number, number][] = [
    [1, 1],
    [14, 11],
    [5, 0x10000 + 64 + 168 + 7 + 80],
    [10, strings.length],
    [0, 0],
  ];
  const file = Buffer.alloc(64 + 168 + 7 + 80 + strings.length);
  file.write('\x7fELF\x02\x01', 'latin1');
  file.writeUInt16LE(62, 18);
  file.writeBigUInt64LE(64n, 32);
  file.writeUInt16LE(56, 54);
  file.writeUInt16LE(3, 56);
  const segments: [number, number, number][] = [
    [1, 0, file.length],
    [3, 232, 7],
    [2, 239, 80],
  ];
  for (const [index, [type, offset, size]] of segments.entries()) {
    const at = 64 + index * 56;
    file.writeUInt32LE(type, at);
    file.writeBigUInt64LE(BigInt(offset), at + 8);
    file.writeBigUInt64LE(BigInt(0x10000 + offset), at + 16);
    file.writeBigUInt64LE(BigInt(size), at + 32);
  }
  file.set(interpreter, 232);
  for (const [index, [tag, value]] of dynamic.entries()) {
    file.writeBigUInt64LE(BigInt(tag), 239 + index * 16);
    file.writeBigUInt64LE(BigInt(value), 247 + index * 16);
  }
  file.set(strings, 239 + 80);
  return file;
}
