/** Few runs on a shared machine: the median says what is usual, the ends say how far to trust it. */
export interface Spread {
  readonly n: number;
  readonly median: number;
  readonly min: number;
  readonly max: number;
}

/** @throws RangeError without values */
export function spread(values: readonly number[]): Spread {
  if (values.length === 0) throw new RangeError('cannot summarise: there are no values');
  const sorted = values.toSorted((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  const median = ((sorted[Math.floor(middle)] as number) + (sorted[Math.ceil(middle)] as number)) / 2;
  return { n: sorted.length, median, min: sorted[0] as number, max: sorted[sorted.length - 1] as number };
}

/** `12.3 (11.9–14.0)`; one value stands alone. */
export function formatSpread({ n, median, min, max }: Spread, digits = 1): string {
  const text = (value: number) => value.toFixed(digits);
  return n === 1 ? text(median) : `${text(median)} (${text(min)}–${text(max)})`;
}
