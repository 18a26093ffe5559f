/** Register values that an operator hands over, in the forms in which tools give them. */
import type { DigestAlgorithm } from '../../src/formats/event-log.ts';
import type { PcrValues } from '../../src/measure/event-log-replay.ts';

const maxPcr = 23;
const digestHexLength = new Map<string, number>([
  ['sha1', 40],
  ['sha256', 64],
  ['sha384', 96],
  ['sha512', 128],
  ['sm3-256', 64],
  ['sha3-256', 64],
  ['sha3-384', 96],
  ['sha3-512', 128],
]);

/**
 * Reads register values by bank from any of:
 * - JSON with `pcrs` as `ashlarctl measure predict`, `measure log` and evidence have it, or that object itself:
 *   `{"sha256":{"0":"…"}}`
 * - what `tpm2_pcrread` prints
 * - what `grep . /sys/class/tpm/tpm0/pcr-sha256/*` prints
 *
 * @throws Error naming what is wrong, and when there are no values.
 */
export function decodePcrFile(bytes: Uint8Array): Map<DigestAlgorithm, PcrValues> {
  const text = Buffer.from(bytes).toString('utf8');
  const found = text.trimStart().startsWith('{') ? fromJson(text) : fromLines(text);
  if (found.length === 0)
    throw new Error('no register values: expected JSON with "pcrs", what tpm2_pcrread prints, or lines of /sys');
  const banks = new Map<DigestAlgorithm, Map<number, Uint8Array>>();
  for (const { bank, pcr, value } of found) {
    const length = digestHexLength.get(bank);
    const hex = value.replace(/^0x/i, '');
    const index = /^\d{1,2}$/.test(pcr) ? Number(pcr) : Number.NaN;
    if (length === undefined) throw new Error(`bank ${JSON.stringify(bank)} is not known`);
    if (!(index <= maxPcr)) throw new Error(`${JSON.stringify(pcr)} is no register: 0 to ${maxPcr}`);
    if (hex.length !== length || !/^[0-9a-f]+$/i.test(hex))
      throw new Error(`${bank} PCR ${index}: ${JSON.stringify(value.slice(0, 140))} is not ${length} hex digits`);
    const values = banks.get(bank as DigestAlgorithm) ?? new Map<number, Uint8Array>();
    if (values.has(index)) throw new Error(`${bank} PCR ${index} is there twice`);
    banks.set(bank as DigestAlgorithm, values.set(index, Buffer.from(hex, 'hex')));
  }
  return banks;
}

interface FoundValue {
  readonly bank: string;
  readonly pcr: string;
  readonly value: string;
}

function fromJson(text: string): FoundValue[] {
  const root: unknown = JSON.parse(text);
  const pcrs = isRecord(root) && isRecord(root['pcrs']) ? root['pcrs'] : root;
  if (!isRecord(pcrs)) return [];
  return Object.entries(pcrs).flatMap(([bank, values]) =>
    isRecord(values) ? Object.entries(values).map(([pcr, value]) => ({ bank, pcr, value: String(value) })) : [],
  );
}

function fromLines(text: string): FoundValue[] {
  const found: FoundValue[] = [];
  let bank = '';
  for (const line of text.split('\n')) {
    const sysfs = /pcr-(sha\d+|sm3-256)\/(\d+):\s*([0-9A-Fa-f]+)\s*$/.exec(line);
    const heading = /^\s*(sha\w+|sm3_256)\s*:\s*$/.exec(line);
    const value = /^\s*(\d+)\s*:\s*(0x[0-9A-Fa-f]+)\s*$/.exec(line);
    if (sysfs !== null) found.push({ bank: sysfs[1] ?? '', pcr: sysfs[2] ?? '', value: sysfs[3] ?? '' });
    else if (heading !== null) bank = (heading[1] ?? '').replace('_', '-');
    else if (value !== null) found.push({ bank, pcr: value[1] ?? '', value: value[2] ?? '' });
  }
  return found;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
