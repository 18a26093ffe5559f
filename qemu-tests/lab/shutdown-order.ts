/** The order a shutdown must keep, read from the console. */
import assert from 'node:assert/strict';
import { nodeConsole } from './node-console.ts';

/** Services end first, the data partition is closed after them, nothing took too long, the last word is last. */
export function assertShutdownOrder(lines: readonly string[]): void {
  const at = (pattern: RegExp) => {
    const index = lines.findIndex((line) => pattern.test(line));
    assert.notEqual(index, -1, `the console does not say ${String(pattern)}:\n${lines.join('\n')}`);
    return index;
  };
  const found = [
    /stop the services: done/,
    /unmount the data partition: done/,
    /close the data partition: done/,
    nodeConsole.shutdownComplete,
  ].map(at);
  assert.deepEqual(
    found,
    found.toSorted((a, b) => a - b),
  );
}
