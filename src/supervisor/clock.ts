/**
 * Time as the supervisor sees it. Injected, so that tests of minutes of backoff take milliseconds.
 */
export interface Clock {
  /** Milliseconds that never go back; on a node, since the kernel started (CLOCK_MONOTONIC). */
  nowMs(): number;
  /** Milliseconds since 1970 by the wall clock, which may jump when the time is set. */
  wallMs(): number;
  /** Calls `callback` once after `delayMs`; the returned function cancels it and may be called at any time. */
  schedule(delayMs: number, callback: () => void): () => void;
}

/** The machine's clock. */
export const systemClock: Clock = {
  nowMs: () => Number(process.hrtime.bigint() / 1_000_000n),
  wallMs: () => Date.now(),
  schedule: (delayMs, callback) => {
    const timer = setTimeout(callback, delayMs);
    return () => clearTimeout(timer);
  },
};

/** Resolves after `delayMs`; rejects with the signal's reason as soon as the signal aborts. */
export function sleep(clock: Clock, delayMs: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal.aborted) {
      reject(signal.reason);
      return;
    }
    const onAbort = () => {
      cancel();
      reject(signal.reason);
    };
    const cancel = clock.schedule(delayMs, () => {
      signal.removeEventListener('abort', onAbort);
      resolve();
    });
    signal.addEventListener('abort', onAbort, { once: true });
  });
}
