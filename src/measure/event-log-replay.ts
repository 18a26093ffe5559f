/** What the PCRs would be if the firmware's event log were true: compare with the TPM's, which it cannot argue with. */
import { hash } from 'node:crypto';
import { type DigestAlgorithm, type EventLog, type EventLogEntry, maxPcr, noAction } from '../formats/event-log.ts';
import { extendPcr, zeroPcr } from './pcr.ts';

/** By register. */
export type PcrValues = ReadonlyMap<number, Uint8Array>;

export interface EventLogReplay {
  /** Registers that have an event, by bank. */
  readonly banks: ReadonlyMap<DigestAlgorithm, PcrValues>;
  /** Which registers of which bank are not what the TPM has, and why. One sentence each. */
  readonly warnings: readonly string[];
}

const opensslNames = new Map<DigestAlgorithm, string>([
  ['sha1', 'sha1'],
  ['sha256', 'sha256'],
  ['sha384', 'sha384'],
  ['sha512', 'sha512'],
  ['sm3-256', 'sm3'],
  ['sha3-256', 'sha3-256'],
  ['sha3-384', 'sha3-384'],
  ['sha3-512', 'sha3-512'],
]);

/** Digest sizes, in bytes, of the banks that can be replayed. */
const digestSizes = new Map<DigestAlgorithm, number>([
  ['sha1', 20],
  ['sha256', 32],
  ['sha384', 48],
  ['sha512', 64],
  ['sm3-256', 32],
  ['sha3-256', 32],
  ['sha3-384', 48],
  ['sha3-512', 64],
]);

/**
 * Replays the SHA-256 bank.
 *
 * @returns values of the registers that have an event. Registers that software extends later (11 by init, 14, 15) differ
 *   from the TPM's by those extends.
 * @throws RangeError when the log does not cover the bank: then the bank may have been left unmeasured.
 */
export function replayEventLog(log: EventLog): Map<number, Uint8Array> {
  if (!log.algorithms.includes('sha256')) {
    throw new RangeError(`cannot replay event log: it has ${log.algorithms.join(', ')} and no sha256`);
  }
  const values = new Map<number, Uint8Array>();
  for (const entry of log.entries) {
    if (entry.type === noAction) {
      const locality = startupLocality(entry);
      if (locality !== undefined && !values.has(0)) values.set(0, initialPcr0(32, locality));
      continue;
    }
    if (entry.pcr > maxPcr) continue;
    const digest = entry.digests.get('sha256');
    if (digest === undefined)
      throw new RangeError(`cannot replay event log: a ${entry.typeName} of PCR ${entry.pcr} has no sha256 digest`);
    values.set(entry.pcr, extendPcr(values.get(entry.pcr) ?? zeroPcr(), digest));
  }
  return values;
}

/** Replays every bank that the log covers, as far as it goes: what is amiss becomes a warning. Never throws. */
export function replayAllBanks(log: EventLog): EventLogReplay {
  const warnings: string[] = [];
  const banks = new Map<DigestAlgorithm, PcrValues>();
  for (const algorithm of log.algorithms) {
    const name = opensslNames.get(algorithm);
    const size = digestSizes.get(algorithm);
    if (name === undefined || size === undefined) warnings.push(`bank ${algorithm}: the algorithm is not known`);
    else banks.set(algorithm, replayBank(log, { algorithm, name, size }, warnings));
  }
  if (log.unreadBytes > 0) {
    warnings.push(`${log.unreadBytes} bytes of the log are not read: registers with events there differ`);
  }
  return { banks, warnings };
}

function replayBank(
  log: EventLog,
  bank: { algorithm: DigestAlgorithm; name: string; size: number },
  warnings: string[],
): PcrValues {
  const values = new Map<number, Uint8Array>();
  const uncovered = new Set<number>();
  for (const { type, pcr, digests, ...entry } of log.entries) {
    if (type === noAction) {
      const locality = startupLocality({ ...entry, pcr });
      if (locality === undefined) continue;
      if (values.has(0)) warnings.push(`event ${entry.index}: a start-up locality after the first event of PCR 0`);
      else values.set(0, initialPcr0(bank.size, locality));
      continue;
    }
    if (pcr > maxPcr) continue;
    const digest = digests.get(bank.algorithm);
    if (digest === undefined) uncovered.add(pcr);
    else
      values.set(pcr, hash(bank.name, Buffer.concat([values.get(pcr) ?? Buffer.alloc(bank.size), digest]), 'buffer'));
  }
  for (const pcr of uncovered) warnings.push(`bank ${bank.algorithm}: PCR ${pcr} has events without a digest for it`);
  return values;
}

/** PCR 0 starts with the locality of TPM2_Startup in its last byte (Platform Firmware Profile §10.4.5.3). */
function startupLocality(entry: Pick<EventLogEntry, 'pcr' | 'data'>): number | undefined {
  const name = Buffer.from('StartupLocality\0', 'latin1');
  if (
    entry.pcr !== 0 ||
    entry.data.length !== name.length + 1 ||
    Buffer.compare(entry.data.subarray(0, name.length), name) !== 0
  ) {
    return undefined;
  }
  return entry.data[name.length];
}

function initialPcr0(size: number, locality: number): Uint8Array {
  const value = new Uint8Array(size);
  value[size - 1] = locality;
  return value;
}
