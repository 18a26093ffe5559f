/** Foreign bytes that do not follow their format. The message names format, field and offset. */
export class FormatError extends Error {
  override readonly name = 'FormatError';
}

/**
 * A bounds-checked little-endian cursor over untrusted bytes: the one way the codecs of this folder read.
 *
 * `base` is added to the offsets in error messages, so that a reader over a slice still names positions in the file.
 * Slices returned by {@link take} share memory with the input.
 */
export class ByteReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #format: string;
  readonly #base: number;
  #offset = 0;

  constructor(bytes: Uint8Array, format: string, base = 0) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#format = format;
    this.#base = base;
  }

  get offset(): number {
    return this.#offset;
  }

  get remaining(): number {
    return this.#bytes.length - this.#offset;
  }

  /** An error about `field` at the given offset of this reader (default: where it stands). */
  fail(field: string, reason: string, offset: number = this.#offset): never {
    throw new FormatError(
      `cannot decode ${this.#format}: ${field} at offset 0x${(this.#base + offset).toString(16)}: ${reason}`,
    );
  }

  seek(offset: number, field: string): this {
    if (!Number.isSafeInteger(offset) || offset < 0 || offset > this.#bytes.length) {
      this.fail(field, `points to ${offset}, outside the ${this.#bytes.length} bytes there are`);
    }
    this.#offset = offset;
    return this;
  }

  take(length: number, field: string): Uint8Array {
    if (!Number.isSafeInteger(length) || length < 0 || length > this.remaining) {
      this.fail(field, `needs ${length} bytes, ${this.remaining} are left`);
    }
    const start = this.#offset;
    this.#offset += length;
    return this.#bytes.subarray(start, this.#offset);
  }

  u8(field: string): number {
    return this.#view.getUint8(this.#advance(1, field));
  }

  u16(field: string): number {
    return this.#view.getUint16(this.#advance(2, field), true);
  }

  u32(field: string): number {
    return this.#view.getUint32(this.#advance(4, field), true);
  }

  u64(field: string): bigint {
    return this.#view.getBigUint64(this.#advance(8, field), true);
  }

  /** A u64 that must be at most `limit` and therefore fits a number. */
  u64Number(field: string, limit: number = Number.MAX_SAFE_INTEGER): number {
    const start = this.#offset;
    const value = this.u64(field);
    if (value > BigInt(limit)) this.fail(field, `${value} is over the limit of ${limit}`, start);
    return Number(value);
  }

  /** Refuses bytes after the end of the structure. */
  end(field = 'end'): void {
    if (this.remaining !== 0) this.fail(field, `${this.remaining} bytes follow that should not be there`);
  }

  #advance(length: number, field: string): number {
    if (length > this.remaining) this.fail(field, `needs ${length} bytes, ${this.remaining} are left`);
    const start = this.#offset;
    this.#offset += length;
    return start;
  }
}

export function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

/** Rounds up to a multiple of `alignment`, which need not be a power of two. */
export function alignUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}
