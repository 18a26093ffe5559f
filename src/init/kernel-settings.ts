/** Kernel parameters of a node that are set at run time, each with its reason. */
import { readFileSync, writeFileSync } from 'node:fs';
import type { Logger } from '../supervisor/log-store.ts';

export interface KernelSetting {
  /** Below /proc/sys. */
  readonly path: string;
  readonly value: string;
  readonly reason: string;
}

const perInterface = (name: string, value: string, reason: string, family = 'ipv4'): KernelSetting[] =>
  ['all', 'default'].map((scope) => ({ path: `net/${family}/conf/${scope}/${name}`, value, reason }));

export const KERNEL_SETTINGS: readonly KernelSetting[] = [
  { path: 'kernel/kptr_restrict', value: '2', reason: 'kernel addresses would undo KASLR' },
  { path: 'kernel/dmesg_restrict', value: '1', reason: "the kernel's log is init's to give out" },
  { path: 'kernel/panic_on_oops', value: '1', reason: 'a kernel that has failed a check may not go on with keys' },
  { path: 'kernel/unprivileged_bpf_disabled', value: '1', reason: 'no service loads BPF; cannot be taken back' },
  { path: 'kernel/perf_event_paranoid', value: '2', reason: 'no service samples the kernel' },
  { path: 'kernel/yama/ptrace_scope', value: '3', reason: 'no process may look into another, ever' },
  { path: 'kernel/randomize_va_space', value: '2', reason: 'full address space randomisation' },
  { path: 'user/max_user_namespaces', value: '0', reason: 'nothing here uses them; they open much kernel code' },
  { path: 'fs/protected_hardlinks', value: '1', reason: 'no links to files that one cannot write' },
  { path: 'fs/protected_symlinks', value: '1', reason: "no following of another's links in shared directories" },
  { path: 'fs/protected_fifos', value: '2', reason: 'as above, for FIFOs' },
  { path: 'fs/protected_regular', value: '2', reason: 'as above, for files' },
  { path: 'fs/suid_dumpable', value: '0', reason: 'no core of a process that changed its identity' },
  { path: 'net/core/bpf_jit_harden', value: '2', reason: 'no constants of an attacker in executable memory' },
  { path: 'net/ipv4/tcp_syncookies', value: '1', reason: 'a flood of SYNs must not fill the backlog' },
  { path: 'net/ipv4/ip_forward', value: '0', reason: 'a node is not a router' },
  { path: 'net/ipv6/conf/all/forwarding', value: '0', reason: 'a node is not a router' },
  ...perInterface('rp_filter', '1', 'a source address must be reachable where the packet came from'),
  ...perInterface('accept_redirects', '0', 'routes come from DHCP and from init, not from whoever sends ICMP'),
  ...perInterface('secure_redirects', '0', 'as above'),
  ...perInterface('send_redirects', '0', 'a node is not a router'),
  ...perInterface('accept_source_route', '0', 'the sender does not choose the path'),
  ...perInterface('accept_redirects', '0', 'as for IPv4', 'ipv6'),
  ...perInterface('accept_source_route', '0', 'as for IPv4', 'ipv6'),
];

/** Applies each setting. One that the kernel does not have is noted; one that it refuses is a warning. */
export function applyKernelSettings(log: Logger, settings: readonly KernelSetting[] = KERNEL_SETTINGS): void {
  for (const { path, value } of settings) {
    const file = `/proc/sys/${path}`;
    try {
      writeFileSync(file, value);
      const now = readFileSync(file, 'utf8').trim();
      if (now !== value) log.warning(`${path} is ${now}, not ${value}: the kernel did not take it`);
    } catch (error) {
      if (error instanceof Error && 'code' in error && error.code === 'ENOENT') log.debug(`this kernel has no ${path}`);
      else log.warning(`cannot set ${path} to ${value}: ${String(error)}`);
    }
  }
}
