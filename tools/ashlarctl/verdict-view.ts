/** A judge's verdict for a terminal: one check after the other, digests whole, then the decision. */
import type { JudgeCheck, Verdict } from '../../src/measure/judge.ts';
import { printable } from './table.ts';

const WIDTH = 100;
const marks: Record<JudgeCheck['outcome'], string> = { passed: 'passed', failed: 'FAILED', 'not-done': 'not done' };
const markWidth = 10;

/** All of it; the last lines are the decision. */
export function verdictLines(verdict: Verdict): string[] {
  const nameWidth = Math.max(...verdict.checks.map(({ name }) => name.length)) + 2;
  const checks = verdict.checks.flatMap(({ name, outcome, detail }) => {
    const head = marks[outcome].padEnd(markWidth) + name.padEnd(nameWidth);
    const [first = '', ...rest] = wrap(printable(detail), WIDTH - head.length);
    return [`${head}${first}`, ...rest.map((line) => `${' '.repeat(head.length)}${line}`)];
  });
  return [...checks, '', ...decisionLines(verdict)];
}

/** The decision in one sentence, and what it does not cover. */
export function decisionLines(verdict: Verdict): string[] {
  const failed = verdict.checks.filter(({ outcome }) => outcome === 'failed').map(({ name }) => name);
  if (failed.length > 0)
    return wrap(`REFUSED: ${failed.length} of ${verdict.checks.length} checks failed: ${failed.join(', ')}`, WIDTH);
  if (!verdict.accepted)
    return ['REFUSED: no check failed, but --strict allows no reservation:', ...reservationLines(verdict)];
  const image = printable(verdict.image ?? 'an allowed image');
  if (verdict.reservations.length === 0) return wrap(`ACCEPTED: the node runs ${image}`, WIDTH);
  return [...wrap(`ACCEPTED WITH RESERVATIONS: the node runs ${image}, but`, WIDTH), ...reservationLines(verdict)];
}

function reservationLines({ reservations }: Verdict): string[] {
  return reservations.flatMap((reservation) =>
    wrap(reservation, WIDTH - 4).map((line, index) => `${index === 0 ? '  - ' : '    '}${line}`),
  );
}

/** For JSON: everything that the judge gave. */
export function verdictJson(verdict: Verdict): unknown {
  const { accepted, isStrict, reservations, image, checks, registers } = verdict;
  return { accepted, strict: isStrict, reservations, ...(image !== undefined && { image }), checks, registers };
}

/** Breaks at spaces; a word that is longer than a line is broken anywhere, since a digest that is cut proves nothing. */
function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && line.length + 1 + word.length > width) {
      lines.push(line);
      line = '';
    }
    line = line === '' ? word : `${line} ${word}`;
    while (line.length > width) {
      lines.push(line.slice(0, width));
      line = line.slice(width);
    }
  }
  return [...lines, line];
}
