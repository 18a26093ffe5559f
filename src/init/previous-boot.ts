/**
 * How the last boot ended. When the kernel panics it writes the end of its log to the platform's store (EFI variables,
 * ACPI ERST), which appears here as files of pstore; each is shown once and removed, so that the little space there is
 * free for the next.
 */
import { readdir, readFile, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { inflateSync } from 'node:zlib';

/** Lines shown from the end of the kernel's log. */
const TAIL_LINES = 24;
const LIMIT_BYTES = 256 * 1024;

export interface PreviousBootEnd {
  /** `a kernel panic: dm-verity device corrupted` */
  readonly summary: string;
  /** The last lines of the kernel's log. */
  readonly tail: readonly string[];
}

/** Reads and removes the records under a mounted pstore. Null: the last boot left none, so it ended in order. */
export async function takePreviousBootEnd(directory = '/sys/fs/pstore'): Promise<PreviousBootEnd | null> {
  const names = (await readdir(directory)).filter((name) => name.startsWith('dmesg-')).sort();
  if (names.length === 0) return null;
  const records: { readonly part: number; readonly text: string }[] = [];
  for (const name of names) {
    const bytes = await readFile(join(directory, name));
    await unlink(join(directory, name));
    records.push(decodeRecord(bytes.subarray(0, LIMIT_BYTES)));
  }
  return summarize(records);
}

/** Joins the parts of a panic's record, oldest text first, and finds the sentence that says why. */
export function summarize(records: readonly { readonly part: number; readonly text: string }[]): PreviousBootEnd {
  // Part 1 is the newest piece of the log.
  const ordered = [...records].sort((a, b) => b.part - a.part);
  const lines = ordered
    .flatMap(({ text }) => text.split('\n'))
    .map((line) => line.replace(/^<\d+>/, '').trimEnd())
    .filter((line) => line !== '');
  const panic = lines.findLast((line) => /Kernel panic - not syncing/.test(line));
  const corruption = lines.findLast((line) => /device-mapper: verity:.*corrupted/.test(line));
  const reason = panic?.replace(/^.*Kernel panic - not syncing: /, '') ?? lines.at(-1) ?? 'an empty record';
  const detail = corruption === undefined ? '' : ` (${corruption.replace(/^\[[^\]]*\]\s*/, '')})`;
  return {
    summary: `${panic === undefined ? 'a kernel crash' : 'a kernel panic'}: ${reason}${detail}`,
    tail: lines.slice(-TAIL_LINES),
  };
}

/** A record starts with `Panic#1 Part3`; pstore has decompressed it unless it could not (then it is zlib). */
function decodeRecord(bytes: Buffer): { part: number; text: string } {
  let text = bytes.toString('latin1');
  const header = /^(?:Panic|Oops|Emergency|Shutdown|Unknown)#\d+ Part(\d+)\n/.exec(text);
  if (header === null) {
    try {
      text = inflateSync(bytes, { maxOutputLength: LIMIT_BYTES }).toString('latin1');
    } catch {
      // Plain text without a header, or damaged: shown as it is.
    }
  }
  return { part: Number(header?.[1] ?? 1), text: header === null ? text : text.slice(header[0].length) };
}
