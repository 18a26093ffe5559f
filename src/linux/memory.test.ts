import assert from 'node:assert/strict';
import { test } from 'node:test';
import { programText, releaseStartMemory } from './memory.ts';

test('program text is what is executable, of a file, and never written', () => {
  const maps = [
    '00400000-00401000 r--p 00000000 fd:00 12 /usr/bin/ashlar',
    '00401000-00403000 r-xp 00001000 fd:00 12 /usr/bin/ashlar',
    '00403000-00404000 rw-p 00003000 fd:00 12 /usr/bin/ashlar',
    '7f0000000000-7f0000001000 r-xp 00000000 00:00 0',
    '7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0 [vdso]',
    '7f0000002000-7f0000003000 rwxp 00000000 fd:00 13 /usr/lib/odd.so',
  ].join('\n');
  assert.deepEqual(programText(maps), [{ start: 0x401000n, lengthBytes: 0x2000 }]);
});

test('a process runs on after it, with less memory', () => {
  const before = process.memoryUsage.rss();
  releaseStartMemory();
  assert.ok(process.memoryUsage.rss() < before - 5 * 2 ** 20, `${before} → ${process.memoryUsage.rss()}`);
  assert.equal(JSON.parse('{"still":"alive"}').still, 'alive');
});
