/** One line about what an event says, for people. */
import type { EventData } from '../../src/formats/event-data.ts';

export function eventSummary(data: EventData): string {
  return data.hex;
}
