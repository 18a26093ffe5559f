/** What a verifier pays for a firmware's event log: decoded and replayed in all its banks. */
import { readFile } from 'node:fs/promises';
import { decodeEventLog } from '../src/formats/event-log.ts';
import { replayAllBanks } from '../src/measure/event-log-replay.ts';

const recorded = new URL('../src/formats/recorded/ovmf-2025.02-first-boot.bin', import.meta.url);
/** Of the log's header event, which only its beginning has. */
const headerBytes = 65;
const bytes = 100_000;
const warmUps = 20;

/** Milliseconds of each run, over a log of 100 kB: a recorded one, its events repeated. */
export async function benchEventLog(
  runs: number,
): Promise<{ sizeBytes: number; events: number; milliseconds: number[] }> {
  const start = await readFile(recorded);
  const events = start.subarray(headerBytes);
  const repeats = Math.ceil((bytes - start.length) / events.length);
  const log = Buffer.concat([start, ...Array.from({ length: repeats }, () => events)]);
  const run = (): number => {
    const startMs = performance.now();
    replayAllBanks(decodeEventLog(log));
    return performance.now() - startMs;
  };
  for (let i = 0; i < warmUps; i++) run();
  const milliseconds = Array.from({ length: runs }, run);
  return { sizeBytes: log.length, events: decodeEventLog(log).entries.length, milliseconds };
}
