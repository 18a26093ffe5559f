/** Evidence of a node, as a verifier gets it from anybody. */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import { dictionaryOf, type FuzzTarget, mustHold } from './fuzz-target.ts';

export const evidenceTarget: FuzzTarget = {
  name: 'evidence',
  files: ['src/measure/evidence.ts', 'src/formats/json-shape.ts'],
  maxBytes: 16 * 1024,
  campaignExecutions: 200_000,
  dictionary: dictionaryOf(
    '"format"',
    '"ashlar-evidence/1"',
    '"node"',
    '"nonce"',
    '"pcrs"',
    '"sha256"',
    '"sealing"',
    '"resealed"',
    '"generation":1',
    '"__proto__":{}',
    'null',
    'true',
    '1e999',
    '[]',
    '{}',
    '""',
    ',',
    ':',
    '"\\u0000"',
    '==',
    '=',
    'AAAA',
    '0xf09f9880',
    '0xff',
  ),
  mutate: mutateDocument,
  load: async (tree) => {
    const url = pathToFileURL(join(tree, 'src/measure/evidence.ts')).href;
    const { decodeEvidence, encodeEvidence } = (await import(url)) as typeof import('../../src/measure/evidence.ts');
    return (input) => {
      const evidence = decodeOrFormatError(() => decodeEvidence(input));
      if (evidence === undefined) return;
      const written = encodeEvidence(evidence);
      const text = Buffer.from(input).toString('utf8');
      mustHold(isDeepStrictEqual(JSON.parse(written), JSON.parse(text)), 'all that the file says is in the evidence');
      mustHold(encodeEvidence(decodeEvidence(written)) === written, 'written, it reads the same');
    };
  },
};

/** Nothing else is promised to whoever reads a stranger's evidence. */
function decodeOrFormatError<T>(decode: () => T): T | undefined {
  try {
    return decode();
  } catch (error) {
    if (error instanceof Error && error.name === 'FormatError') return undefined;
    throw error;
  }
}

const replacements: readonly unknown[] = [
  null,
  true,
  0,
  -1,
  1.5,
  2 ** 60,
  '',
  'x',
  '00',
  'AAA=',
  'AAB=',
  'AB==',
  [],
  {},
  ['AAAA'],
  { a: 1 },
];

/** Changes the value at one place of the document: another type, no key, one key more. Text that is no JSON stays. */
function mutateDocument(parent: Uint8Array, random: () => number): Uint8Array {
  const below = (limit: number): number => Math.floor(random() * limit);
  let root: unknown;
  try {
    root = JSON.parse(Buffer.from(parent).toString('utf8'));
  } catch {
    return parent;
  }
  const places: { container: Record<string, unknown>; key: string }[] = [];
  const pending: unknown[] = [root];
  for (let value = pending.pop(); value !== undefined; value = pending.pop()) {
    if (typeof value !== 'object' || value === null) continue;
    for (const [key, member] of Object.entries(value)) {
      places.push({ container: value as Record<string, unknown>, key });
      pending.push(member);
    }
  }
  const place = places[below(places.length)];
  if (place === undefined) return parent;
  const { container, key } = place;
  const choice = below(4);
  if (choice === 0) container[key] = replacements[below(replacements.length)];
  else if (choice === 1) delete container[key];
  else if (choice === 2)
    container[['more', '__proto__', 'sealing', '16', 'format'][below(5)] ?? ''] =
      replacements[below(replacements.length)];
  else container[key] = changedText(container[key], below);
  return Buffer.from(JSON.stringify(root));
}

function changedText(value: unknown, below: (limit: number) => number): unknown {
  if (typeof value !== 'string') return replacements[below(replacements.length)];
  const at = below(value.length + 1);
  const letter = '0Ff/+=Zz \u0000é'[below(11)] ?? '';
  return `${value.slice(0, at)}${letter}${value.slice(at + below(2))}`;
}
