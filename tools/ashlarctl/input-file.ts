/** Files that an operator names: whatever they turn out to be, one clear error. */
import { open } from 'node:fs/promises';

/**
 * Reads a whole file, from where it may come as well as a pipe.
 *
 * @param what for the error, as in `cannot read the event log …`.
 * @throws Error, one sentence, when it is no file, is empty, or has over `maxBytes`; nothing beyond the limit is read.
 */
export async function readInputFile(path: string, what: string, maxBytes: number): Promise<Uint8Array> {
  try {
    await using file = await open(path, 'r');
    const status = await file.stat();
    if (status.isDirectory()) throw new Error('it is a directory');
    if (status.size > maxBytes) throw new Error(`it has ${status.size} bytes; at most ${maxBytes} are read`);
    const chunks: Uint8Array[] = [];
    let length = 0;
    // Not by its size alone: files of /sys and pipes say 0 or a page.
    for (;;) {
      const { bytesRead, buffer } = await file.read(
        Buffer.alloc(Math.min(maxBytes, Math.max(65_536, status.size)) + 1),
      );
      if (bytesRead === 0) break;
      chunks.push(buffer.subarray(0, bytesRead));
      length += bytesRead;
      if (length > maxBytes) throw new Error(`it has over ${maxBytes} bytes`);
    }
    if (length === 0) throw new Error('it is empty');
    return Buffer.concat(chunks, length);
  } catch (error) {
    throw new Error(`cannot read ${what} ${path}: ${reasonOf(error)}`, { cause: error });
  }
}

/** Why a file could not be opened, in words. */
export function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const code = 'code' in error ? error.code : undefined;
  if (code === 'ENOENT') return 'there is no such file';
  if (code === 'EISDIR') return 'it is a directory';
  if (code === 'EACCES') return 'permission denied';
  return error.message;
}

/** Decodes what was read. An error gets the file's name in front, since a decoder does not know it. */
export function decodeInput<T>(path: string, decode: () => T): T {
  try {
    return decode();
  } catch (error) {
    throw new Error(`${path}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
}
