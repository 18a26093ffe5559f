/** Makes an allocation that hostile input could blow up an error, in the thread that installs it. */
import { BrokenPromise } from './fuzz-target.ts';

/** More than any decoder needs for inputs of fuzzing size, its own limits on zero fill included. */
const maxBytes = 32 * 1024 * 1024;
const maxEntries = 1024 * 1024;

/** Wraps what decoders allocate with, by a number that may come from the input. Cannot be undone: for a thread of its own. */
export function installAllocationGuard(): void {
  const check = (size: unknown, limit: number): void => {
    if (typeof size === 'number' && size > limit) throw new BrokenPromise(`allocates ${size} at once`);
  };
  Buffer.alloc = new Proxy(Buffer.alloc.bind(Buffer), {
    apply(target, self, args: [number]) {
      check(args[0], maxBytes);
      return Reflect.apply(target, self, args) as unknown;
    },
  });
  Array.from = new Proxy(Array.from.bind(Array), {
    apply(target, self, args: [ArrayLike<unknown>]) {
      check(args[0].length, maxEntries);
      return Reflect.apply(target, self, args) as unknown;
    },
  });
  globalThis.Uint8Array = new Proxy(Uint8Array, {
    construct(target, args: unknown[], newTarget) {
      check(args[0], maxBytes);
      return Reflect.construct(target, args, newTarget) as object;
    },
  });
}
