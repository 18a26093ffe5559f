/** Options that many commands have. */
import type { OptionTable } from '../host/command-line.ts';

export const COMMON_OPTIONS = {
  context: { type: 'string', value: 'NAME', summary: 'the context to use instead of the current one' },
  json: { type: 'boolean', summary: 'print JSON' },
} as const satisfies OptionTable;

export const OVERRIDE_OPTION = {
  type: 'string',
  value: 'NODE=HOST:PORT',
  multiple: true,
  summary: 'where to reach the API of a node, * for all; for forwarded ports',
} as const;

export function printJson(print: (line: string) => void, value: unknown): void {
  print(JSON.stringify(value, null, 2));
}
