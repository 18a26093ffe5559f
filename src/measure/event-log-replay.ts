/** What the PCRs would be if the firmware's event log were true: compare with the TPM's, which it cannot argue with. */
import { type EventLog, type EventLogEntry, noAction } from '../formats/event-log.ts';
import { extendPcr, zeroPcr } from './pcr.ts';

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
      if (locality !== undefined && !values.has(0)) values.set(0, locality);
      continue;
    }
    const digest = entry.digests.get('sha256');
    if (digest === undefined)
      throw new RangeError(`cannot replay event log: a ${entry.typeName} of PCR ${entry.pcr} has no sha256 digest`);
    values.set(entry.pcr, extendPcr(values.get(entry.pcr) ?? zeroPcr(), digest));
  }
  return values;
}

/** PCR 0 starts with the locality of TPM2_Startup in its last byte (Platform Firmware Profile §10.4.5.3). */
function startupLocality(entry: EventLogEntry): Uint8Array | undefined {
  const name = Buffer.from('StartupLocality\0', 'latin1');
  if (
    entry.pcr !== 0 ||
    entry.data.length !== name.length + 1 ||
    Buffer.compare(entry.data.subarray(0, name.length), name) !== 0
  ) {
    return undefined;
  }
  const value = zeroPcr();
  value[31] = entry.data[name.length] ?? 0;
  return value;
}
