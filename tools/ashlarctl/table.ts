/** Plain text for a terminal: tables and lists of fields, at most 100 columns wide. */

const WIDTH = 100;
const GAP = '  ';

/** Columns as wide as their widest cell; the last one is cut with … where the line would be too long. */
export function table(header: readonly string[], rows: readonly (readonly string[])[]): string[] {
  const last = header.length - 1;
  const widths = header.map((title, column) => Math.max(title.length, ...rows.map((row) => row[column]?.length ?? 0)));
  return [header, ...rows].map((row) => {
    const cells = row.slice(0, last).map((cell, column) => cell.padEnd(widths[column] ?? 0));
    return cut([...cells, row[last] ?? ''].join(GAP).trimEnd());
  });
}

/** `name  value` lines; a value that is a list continues below itself. */
export function fields(entries: readonly (readonly [name: string, value: string | readonly string[]])[]): string[] {
  const width = Math.max(...entries.map(([name]) => name.length));
  return entries.flatMap(([name, value]) => {
    const values = typeof value === 'string' ? [value] : value.length === 0 ? ['-'] : value;
    return values.map((line, index) => cut(`${(index === 0 ? name : '').padEnd(width)}${GAP}${line}`));
  });
}

/** `3 s`, `12 min`, `5 h`, `8 d`. */
export function duration(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

export function megabytes(bytes: bigint | number): string {
  return `${Math.round(Number(bytes) / 1_000_000)} MB`;
}

/** Control characters of whatever a node says must not reach the terminal. */
export function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, (character) => (character === '\t' ? '  ' : '�'));
}

function cut(line: string): string {
  const safe = printable(line);
  return safe.length <= WIDTH ? safe : `${safe.slice(0, WIDTH - 1)}…`;
}
