/**
 * PID 1's place in cgroup v2. A group that has processes of its own cannot give controllers to its children, so PID 1
 * moves to a leaf before any service starts.
 */
import { mkdirSync, writeFileSync } from 'node:fs';

const ROOT = '/sys/fs/cgroup';

export function enterInitCgroup(): void {
  mkdirSync(`${ROOT}/init`, { recursive: true });
  writeFileSync(`${ROOT}/init/cgroup.procs`, '1');
  writeFileSync(`${ROOT}/cgroup.subtree_control`, '+cpu +memory +pids');
}
