/**
 * Which children of this process belong to libuv. libuv waits for each child that it spawned by its pid; were anyone
 * else to wait for it first, its exit event would never come. Node.js publishes every `ChildProcess` it constructs on a
 * diagnostics channel, before the process exists, so this registry has no gap, and needs no discipline from callers.
 * (`spawnSync` has its child waited for before it returns. Worker threads have channels of their own: they must not
 * spawn.)
 */
import type { ChildProcess } from 'node:child_process';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';

export interface ChildRegistry extends Disposable {
  /** True while libuv has this child, or has waited for it and its `exit` event is still to come. */
  owns(pid: number): boolean;
}

/** Starts to watch; children spawned earlier are not known. */
export function watchChildren(): ChildRegistry {
  const children = new Set<ChildProcess>();
  const onChild = (message: unknown) => {
    const { process: child } = message as { process: ChildProcess };
    children.add(child);
    child.once('exit', () => children.delete(child));
    // A spawn that failed has no process and emits only `error`.
    child.once('error', () => {
      if (child.pid === undefined) children.delete(child);
    });
  };
  subscribe('child_process', onChild);
  return {
    owns: (pid) => {
      for (const child of children) if (child.pid === pid) return true;
      return false;
    },
    [Symbol.dispose]: () => unsubscribe('child_process', onChild),
  };
}
