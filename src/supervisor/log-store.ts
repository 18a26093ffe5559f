/**
 * The node's log in RAM: one ring of entries a name, bounded in bytes.
 *
 * Names are those of the supervisor's tree (`services.etcd`), so a name stands for its whole subtree when reading.
 * A program that floods its output loses its own lines (rate limit, then ring), never another's, and each loss is
 * said in the log itself.
 */
import { type Clock, systemClock } from './clock.ts';
import { type LineSplitter, lineSplitter, MAX_LINE_BYTES } from './log-lines.ts';

export type Severity = 'DEBUG' | 'INFO' | 'WARNING' | 'ERROR';

export interface LogEntry {
  name: string;
  severity: Severity;
  /** Monotonic milliseconds, on a node since the kernel started. */
  atMs: number;
  /** Milliseconds since 1970 by the wall clock at that moment. */
  wallMs: number;
  text: string;
}

export interface Logger {
  debug(text: string): void;
  info(text: string): void;
  warning(text: string): void;
  error(text: string): void;
}

export interface LogQuery {
  /** Part of a dotted name, and all below it: `services.etcd` or just `etcd`; every name when left out. */
  name?: string;
  /** Only the last so many entries. */
  tail?: number;
}

export interface LogStore {
  append(name: string, severity: Severity, text: string): void;
  logger(name: string): Logger;
  /** Takes a process's raw output, rate limited, as lines of `name`; `onLine` sees every line, kept or not. */
  capture(name: string, severity: Severity, onLine?: (text: string) => void): LineSplitter;
  /** Entries in the order they were written. */
  read(query?: LogQuery): LogEntry[];
  /**
   * Entries already there that match the query, then new ones until the signal aborts (the iteration then simply
   * ends). A reader slower than the log loses entries, and gets one that says how many.
   */
  follow(query: LogQuery, signal: AbortSignal): AsyncGenerator<LogEntry, void, undefined>;
  /** Calls back synchronously for every entry; the returned function ends it. */
  onEntry(listener: (entry: LogEntry) => void): () => void;
  names(): string[];
}

export interface LogStoreOptions {
  clock?: Clock;
  /** Bytes kept a name, by estimate. @default 131072 */
  bytesPerName?: number;
  /** Captured lines a second a name, over time. @default 100 */
  linesPerSecond?: number;
  /** Captured lines a name may write at once before the rate counts. @default 1000 */
  burstLines?: number;
  /** Entries that wait for one slow follower before it loses some. @default 1000 */
  followerQueue?: number;
}

/** What an entry costs beside its text: object, numbers, slot in the ring. */
const ENTRY_OVERHEAD_BYTES = 96;
/** How long after a flood its loss is said, when no further line comes through. */
const DROP_NOTICE_DELAY_MS = 1000;

interface Ring {
  entries: { sequence: number; entry: LogEntry }[];
  bytes: number;
  tokens: number;
  tokensAtMs: number;
  dropped: number;
  cancelNotice: (() => void) | null;
}

