/** A log's replay against the values that a TPM shows. */
import { hash } from 'node:crypto';
import type { DigestAlgorithm } from '../formats/event-log.ts';
import type { PcrValues } from './event-log-replay.ts';

export type PcrVerdict =
  /** The log explains the value. */
  | 'equal'
  /** The log explains the value after the boot phases that init extends into PCR 11 and firmware does not log. */
  | 'equal after boot phases'
  /** As after a reset, and no event. */
  | 'untouched'
  /** Extended by something that keeps no events in this log: usual above PCR 7. */
  | 'no events'
  | 'differs';

export interface PcrComparison {
  readonly pcr: number;
  /** From the replay; undefined when the register has no event. */
  readonly replayed: Uint8Array | undefined;
  readonly actual: Uint8Array;
  readonly verdict: PcrVerdict;
}

const phases = ['enter-initrd', 'leave-initrd'];
const phasePcr = 11;
/** Firmware ends its part of each of PCR 0 to 7 with a separator, so a value without an event there is a cut log. */
const lastFirmwarePcr = 7;

/** Compares one bank, register by register in ascending order. Registers that `actual` does not have are passed over. */
export function comparePcrs(algorithm: DigestAlgorithm, replayed: PcrValues, actual: PcrValues): PcrComparison[] {
  return [...actual]
    .toSorted(([a], [b]) => a - b)
    .map(([pcr, value]) => {
      const expected = replayed.get(pcr);
      return { pcr, replayed: expected, actual: value, verdict: verdictOf(algorithm, pcr, expected, value) };
    });
}

function verdictOf(
  algorithm: DigestAlgorithm,
  pcr: number,
  replayed: Uint8Array | undefined,
  actual: Uint8Array,
): PcrVerdict {
  if (replayed === undefined) {
    // After a reset all registers are zeros but those of a dynamic launch, which are ones.
    if (actual.every((octet) => octet === 0) || actual.every((octet) => octet === 0xff)) return 'untouched';
    return pcr > lastFirmwarePcr ? 'no events' : 'differs';
  }
  if (Buffer.compare(replayed, actual) === 0) return 'equal';
  if (pcr !== phasePcr || !/^sha\d+$/.test(algorithm)) return 'differs';
  let value = replayed;
  for (const phase of phases) {
    value = hash(algorithm, Buffer.concat([value, hash(algorithm, phase, 'buffer')]), 'buffer');
    if (Buffer.compare(value, actual) === 0) return 'equal after boot phases';
  }
  return 'differs';
}
