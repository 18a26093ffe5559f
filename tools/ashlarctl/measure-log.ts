/** `ashlarctl measure log`: a TPM event log decoded, replayed, and compared with what the TPM says. */
import { eventBinding } from '../../src/formats/event-binding.ts';
import { decodeEventData } from '../../src/formats/event-data.ts';
import {
  type DigestAlgorithm,
  decodeEventLog,
  type EventLogEntry,
  maxLogBytes,
  maxPcr,
} from '../../src/formats/event-log.ts';
import { type PcrValues, replayAllBanks } from '../../src/measure/event-log-replay.ts';
import { comparePcrs, type PcrComparison } from '../../src/measure/pcr-comparison.ts';
import { command } from '../host/command-line.ts';
import { printJson } from './command-options.ts';
import { eventSummary } from './event-summary.ts';
import { decodeInput, readInputFile } from './input-file.ts';
import { decodePcrFile } from './pcr-file.ts';
import { printable, table } from './table.ts';

const maxPcrFileBytes = 8 * 1024 * 1024;

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

export const measureLog = command({
  name: 'log',
  summary: 'decode and replay a TPM event log, and compare it with register values',
  description:
    'FILE is as in /sys/kernel/security/tpm0/binary_bios_measurements, or from: ashlarctl node event-log NODE --out FILE.\nExit code 1 when a register differs from --pcrs. What the log cannot explain of registers above 7 (software extends\nthem later) is shown and is no difference.',
  options: {
    pcrs: {
      type: 'string',
      value: 'FILE',
      summary: "the TPM's values: JSON with pcrs, what tpm2_pcrread prints, or: grep . /sys/class/tpm/tpm0/pcr-*/*",
    },
    json: { type: 'boolean', summary: 'print JSON' },
  },
  positionals: [{ name: 'file', summary: 'a binary event log', required: true }],
  async run(values, { print, progress }) {
    const bytes = await readInputFile(values.file, 'the event log', maxLogBytes);
    const log = decodeInput(values.file, () => decodeEventLog(bytes));
    const replay = replayAllBanks(log);
    const actual = values.pcrs === undefined ? undefined : await readPcrs(values.pcrs);
    const comparisons = actual === undefined ? [] : compareBanks(replay.banks, actual, values.pcrs ?? '');
    const warnings = [...log.warnings, ...replay.warnings];
    const all = log.header === undefined ? log.entries : [log.header, ...log.entries];
    const isEqual = comparisons.every(({ registers }) => registers.every(({ verdict }) => verdict !== 'differs'));
    if (values.json) {
      printJson(print, {
        format: log.format,
        algorithms: log.algorithms,
        unreadBytes: log.unreadBytes,
        warnings,
        events: all.map(eventJson),
        pcrs: Object.fromEntries([...replay.banks].map(([bank, registers]) => [bank, pcrsJson(registers)])),
        ...(actual === undefined ? {} : { comparison: Object.fromEntries(comparisons.map(comparisonJson)), isEqual }),
      });
    } else {
      for (const line of eventTable(all)) print(line);
      for (const [bank, registers] of replay.banks) {
        print('');
        print(`Replayed ${bank}`);
        for (const [pcr, value] of sorted(registers)) print(`${`PCR ${pcr}`.padEnd(7)} ${hex(value)}`);
      }
      for (const { bank, registers } of comparisons) {
        print('');
        print(`Compared ${bank}`);
        for (const { pcr, verdict, actual: value } of registers) {
          print(`${`PCR ${pcr}`.padEnd(7)} ${verdict}${verdict === 'differs' ? `: the TPM has ${hex(value)}` : ''}`);
        }
      }
      for (const warning of warnings) progress.warn(printable(warning));
    }
    return isEqual ? 0 : 1;
  },
});

interface BankComparison {
  readonly bank: DigestAlgorithm;
  readonly registers: readonly PcrComparison[];
}

async function readPcrs(path: string): Promise<Map<DigestAlgorithm, PcrValues>> {
  const bytes = await readInputFile(path, 'the register values', maxPcrFileBytes);
  return decodeInput(path, () => decodePcrFile(bytes));
}

function compareBanks(
  replayed: ReadonlyMap<DigestAlgorithm, PcrValues>,
  actual: ReadonlyMap<DigestAlgorithm, PcrValues>,
  path: string,
): BankComparison[] {
  const shared = [...actual.keys()].filter((bank) => replayed.has(bank));
  if (shared.length === 0) {
    const names = (banks: Iterable<string>): string => [...banks].join(', ') || 'none';
    throw new Error(`cannot compare: ${path} has ${names(actual.keys())}, the log ${names(replayed.keys())}`);
  }
  return shared.map((bank) => ({
    bank,
    registers: comparePcrs(bank, replayed.get(bank) ?? new Map(), actual.get(bank) ?? new Map()),
  }));
}

const sorted = (registers: PcrValues): [number, Uint8Array][] => [...registers].toSorted(([a], [b]) => a - b);

const pcrsJson = (registers: PcrValues): Record<string, string> =>
  Object.fromEntries(sorted(registers).map(([pcr, value]) => [pcr, hex(value)]));

function comparisonJson({ bank, registers }: BankComparison): [string, unknown] {
  return [
    bank,
    registers.map(({ pcr, replayed, actual, verdict }) => ({
      pcr,
      verdict,
      actual: hex(actual),
      ...(replayed === undefined ? {} : { replayed: hex(replayed) }),
    })),
  ];
}

function eventJson(entry: EventLogEntry): unknown {
  const { data, warnings } = decodeEventData(entry);
  return {
    index: entry.index,
    pcr: entry.pcr,
    type: entry.type,
    typeName: entry.typeName,
    digests: Object.fromEntries([...entry.digests].map(([algorithm, digest]) => [algorithm, hex(digest)])),
    data,
    /** `bound`: the digests are of this data. `free`: nothing vouches for it. `contradicts`: it was altered, or the rule is the firmware's own. */
    binding: eventBinding(entry),
    warnings: eventWarnings(entry, warnings),
  };
}

const contradiction = 'its digests are not of its data: it was altered, or what measured it has a rule of its own';

function eventWarnings(entry: EventLogEntry, dataWarnings: readonly string[]): string[] {
  return [...entry.warnings, ...dataWarnings, ...(eventBinding(entry) === 'contradicts' ? [contradiction] : [])];
}

function eventTable(entries: readonly EventLogEntry[]): string[] {
  const rows = entries.flatMap((entry) => {
    const { data, warnings } = decodeEventData(entry);
    const register = entry.pcr > maxPcr ? '-' : String(entry.pcr);
    const row = [String(entry.index), register, entry.typeName, eventSummary(data)];
    return [row, ...eventWarnings(entry, warnings).map((warning) => ['', '', 'warning', warning])];
  });
  return table(['EVENT', 'PCR', 'TYPE', 'WHAT'], rows);
}
