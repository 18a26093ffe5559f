const WIDTH = 100;
const TERM_WIDTH_MAX = 36;

/** A part of a help page: free text, or a titled table of terms. Empty tables are left out. */
export type HelpSection = { text: string } | { heading: string; rows: readonly { term: string; text: string }[] };

/** A help page of at most 100 columns, provided that free text keeps to them. */
export function renderHelp(name: string, summary: string, sections: readonly HelpSection[]): string {
  const parts = [wrap(`${name}: ${summary}`, WIDTH).join('\n')];
  for (const section of sections) {
    if ('text' in section) parts.push(section.text.trim());
    else if (section.rows.length > 0) parts.push(`${section.heading}:\n${table(section.rows)}`);
  }
  return `${parts.join('\n\n')}\n`;
}

function table(rows: readonly { term: string; text: string }[]): string {
  const termWidth = Math.min(TERM_WIDTH_MAX, Math.max(...rows.map((row) => row.term.length)));
  const indent = ' '.repeat(termWidth + 4);
  return rows
    .map(({ term, text }) => {
      const lines = wrap(text, WIDTH - indent.length);
      const first = term.length <= termWidth ? `  ${term.padEnd(termWidth)}  ${lines.shift() ?? ''}` : `  ${term}`;
      return [first.trimEnd(), ...lines.map((line) => indent + line)].join('\n');
    })
    .join('\n');
}

/** Breaks at spaces. A word that is longer than a line has one for itself. */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(/\s+/)) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line);
      line = '';
    }
    line = line === '' ? word : `${line} ${word}`;
  }
  lines.push(line);
  return lines;
}
