/**
 * System call filters of services, as OCI `linux.seccomp`.
 *
 * Allowed unless denied: the denied ones change or inspect the machine, not the process, and none of our services needs
 * them. They fail with EPERM rather than kill, so that a daemon that merely tries is seen in its log. Only x86-64 calls
 * exist (no i386, no x32), or each denial could be passed by another number.
 */

export type SeccompComparison = 'SCMP_CMP_EQ' | 'SCMP_CMP_GE' | 'SCMP_CMP_MASKED_EQ';

export interface SeccompRule {
  names: string[];
  action: 'SCMP_ACT_ERRNO';
  errnoRet: number;
  /** All must hold. Values are compared as 64 bits, though the kernel looks at the lower 32 of an int. */
  args?: { index: number; value: number; valueTwo?: number; op: SeccompComparison }[];
}

export interface SeccompProfile {
  defaultAction: 'SCMP_ACT_ALLOW';
  architectures: string[];
  syscalls: SeccompRule[];
}

export type SeccompProfileName = 'default' | 'time' | 'network';

const EPERM = 1;
const ENOSYS = 38;

const MOUNTING = [
  ...['mount', 'umount2', 'pivot_root', 'chroot', 'move_mount', 'open_tree', 'fsopen', 'fsconfig', 'fsmount', 'fspick'],
  'mount_setattr',
];
const OTHER_PROCESSES = ['ptrace', 'process_vm_readv', 'process_vm_writev', 'kcmp', 'process_madvise', 'pidfd_getfd'];
const KERNEL = [
  ...['kexec_load', 'kexec_file_load', 'init_module', 'finit_module', 'delete_module', 'bpf', 'perf_event_open'],
  ...['reboot', 'syslog', 'iopl', 'ioperm', 'swapon', 'swapoff', 'acct', 'quotactl', 'quotactl_fd', 'lookup_dcookie'],
  ...['sethostname', 'setdomainname', 'vhangup', 'modify_ldt', 'uselib', 'ustat', 'sysfs', '_sysctl', 'nfsservctl'],
];
/** Keyrings are not namespaced; handles walk around mount namespaces; the last two are mostly known from exploits. */
const ESCAPES = [
  ...['add_key', 'request_key', 'keyctl', 'open_by_handle_at', 'name_to_handle_at', 'unshare', 'setns'],
  ...['userfaultfd', 'io_uring_setup', 'io_uring_enter', 'io_uring_register', 'fanotify_init'],
];
const CLOCKS = ['settimeofday', 'clock_settime', 'clock_adjtime', 'adjtimex', 'stime'];

/** CLONE_NEW* of clone(2): user, mount, pid, net, ipc, uts, cgroup namespaces. */
const NAMESPACE_FLAGS = [0x1000_0000, 0x0002_0000, 0x2000_0000, 0x4000_0000, 0x0800_0000, 0x0400_0000, 0x0200_0000];
const AF_UNIX = 1;
const AF_INET = 2;
const AF_INET6 = 10;
const AF_NETLINK = 16;
const AF_PACKET = 17;
/** AF_MAX of Linux 6.12 (include/linux/socket.h). */
const FAMILIES = 46;
const NETLINK_ROUTE = 0;
const NETLINK_GENERIC = 16;
/** MAX_LINKS (include/uapi/linux/netlink.h). */
const NETLINK_PROTOCOLS = 32;

/**
 * `default` leaves TCP, UDP, Unix sockets and a look at addresses and routes (rtnetlink). `time` may also set the clock
 * (with CAP_SYS_TIME). `network` is for who configures links (with CAP_NET_ADMIN): frames, and generic netlink, which
 * dhcpcd refuses to start without. No service gets NETLINK_NETFILTER: the firewall is init's alone.
 */
export function seccompProfile(name: SeccompProfileName): SeccompProfile {
  const families = [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, ...(name === 'network' ? [AF_PACKET] : [])];
  const netlink = [NETLINK_ROUTE, ...(name === 'network' ? [NETLINK_GENERIC] : [])];
  const deny = (names: string[], errnoRet = EPERM): SeccompRule => ({ names, action: 'SCMP_ACT_ERRNO', errnoRet });
  return {
    defaultAction: 'SCMP_ACT_ALLOW',
    architectures: ['SCMP_ARCH_X86_64'],
    syscalls: [
      deny([...MOUNTING, ...OTHER_PROCESSES, ...KERNEL, ...ESCAPES, ...(name === 'time' ? [] : CLOCKS)]),
      // Its flags lie in memory, where a filter cannot look; libc then falls back to clone.
      deny(['clone3'], ENOSYS),
      ...NAMESPACE_FLAGS.map(
        (flag): SeccompRule => ({
          ...deny(['clone']),
          args: [{ index: 0, value: flag, valueTwo: flag, op: 'SCMP_CMP_MASKED_EQ' }],
        }),
      ),
      ...allValuesBut(families, FAMILIES).map(
        (value): SeccompRule => ({ ...deny(['socket']), args: [{ index: 0, ...value }] }),
      ),
      ...allValuesBut(netlink, NETLINK_PROTOCOLS).map(
        (value): SeccompRule => ({
          ...deny(['socket']),
          args: [
            { index: 0, value: AF_NETLINK, op: 'SCMP_CMP_EQ' },
            { index: 2, ...value },
          ],
        }),
      ),
    ],
  };
}

/**
 * Comparisons of which one holds for every 64-bit value outside `allowed`: so also for 2^32 + 16, which the kernel would
 * cut down to 16.
 */
function allValuesBut(allowed: readonly number[], end: number): { value: number; op: SeccompComparison }[] {
  const denied = Array.from({ length: end }, (_, value) => value).filter((value) => !allowed.includes(value));
  return [
    ...denied.map((value) => ({ value, op: 'SCMP_CMP_EQ' as const })),
    { value: end, op: 'SCMP_CMP_GE' as const },
  ];
}
