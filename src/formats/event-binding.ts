/**
 * Whether an event's data can be believed. The data is only what firmware chose to write down: for some types it is what
 * was hashed, so that the register vouches for it; for the others it may say anything.
 */
import { hash } from 'node:crypto';
import { FormatError } from './byte-reader.ts';
import { decodeVariableData, type VariableData } from './efi-variable-data.ts';
import type { EventLogEntry } from './event-log.ts';
import { eventType } from './event-types.ts';

export type EventBinding =
  /** The data is what was extended: the register vouches for it. */
  | 'bound'
  /** The type's data is not what was extended, or nothing was: it may say anything. */
  | 'free'
  /** The type's data should be what was extended, and is not: it was altered, or the firmware has a rule of its own. */
  | 'contradicts';

/** Types whose digest is over the event data (Platform Firmware Profile, table 27). */
const boundTypes = new Set<number>([
  eventType.separator,
  eventType.action,
  eventType.sCrtmVersion,
  eventType.efiAction,
  eventType.efiVariableDriverConfig,
  eventType.efiVariableBoot,
  eventType.efiVariableBoot2,
  eventType.efiVariableAuthority,
  eventType.efiGptEvent,
]);

const variableTypes = new Set<number>([
  eventType.efiVariableDriverConfig,
  eventType.efiVariableBoot,
  eventType.efiVariableBoot2,
  eventType.efiVariableAuthority,
]);

const digestNames = ['sha256', 'sha384', 'sha512', 'sha1'] as const;

/** Whether the digests of an event, the ones that can be computed here, are of its data. */
export function eventBinding(entry: Pick<EventLogEntry, 'type' | 'data' | 'digests'>): EventBinding {
  if (entry.type === eventType.noAction) return 'free';
  const known = digestNames.flatMap((name) => {
    const digest = entry.digests.get(name);
    return digest === undefined ? [] : [{ name, digest }];
  });
  const isDigestOf = (bytes: Uint8Array): boolean =>
    known.length > 0 && known.every(({ name, digest }) => Buffer.compare(hash(name, bytes, 'buffer'), digest) === 0);
  if (isDigestOf(entry.data)) return 'bound';
  if (!boundTypes.has(entry.type)) return 'free';
  if (variableTypes.has(entry.type)) {
    const variable = variableOf(entry.data);
    // The bytes logged too many are not measured; and of a boot variable the content alone may be (§3.3.4.2).
    if (variable !== undefined && isDigestOf(entry.data.subarray(0, entry.data.length - variable.trailingBytes)))
      return 'bound';
    if (entry.type === eventType.efiVariableBoot && variable !== undefined && isDigestOf(variable.data)) return 'bound';
  }
  // A separator that tells of an error is measured as the error's value.
  return known.length === 0 ? 'free' : 'contradicts';
}

function variableOf(data: Uint8Array): VariableData | undefined {
  try {
    return decodeVariableData(data);
  } catch (error) {
    if (error instanceof FormatError) return undefined;
    throw error;
  }
}
