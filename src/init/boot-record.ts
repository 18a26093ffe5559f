/**
 * The timeline of a boot: named moments, each a console line and an entry of `status`. Stage 1 hands its part to stage 2
 * in a file under /run, which only root can write.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { type Checked, integer, list, nonNegativeNumber, object, oneOf, text } from '../formats/json-shape.ts';
import { LOG_SEVERITIES, type TimelineEntry } from '../rpc/init-protocol.ts';
import type { LogStore } from '../supervisor/log-store.ts';

const STAGE1_RECORD = '/run/ashlar/stage1.json';

export interface Timeline {
  /**
   * Says a line on the log and records the moment. Tests and the benchmark wait for these words, so they are fixed;
   * `stage` is the line without the parts that vary.
   */
  reach(name: string, text: string, stage?: string): void;
  readonly entries: readonly TimelineEntry[];
}

export function startTimeline(log: LogStore, earlier: readonly TimelineEntry[] = []): Timeline {
  const entries = [...earlier];
  return {
    reach: (name, text, stage = `${name}: ${text}`) => {
      // A service that starts again is healthy again, but was ready only once.
      if (entries.every((entry) => entry.stage !== stage))
        entries.push({ stage, atMs: Number(process.hrtime.bigint() / 1000n) / 1000 });
      log.append(name, 'INFO', text);
    },
    entries,
  };
}

const stage1Record = object({
  slot: oneOf('A', 'B', 'unknown'),
  /** The disk that the system came from, `vda`. */
  disk: text({ min: 1, max: 64 }),
  systemPartition: text({ min: 1, max: 64 }),
  hasTpm: oneOf('yes', 'no'),
  timeline: list(object({ stage: text({ max: 128 }), atMs: nonNegativeNumber }), { max: 64 }),
  log: list(
    object({
      name: text({ max: 128 }),
      severity: oneOf(...LOG_SEVERITIES),
      atMs: nonNegativeNumber,
      wallMs: integer({ min: 0, max: Number.MAX_SAFE_INTEGER }),
      text: text({ max: 16 * 1024 }),
    }),
    { max: 1000 },
  ),
});

/** What stage 2 must know of stage 1. */
export type Stage1Record = Checked<typeof stage1Record>;

export async function writeStage1Record(record: Stage1Record): Promise<void> {
  await writeFile(STAGE1_RECORD, JSON.stringify(record), { mode: 0o600 });
}

export async function readStage1Record(): Promise<Stage1Record> {
  return stage1Record(JSON.parse(await readFile(STAGE1_RECORD, 'utf8')), '');
}
