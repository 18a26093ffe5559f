/**
 * From a process's raw output to lines of text.
 *
 * The bytes are written by programs that may be broken or hostile: no newline for ever, invalid UTF-8, terminal escape
 * sequences. Memory stays bounded here; escape sequences are kept as they came, since a log is evidence, and are made
 * harmless where a line is shown (`printable`).
 */

/** Longest line kept, in bytes; what exceeds it is counted and cut. */
export const MAX_LINE_BYTES = 8192;

const NEWLINE = 0x0a;
const CARRIAGE_RETURN = 0x0d;

export interface LineSplitter {
  /** Takes the next piece of output; calls back for each line that it completes. */
  push(chunk: Uint8Array): void;
  /** The output ended: hands over a last line that had no newline. */
  end(): void;
}

/** Splits a byte stream at newlines; a carriage return before the newline is dropped. Empty lines are skipped. */
export function lineSplitter(onLine: (text: string) => void): LineSplitter {
  const held = Buffer.alloc(MAX_LINE_BYTES);
  const decoder = new TextDecoder('utf-8');
  let heldBytes = 0;
  let cutBytes = 0;

  const hold = (bytes: Uint8Array) => {
    const kept = Math.min(bytes.length, MAX_LINE_BYTES - heldBytes);
    held.set(bytes.subarray(0, kept), heldBytes);
    heldBytes += kept;
    cutBytes += bytes.length - kept;
  };
  const flush = () => {
    if (heldBytes > 0 && cutBytes === 0 && held[heldBytes - 1] === CARRIAGE_RETURN) heldBytes -= 1;
    if (heldBytes === 0) return;
    const text = decoder.decode(held.subarray(0, heldBytes));
    onLine(cutBytes === 0 ? text : `${text} [cut ${cutBytes} bytes]`);
    heldBytes = 0;
    cutBytes = 0;
  };

  return {
    push: (chunk) => {
      let from = 0;
      for (;;) {
        const newline = chunk.indexOf(NEWLINE, from);
        if (newline === -1) break;
        hold(chunk.subarray(from, newline));
        flush();
        from = newline + 1;
      }
      hold(chunk.subarray(from));
    },
    end: flush,
  };
}

/**
 * The text with every control character (C0, DEL, C1) and bidirectional override shown as an escape, so that a log
 * line can neither drive a terminal nor show itself in another order than it was written.
 */
export function printable(text: string): string {
  // oxlint-disable-next-line no-control-regex -- control characters are what this looks for
  return text.replace(/[\u0000-\u0008\u000a-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g, (character) => {
    const code = character.charCodeAt(0);
    return code < 0x100 ? `\\x${code.toString(16).padStart(2, '0')}` : `\\u${code.toString(16).padStart(4, '0')}`;
  });
}
