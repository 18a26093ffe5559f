/**
 * What a person at the machine reads. Lines go to every console of the kernel (`console=` on its command line), each
 * through its own bounded queue of non-blocking writes: a serial line that nobody reads, or one stopped by flow control,
 * loses lines and says so later, and never stops PID 1.
 */
import { close, constants, openSync, readFileSync, write, writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { ioctl } from '../linux/ioctl.ts';
import { printable } from '../supervisor/log-lines.ts';
import type { LogEntry } from '../supervisor/log-store.ts';

/** Lines that may wait for one slow console. */
const QUEUE_LINES = 512;
/** Longest line shown; the log keeps the rest. */
const LINE_CHARACTERS = 1024;
const RETRY_MS = 50;
const FLUSH_LIMIT_MS = 2_000;
/** A serial driver does not tell when it has sent everything; it can be asked (TIOCOUTQ, asm-generic/ioctls.h). */
const UNSENT_POLL_MS = 5;
const TIOCOUTQ = 0x5411;

/** `[   12.345] init.data: opened`, safe to show on a terminal. `atMs`: milliseconds since the kernel started. */
export function consoleLine(entry: Pick<LogEntry, 'name' | 'atMs' | 'text'>): string {
  const text = printable(entry.text);
  const shown = text.length > LINE_CHARACTERS ? `${text.slice(0, LINE_CHARACTERS)} …` : text;
  return `[${(entry.atMs / 1000).toFixed(3).padStart(9)}] ${entry.name}: ${shown}\n`;
}

export interface Console {
  /** Queues a line; returns at once. */
  write(line: string): void;
  /** Writes without the queue, for a process that is about to end. Never throws. */
  writeNow(line: string): void;
  /** Resolves when all that was queued is sent, or after two seconds. */
  flush(): Promise<void>;
  close(): void;
}

/** Opens the kernel's consoles. One that does not open is left out; with none, lines are dropped. */
export function openConsole(paths: readonly string[] = kernelConsoles()): Console {
  const devices = paths.flatMap((path) => {
    try {
      return [new ConsoleDevice(openSync(path, constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY))];
    } catch {
      return [];
    }
  });
  return {
    write: (line) => devices.forEach((device) => device.write(line)),
    writeNow: (line) => devices.forEach((device) => device.writeNow(line)),
    flush: async () => {
      await Promise.all(devices.map((device) => device.flush()));
    },
    close: () => devices.forEach((device) => device.close()),
  };
}

/** Device paths of the consoles that the kernel writes to; /dev/console when it does not say. */
function kernelConsoles(): string[] {
  try {
    const names = readFileSync('/sys/class/tty/console/active', 'utf8').trim().split(/\s+/);
    return names.filter((name) => /^[a-z]+[0-9]*$/i.test(name)).map((name) => `/dev/${name}`);
  } catch {
    return ['/dev/console'];
  }
}

/** Bytes that the driver has taken and not sent. None for what is no terminal. */
function unsentBytes(fd: number): number {
  const count = Buffer.alloc(4);
  try {
    ioctl(fd, TIOCOUTQ, count);
    return count.readInt32LE();
  } catch {
    return 0;
  }
}

class ConsoleDevice {
  readonly #fd: number;
  readonly #queue: Buffer[] = [];
  #lost = 0;
  #busy = false;
  #closed = false;
  #whenIdle: (() => void)[] = [];

  constructor(fd: number) {
    this.#fd = fd;
  }

  write(line: string): void {
    if (this.#closed) return;
    if (this.#queue.length >= QUEUE_LINES) {
      this.#lost += 1;
      return;
    }
    if (this.#lost > 0) {
      this.#queue.push(Buffer.from(`… ${this.#lost} lines were lost: this console was too slow\n`));
      this.#lost = 0;
    }
    this.#queue.push(Buffer.from(line));
    this.#writeNext();
  }

  writeNow(line: string): void {
    try {
      for (const bytes of this.#queue.splice(0)) writeSync(this.#fd, bytes);
      writeSync(this.#fd, line);
    } catch {
      // A console that takes nothing is no reason to stop what the caller has to do next.
    }
  }

  /** Until the driver has sent the lines too: what the kernel prints next would cut into the last of them. */
  async flush(): Promise<void> {
    const deadline = performance.now() + FLUSH_LIMIT_MS;
    await this.#idle();
    while (unsentBytes(this.#fd) > 0 && performance.now() < deadline) await sleep(UNSENT_POLL_MS);
  }

  #idle(): Promise<void> {
    if (!this.#busy) return Promise.resolve();
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, FLUSH_LIMIT_MS);
      this.#whenIdle.push(() => {
        clearTimeout(timer);
        resolve();
      });
    });
  }

  close(): void {
    this.#closed = true;
    this.#queue.length = 0;
    if (!this.#busy) close(this.#fd);
  }

  #writeNext(): void {
    const bytes = this.#queue[0];
    if (this.#busy || bytes === undefined) return;
    this.#busy = true;
    write(this.#fd, bytes, (error, written) => {
      if (error !== null && error.code === 'EAGAIN') {
        setTimeout(() => this.#written(bytes, 0), RETRY_MS);
        return;
      }
      // Any other error (a terminal that hung up) drops the line: there is nobody to tell.
      this.#written(bytes, error === null ? written : bytes.length);
    });
  }

  #written(bytes: Buffer, count: number): void {
    this.#busy = false;
    // writeNow may have taken the queue meanwhile.
    if (this.#queue[0] === bytes) {
      if (count >= bytes.length) this.#queue.shift();
      else this.#queue[0] = bytes.subarray(count);
    }
    if (this.#closed) {
      close(this.#fd);
    } else if (this.#queue.length > 0) {
      this.#writeNext();
      return;
    }
    for (const resolve of this.#whenIdle.splice(0)) resolve();
  }
}
