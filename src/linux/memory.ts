/** Giving back memory that only the start of a long-lived process needed. */
import { readFileSync } from 'node:fs';
import { libcFunction } from './libc.ts';

const MADV_DONTNEED = 4;

const mallocTrim = libcFunction('int malloc_trim(size_t pad)');
const madvise = libcFunction('int madvise(uintptr_t address, size_t length, int advice)');

export interface MemoryRange {
  readonly start: bigint;
  readonly lengthBytes: number;
}

/**
 * The program text among mappings as /proc/self/maps lists them: executable, never writable, and of a file. Pages of
 * such a mapping are always the file's own, so dropping them loses nothing; constants that the linker relocated (`r--p`)
 * are not, and are left out.
 */
export function programText(maps: string): MemoryRange[] {
  return maps.split('\n').flatMap((line) => {
    const found = /^([0-9a-f]+)-([0-9a-f]+) r-xp [0-9a-f]+ \S+ [1-9]\d* +\//.exec(line);
    if (found?.[1] === undefined || found[2] === undefined) return [];
    const start = BigInt(`0x${found[1]}`);
    return [{ start, lengthBytes: Number(BigInt(`0x${found[2]}`) - start) }];
  });
}

/**
 * Gives freed heap back, and drops the mappings of program text, of which a start touches many times what running needs.
 * What is needed comes back from the page cache, page by page; the rest the kernel can use for something better without
 * asking each process first.
 */
export function releaseStartMemory(): void {
  mallocTrim(0);
  for (const { start, lengthBytes } of programText(readFileSync('/proc/self/maps', 'latin1')))
    madvise(start, lengthBytes, MADV_DONTNEED);
}
