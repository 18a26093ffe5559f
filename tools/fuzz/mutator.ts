/** Inputs from inputs: what an attacker, a bad disk or a maker's own idea of a format might make of one. */

export interface MutatorOptions {
  /** A number in [0, 1). */
  readonly random: () => number;
  /** Byte strings that the format knows. */
  readonly dictionary: readonly Uint8Array[];
  readonly maxBytes: number;
}

const interesting = [0, 1, 2, 3, 4, 7, 8, 15, 16, 20, 24, 28, 31, 32, 33, 64, 127, 128, 255, 256, 4095, 4096, 65_535];
const interesting32 = [0x7fff_ffff, 0x8000_0000, 0xffff_fff0, 0xffff_ffff, 0x00ff_ffff, 0x0001_0000, 0x0100_0000];

/** One to a few changes to `parent`; `other` lends pieces. The parent is not touched. */
export function mutate(parent: Uint8Array, other: Uint8Array, options: MutatorOptions): Uint8Array {
  const below = (limit: number): number => Math.floor(options.random() * limit);
  let bytes: Uint8Array = parent.slice();
  const changes = 1 + below(below(8) + 1);
  for (let change = 0; change < changes; change++) {
    bytes = applyOne(bytes, other, options, below);
    if (bytes.length > options.maxBytes) bytes = bytes.slice(0, options.maxBytes);
  }
  return bytes;
}

function applyOne(
  bytes: Uint8Array,
  other: Uint8Array,
  { dictionary }: MutatorOptions,
  below: (limit: number) => number,
): Uint8Array {
  if (bytes.length === 0) return Uint8Array.of(below(256));
  const at = below(bytes.length);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  switch (below(14)) {
    case 0:
      bytes[at] = (bytes[at] ?? 0) ^ (1 << below(8));
      return bytes;
    case 1:
      bytes[at] = below(256);
      return bytes;
    case 2:
      bytes[at] = pick(interesting, below) & 0xff;
      return bytes;
    case 3: {
      if (bytes.length < 2) return bytes;
      view.setUint16(below(bytes.length - 1), pick(interesting, below), below(2) === 0);
      return bytes;
    }
    case 4: {
      if (bytes.length < 4) return bytes;
      const value = below(2) === 0 ? pick(interesting, below) : pick(interesting32, below);
      view.setUint32(below(bytes.length - 3), value, below(2) === 0);
      return bytes;
    }
    case 5: {
      // Near what is there: off by one, by a header, by an element.
      if (bytes.length < 4) return bytes;
      const where = below(bytes.length - 3);
      const isLittle = below(2) === 0;
      view.setUint32(where, (view.getUint32(where, isLittle) + below(65) - 32) >>> 0, isLittle);
      return bytes;
    }
    case 6:
      bytes[at] = ((bytes[at] ?? 0) + below(17) - 8) & 0xff;
      return bytes;
    case 7:
      return bytes.slice(0, at);
    case 8:
      return splice(bytes, at, 1 + below(Math.min(64, bytes.length - at)), new Uint8Array(0));
    case 9: {
      const from = below(bytes.length);
      return splice(bytes, at, 0, bytes.slice(from, from + 1 + below(128)));
    }
    case 10:
      return splice(bytes, at, 0, new Uint8Array(1 + below(32)).fill(below(3) === 0 ? 0xff : 0));
    case 11: {
      const from = below(other.length + 1);
      const piece = other.slice(from, from + 1 + below(256));
      return splice(bytes, at, below(2) === 0 ? 0 : piece.length, piece);
    }
    default: {
      const word = dictionary[below(dictionary.length)];
      if (word === undefined) return bytes;
      return splice(bytes, at, below(3) === 0 ? 0 : word.length, word);
    }
  }
}

const pick = (list: readonly number[], below: (limit: number) => number): number => list[below(list.length)] ?? 0;

/** `bytes` with `count` bytes at `at` replaced. */
function splice(bytes: Uint8Array, at: number, count: number, replacement: Uint8Array): Uint8Array {
  const rest = bytes.subarray(Math.min(bytes.length, at + count));
  const result = new Uint8Array(at + replacement.length + rest.length);
  result.set(bytes.subarray(0, at));
  result.set(replacement, at);
  result.set(rest, at + replacement.length);
  return result;
}
