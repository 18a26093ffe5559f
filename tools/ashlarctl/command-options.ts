/** Options that many commands have. */
import { splitAddress } from '../../src/rpc/pinned-server.ts';
import { checkFingerprint } from '../../src/rpc/tls-names.ts';
import { type OptionTable, UsageError } from '../host/command-line.ts';

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

/** @throws UsageError when `--endpoint` is not HOST:PORT */
export function checkEndpointOption(value: string): void {
  asUsage('--endpoint', () => splitAddress(value));
}

/** @throws UsageError when `--fingerprint` has another form than those of a console */
export function checkFingerprintOption(value: string): void {
  asUsage('--fingerprint', () => checkFingerprint(value));
}

/** A check of the server's libraries, whose error is here one of the command line. */
export function asUsage<T>(option: string, check: () => T): T {
  try {
    return check();
  } catch (cause) {
    throw new UsageError(`${option}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}
