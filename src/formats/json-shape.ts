/**
 * Checks for JSON from outside: each check takes a value and its path and returns the value with its type, or throws
 * an error that names the path. Objects accept the keys they list and refuse every other by name, so that a mistyped
 * key is an error and never a silently ignored wish.
 */

/** Returns `value` as a `T`, or throws `ShapeError`. `path` is how the reader finds the place: `cluster.name`. */
export type Check<T> = (value: unknown, path: string) => T;

/** What a check returns. */
export type Checked<C> = C extends Check<infer T> ? T : never;

/** A value that is not of the expected shape. */
export class ShapeError extends Error {
  readonly path: string;

  constructor(path: string, problem: string) {
    super(`${path === '' ? 'the document' : path} ${problem}`);
    this.name = 'ShapeError';
    this.path = path;
  }
}

/** A string of `min` … `max` UTF-16 units that matches `pattern`, if given. */
export function text({
  min = 0,
  max,
  pattern,
}: {
  readonly min?: number;
  readonly max: number;
  readonly pattern?: RegExp;
}): Check<string> {
  return (value, path) => {
    if (typeof value !== 'string') throw new ShapeError(path, `must be a string, not ${kindOf(value)}`);
    if (value.length < min || value.length > max)
      throw new ShapeError(path, `must have ${min} to ${max} characters, not ${value.length}`);
    if (pattern !== undefined && !pattern.test(value))
      throw new ShapeError(path, `must match ${pattern}, not ${JSON.stringify(value.slice(0, 60))}`);
    return value;
  };
}

/** A whole number of `min` … `max`. */
export function integer({ min, max }: { readonly min: number; readonly max: number }): Check<number> {
  return (value, path) => {
    if (typeof value !== 'number' || !Number.isSafeInteger(value))
      throw new ShapeError(path, `must be a whole number, not ${kindOf(value)}`);
    if (value < min || value > max) throw new ShapeError(path, `must be ${min} to ${max}, not ${value}`);
    return value;
  };
}

/** A finite number of at least 0. */
export const nonNegativeNumber: Check<number> = (value, path) => {
  if (typeof value !== 'number' || !Number.isFinite(value) || value < 0)
    throw new ShapeError(path, `must be a number of at least 0, not ${kindOf(value)}`);
  return value;
};

export const flag: Check<boolean> = (value, path) => {
  if (typeof value !== 'boolean') throw new ShapeError(path, `must be true or false, not ${kindOf(value)}`);
  return value;
};

/** One of a few strings. */
export function oneOf<const T extends string>(...choices: readonly T[]): Check<T> {
  return (value, path) => {
    const found = choices.find((choice) => choice === value);
    if (found === undefined)
      throw new ShapeError(path, `must be one of ${choices.join(', ')}, not ${JSON.stringify(value)?.slice(0, 60)}`);
    return found;
  };
}

/** Exactly this number; used for versions. */
export function exactly<const T extends number>(expected: T): Check<T> {
  return (value, path) => {
    if (value !== expected)
      throw new ShapeError(path, `must be ${expected}, not ${JSON.stringify(value)?.slice(0, 60) ?? 'absent'}`);
    return expected;
  };
}

export function list<T>(item: Check<T>, { max }: { readonly max: number }): Check<T[]> {
  return (value, path) => {
    if (!Array.isArray(value)) throw new ShapeError(path, `must be a list, not ${kindOf(value)}`);
    if (value.length > max) throw new ShapeError(path, `must have at most ${max} entries, not ${value.length}`);
    return value.map((entry: unknown, index) => item(entry, `${path}[${index}]`));
  };
}

/** An object with free keys that match `key`. */
export function dictionary<T>(
  key: RegExp,
  item: Check<T>,
  { max }: { readonly max: number },
): Check<Record<string, T>> {
  return (value, path) => {
    const entries = Object.entries(asObject(value, path));
    if (entries.length > max) throw new ShapeError(path, `must have at most ${max} keys, not ${entries.length}`);
    // A null prototype: a key such as "__proto__" stays data, should `key` allow it.
    const result: Record<string, T> = Object.create(null);
    for (const [name, entry] of entries) {
      if (!key.test(name)) throw new ShapeError(join(path, name), `is not a key that is known here`);
      result[name] = item(entry, join(path, name));
    }
    return result;
  };
}

type Fields = Record<string, Check<unknown>>;
type Required<F extends Fields> = { -readonly [K in keyof F]: Checked<F[K]> };
type Optional<F extends Fields> = { -readonly [K in keyof F]?: Checked<F[K]> };

/** An object with exactly these keys; those of `optional` may be absent. */
export function object<R extends Fields, O extends Fields = Record<never, never>>(
  required: R,
  optional?: O,
): Check<Required<R> & Optional<O>> {
  const optionalFields: Fields = optional ?? {};
  return (value, path) => {
    const source = asObject(value, path);
    const result: Record<string, unknown> = {};
    for (const name of Object.keys(source))
      if (!Object.hasOwn(required, name) && !Object.hasOwn(optionalFields, name))
        throw new ShapeError(join(path, name), 'is not a key that is known here');
    for (const [name, check] of Object.entries(required)) {
      if (!Object.hasOwn(source, name)) throw new ShapeError(join(path, name), 'is missing');
      result[name] = check(source[name], join(path, name));
    }
    for (const [name, check] of Object.entries(optionalFields))
      if (Object.hasOwn(source, name)) result[name] = check(source[name], join(path, name));
    return result as Required<R> & Optional<O>;
  };
}

function asObject(value: unknown, path: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new ShapeError(path, `must be an object, not ${kindOf(value)}`);
  return value as Record<string, unknown>;
}

function join(path: string, name: string): string {
  const shown = /^[A-Za-z0-9_-]{1,60}$/.test(name) ? name : JSON.stringify(name.slice(0, 60));
  return path === '' ? shown : `${path}.${shown}`;
}

function kindOf(value: unknown): string {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'number') return `${value}`;
  if (typeof value === 'object') return 'an object';
  return typeof value === 'undefined' ? 'absent' : `a ${typeof value}`;
}
