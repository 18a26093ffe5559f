/**
 * What a machine says on its serial line, as lines with the host's monotonic time. Lines are kept for the whole life of
 * the machine, over resets and power cycles; a wait looks from a place in that list, so it cannot miss a line that came
 * while nobody was waiting.
 */
import { StringDecoder } from 'node:string_decoder';

export interface SerialLine {
  readonly index: number;
  readonly text: string;
  /** Milliseconds since the last power-on, by the host's monotonic clock, when the line was complete. */
  readonly atMs: number;
}

export interface WaitOptions {
  /** From which line on to look, counting from 0 over all power cycles. */
  readonly from: number;
  readonly deadlineMs: number;
  /** A line that makes waiting pointless. */
  readonly failOn?: RegExp;
}

/** Firmware paints its screens with escape sequences; what is left of a line after removing them is what it says. */
const ESCAPE_SEQUENCES = /\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])/g;
const CONTROL_CHARACTERS = /[\x00-\x08\x0b-\x1f\x7f]/g;
const LONGEST_LINE = 16_384;
const QUOTED_LINES = 25;

interface Waiter {
  readonly pattern: RegExp | undefined;
  readonly failOn: RegExp | undefined;
  readonly resolve: (line: SerialLine) => void;
  readonly reject: (error: Error) => void;
}

export class SerialConsole {
  readonly lines: SerialLine[] = [];
  #decoder = new StringDecoder('utf8');
  #unfinished = '';
  #powerOnMs = performance.now();
  readonly #waiters = new Set<Waiter>();
  readonly #listeners = new Set<(line: SerialLine) => void>();

  /** Starts the clock of the next lines, and drops half a line of the time before. */
  powerOn(): void {
    if (this.#unfinished !== '') this.#add(this.#unfinished);
    this.#unfinished = '';
    this.#decoder = new StringDecoder('utf8');
    this.#powerOnMs = performance.now();
  }

  get sincePowerOnMs(): number {
    return performance.now() - this.#powerOnMs;
  }

  receive(chunk: Buffer): void {
    this.#unfinished += this.#decoder.write(chunk);
    const parts = this.#unfinished.split(/\r*\n/);
    this.#unfinished = (parts.pop() ?? '').slice(-LONGEST_LINE);
    for (const part of parts) this.#add(part);
  }

  onLine(listener: (line: SerialLine) => void): Disposable {
    this.#listeners.add(listener);
    return { [Symbol.dispose]: () => this.#listeners.delete(listener) };
  }

  /** The first line from `options.from` on that matches. @throws Error that quotes the last lines */
  async waitFor(pattern: RegExp, options: WaitOptions): Promise<SerialLine> {
    for (let index = options.from; index < this.lines.length; index++) {
      const line = this.lines[index] as SerialLine;
      if (pattern.test(line.text)) return line;
      if (options.failOn?.test(line.text)) throw this.#complaint(pattern, `the machine said: ${line.text}`);
    }
    const { promise, resolve, reject } = Promise.withResolvers<SerialLine>();
    const waiter: Waiter = { pattern, failOn: options.failOn, resolve, reject };
    this.#waiters.add(waiter);
    const timer = setTimeout(
      () => reject(this.#complaint(pattern, `it did not come in ${Math.round(options.deadlineMs / 1000)} s`)),
      options.deadlineMs,
    );
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.#waiters.delete(waiter);
    }
  }

  /** Ends every wait: no line will come any more. */
  fail(reason: string): void {
    for (const waiter of this.#waiters) waiter.reject(this.#complaint(waiter.pattern, reason));
  }

  #add(raw: string): void {
    const text = raw.replace(ESCAPE_SEQUENCES, '').replace(CONTROL_CHARACTERS, '').trimEnd();
    if (text === '') return;
    const line: SerialLine = { index: this.lines.length, text, atMs: this.sincePowerOnMs };
    this.lines.push(line);
    for (const listener of this.#listeners) listener(line);
    for (const waiter of this.#waiters) {
      if (waiter.pattern?.test(text)) waiter.resolve(line);
      else if (waiter.failOn?.test(text)) waiter.reject(this.#complaint(waiter.pattern, `the machine said: ${text}`));
    }
  }

  #complaint(pattern: RegExp | undefined, reason: string): Error {
    const last = this.lines.slice(-QUOTED_LINES).map((line) => `  ${line.text}`);
    return new Error(
      `cannot wait for ${String(pattern)} on the console: ${reason}. Its last lines:\n${last.join('\n')}`,
    );
  }
}
