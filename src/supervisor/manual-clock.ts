import type { Clock } from './clock.ts';

/** A clock that stands still until a test moves it. */
export interface ManualClock extends Clock {
  /** Moves time on by `ms`, firing what falls due in order, and lets promises settle between. */
  advance(ms: number): Promise<void>;
  /** How many timers are waiting. */
  pending(): number;
}

/** Lets every promise that can settle without time passing settle. */
export function settle(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

export function manualClock(): ManualClock {
  let now = 0;
  let timers: { dueMs: number; callback: () => void }[] = [];
  return {
    nowMs: () => now,
    wallMs: () => 1_763_640_000_000 + now,
    schedule: (delayMs, callback) => {
      const timer = { dueMs: now + delayMs, callback };
      timers.push(timer);
      return () => {
        timers = timers.filter((other) => other !== timer);
      };
    },
    pending: () => timers.length,
    advance: async (ms) => {
      const endMs = now + ms;
      await settle();
      for (;;) {
        const next = timers.filter((timer) => timer.dueMs <= endMs).sort((a, b) => a.dueMs - b.dueMs)[0];
        if (next === undefined) break;
        timers = timers.filter((timer) => timer !== next);
        now = next.dueMs;
        next.callback();
        await settle();
      }
      now = endMs;
    },
  };
}
