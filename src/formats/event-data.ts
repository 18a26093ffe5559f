/** What an event of a TPM event log says. */
import type { EventLogEntry } from './event-log.ts';

/** For JSON: `kind` tells the other keys. */
export type EventData = { readonly kind: 'bytes'; readonly hex: string };

export interface DecodedEventData {
  readonly data: EventData;
  readonly warnings: readonly string[];
}

export function decodeEventData(entry: Pick<EventLogEntry, 'data'>): DecodedEventData {
  return { data: { kind: 'bytes', hex: Buffer.from(entry.data).toString('hex') }, warnings: [] };
}