export function createLogStore(options: LogStoreOptions = {}): LogStore {
  const clock = options.clock ?? systemClock;
  const bytesPerName = options.bytesPerName ?? 131_072;
  const linesPerSecond = options.linesPerSecond ?? 100;
  const burstLines = options.burstLines ?? 1000;
  const followerQueue = options.followerQueue ?? 1000;
  const rings = new Map<string, Ring>();
  const listeners = new Set<(entry: LogEntry) => void>();
  let sequence = 0;

  const ringOf = (name: string): Ring => {
    let ring = rings.get(name);
    if (ring === undefined) {
      const tokensAtMs = clock.nowMs();
      ring = { entries: [], bytes: 0, tokens: burstLines, tokensAtMs, dropped: 0, cancelNotice: null };
      rings.set(name, ring);
    }
    return ring;
  };

  const append = (name: string, severity: Severity, text: string) => {
    const ring = ringOf(name);
    const kept = text.length > MAX_LINE_BYTES + 64 ? `${text.slice(0, MAX_LINE_BYTES)} [cut]` : text;
    const entry = { name, severity, atMs: clock.nowMs(), wallMs: clock.wallMs(), text: kept };
    ring.entries.push({ sequence: sequence++, entry });
    ring.bytes += cost(entry);
    let evicted = 0;
    while (ring.bytes > bytesPerName && evicted < ring.entries.length - 1) {
      const oldest = ring.entries[evicted];
      if (oldest === undefined) break;
      ring.bytes -= cost(oldest.entry);
      evicted += 1;
    }
    if (evicted > 0) ring.entries.splice(0, evicted);
    for (const listener of listeners) listener(entry);
  };

  const sayDropped = (name: string, ring: Ring) => {
    ring.cancelNotice?.();
    ring.cancelNotice = null;
    const { dropped } = ring;
    ring.dropped = 0;
    if (dropped > 0) append(name, 'WARNING', `dropped ${dropped} lines: more than ${linesPerSecond} a second`);
  };

  const appendLimited = (name: string, severity: Severity, text: string) => {
    const ring = ringOf(name);
    const nowMs = clock.nowMs();
    ring.tokens = Math.min(burstLines, ring.tokens + ((nowMs - ring.tokensAtMs) * linesPerSecond) / 1000);
    ring.tokensAtMs = nowMs;
    if (ring.tokens < 1) {
      ring.dropped += 1;
      ring.cancelNotice ??= clock.schedule(DROP_NOTICE_DELAY_MS, () => sayDropped(name, ring));
      return;
    }
    ring.tokens -= 1;
    sayDropped(name, ring);
    append(name, severity, text);
  };

  const read = (query: LogQuery = {}): LogEntry[] => {
    const found = [...rings]
      .filter(([name]) => covers(query.name, name))
      .flatMap(([, ring]) => ring.entries)
      .sort((a, b) => a.sequence - b.sequence)
      .map(({ entry }) => entry);
    if (query.tail === undefined) return found;
    return query.tail <= 0 ? [] : found.slice(-query.tail);
  };

  async function* follow(query: LogQuery, signal: AbortSignal): AsyncGenerator<LogEntry, void, undefined> {
    let queue: LogEntry[] = read(query);
    let dropped = 0;
    let wake: () => void = () => {};
    const listener = (entry: LogEntry) => {
      if (!covers(query.name, entry.name)) return;
      if (queue.length >= followerQueue) dropped += 1;
      else queue.push(entry);
      wake();
    };
    const onAbort = () => wake();
    listeners.add(listener);
    signal.addEventListener('abort', onAbort);
    try {
      while (!signal.aborted) {
        const batch = queue;
        queue = [];
        const lost = dropped;
        dropped = 0;
        for (const entry of batch) {
          yield entry;
          if (signal.aborted) return;
        }
        if (lost > 0) {
          const name = query.name ?? 'log';
          const text = `this reader was too slow: ${lost} entries are missing here`;
          yield { name, severity: 'WARNING', atMs: clock.nowMs(), wallMs: clock.wallMs(), text };
        }
        // Nothing can be lost between the test and the wait: both run in one turn of the event loop.
        if (queue.length === 0 && dropped === 0 && !signal.aborted) {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
      }
    } finally {
      listeners.delete(listener);
      signal.removeEventListener('abort', onAbort);
    }
  }

  return {
    append,
    logger: (name) => ({
      debug: (text) => append(name, 'DEBUG', text),
      info: (text) => append(name, 'INFO', text),
      warning: (text) => append(name, 'WARNING', text),
      error: (text) => append(name, 'ERROR', text),
    }),
    capture: (name, severity, onLine) =>
      lineSplitter((text) => {
        appendLimited(name, severity, text);
        onLine?.(text);
      }),
    read,
    follow,
    onEntry: (listener) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    names: () => [...rings.keys()].sort(),
  };
}

function cost(entry: LogEntry): number {
  return entry.text.length + ENTRY_OVERHEAD_BYTES;
}

function covers(asked: string | undefined, name: string): boolean {
  return asked === undefined || asked === '' || `.${name}.`.includes(`.${asked}.`);
}
