/** What is fuzzed: a decoder of foreign bytes, with what must hold of every answer that it gives. */
import type { FormatError } from '../../src/formats/byte-reader.ts';

export interface FuzzTarget {
  readonly name: string;
  /** Files whose branches are counted, relative to the source tree. */
  readonly files: readonly string[];
  readonly maxBytes: number;
  /** How many inputs of a campaign are this target's. */
  readonly campaignExecutions: number;
  /** Byte strings that the format knows. */
  readonly dictionary: readonly Uint8Array[];
  /** A change that knows the format, beside those that know only bytes. */
  readonly mutate?: (parent: Uint8Array, random: () => number) => Uint8Array;
  /**
   * Loads the decoder from a source tree: from this one, or from a copy with a bug put in. The function that it gives
   * decodes one input and throws when the answer breaks a promise, {@link isRefusal} apart.
   */
  readonly load: (tree: string) => Promise<(input: Uint8Array) => void>;
}

/** What a decoder may throw: its own words about the input. Everything else is a crash, engine errors foremost. */
export function isRefusal(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  const isFormatError = error.name === ('FormatError' satisfies FormatError['name']);
  return isFormatError || (error.name === 'RangeError' && error.message.startsWith('cannot '));
}

/** A promise that an answer broke. */
export class BrokenPromise extends Error {
  override readonly name = 'BrokenPromise';
}

export function mustHold(condition: boolean, promise: string): void {
  if (!condition) throw new BrokenPromise(promise);
}

/** Runs `decode`; undefined when it refuses the input. */
export function decodedOrRefused<T>(decode: () => T): T | undefined {
  try {
    return decode();
  } catch (error) {
    if (isRefusal(error)) return undefined;
    throw error;
  }
}

/** Runs what promises never to throw: here even a refusal breaks the promise. */
export function neverThrows<T>(promise: string, run: () => T): T {
  try {
    return run();
  } catch (error) {
    throw new BrokenPromise(`${promise}: ${error instanceof Error ? error.stack : String(error)}`);
  }
}

/** Words of a format as bytes: text as Latin-1, `0x…` as hex digits. */
export function dictionaryOf(...words: readonly string[]): Uint8Array[] {
  return words.map((word) => (word.startsWith('0x') ? Buffer.from(word.slice(2), 'hex') : Buffer.from(word, 'latin1')));
}
