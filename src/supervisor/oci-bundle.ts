/** A service's manifest as an OCI runtime configuration (runtime-spec 1.0.2, config.md and config-linux.md). */

import { seccompProfile } from './seccomp.ts';
import type { ServiceManifest } from './service-manifest.ts';

/** A device node that the machine has. */
export interface GivenDevice {
  path: string;
  type: 'c' | 'b';
  major: number;
  minor: number;
}

export interface BundlePlaces {
  /** The read-only root on the host. */
  rootfs: string;
  /** Host directory that becomes /data, for services with `mounts.data`. */
  data: string;
  /** Host directory that becomes /config, for services with `mounts.config`. */
  config: string;
  /** Below the root of cgroup v2, for example `/services/etcd/box`. */
  cgroup: string;
}

const RUN_SIZE_BYTES = 1 << 20;
const TMP_SIZE_BYTES = 16 << 20;
const OPEN_FILES_MAX = 16_384;

/** What a container could tell of the machine, or change through /proc, beyond what its service needs. */
const MASKED_PATHS = [
  '/proc/acpi',
  '/proc/kcore',
  '/proc/keys',
  '/proc/latency_stats',
  '/proc/sched_debug',
  '/proc/scsi',
];
const READ_ONLY_PATHS = ['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sysrq-trigger'];
/** Who may configure the network may write /proc/sys/net (a DHCP client must), and nothing beside it. */
const SYSCTLS_BUT_NET = ['abi', 'debug', 'dev', 'fs', 'kernel', 'user', 'vm'].map((part) => `/proc/sys/${part}`);

/** The content of a bundle's config.json, as a value. Limits are not in it: they are set on the cgroup above. */
export function ociConfiguration(manifest: ServiceManifest, places: BundlePlaces, devices: readonly GivenDevice[]) {
  const { uid, gid, capabilities } = manifest;
  return {
    ociVersion: '1.0.2',
    process: {
      terminal: false,
      user: { uid, gid, umask: 0o077 },
      args: manifest.process.args,
      env: ['PATH=/usr/bin:/usr/sbin', ...Object.entries(manifest.process.env ?? {}).map(([k, v]) => `${k}=${v}`)],
      cwd: '/',
      // Ambient, because the service does not start as root: without it execve would leave it with none.
      capabilities: {
        bounding: capabilities,
        effective: capabilities,
        inheritable: capabilities,
        permitted: capabilities,
        ambient: capabilities,
      },
      rlimits: [
        { type: 'RLIMIT_NOFILE', soft: OPEN_FILES_MAX, hard: OPEN_FILES_MAX },
        { type: 'RLIMIT_CORE', soft: 0, hard: 0 },
      ],
      noNewPrivileges: true,
    },
    root: { path: places.rootfs, readonly: true },
    hostname: manifest.name,
    mounts: mountsOf(manifest, places),
    linux: {
      cgroupsPath: places.cgroup,
      namespaces: [{ type: 'pid' }, { type: 'mount' }, { type: 'ipc' }, { type: 'uts' }, { type: 'cgroup' }],
      devices: devices.map((device) => ({ ...device, fileMode: 0o600, uid, gid })),
      resources: {
        devices: [
          { allow: false, access: 'rwm' },
          ...devices.map(({ type, major, minor }) => ({ allow: true, type, major, minor, access: 'rw' })),
        ],
      },
      seccomp: seccompProfile(manifest.seccomp),
      maskedPaths: MASKED_PATHS,
      readonlyPaths: [
        ...READ_ONLY_PATHS,
        ...(capabilities.includes('CAP_NET_ADMIN') ? SYSCTLS_BUT_NET : ['/proc/sys']),
      ],
    },
  };
}

function mountsOf(manifest: ServiceManifest, places: BundlePlaces) {
  const { uid, gid, mounts } = manifest;
  const plain = ['nosuid', 'nodev', 'noexec'];
  const tmpfs = (target: string, sizeBytes: number, mode = '0755') => ({
    destination: target,
    type: 'tmpfs',
    source: 'tmpfs',
    options: [...plain, `mode=${mode}`, `size=${sizeBytes}`, `uid=${uid}`, `gid=${gid}`],
  });
  const bind = (source: string, target: string, readOnly: boolean) => ({
    destination: target,
    type: 'bind',
    source,
    options: ['bind', ...plain, readOnly ? 'ro' : 'rw'],
  });
  return [
    { destination: '/proc', type: 'proc', source: 'proc', options: plain },
    { destination: '/dev', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'noexec', 'mode=0755', 'size=65536'] },
    tmpfs('/run', RUN_SIZE_BYTES),
    tmpfs('/tmp', TMP_SIZE_BYTES, '0700'),
    ...mounts.tmpfs.map(({ target, sizeBytes }) => tmpfs(target, sizeBytes)),
    ...(mounts.data === true ? [bind(places.data, '/data', false)] : []),
    ...(mounts.config === true ? [bind(places.config, '/config', true)] : []),
    ...mounts.binds.map(({ source, target, readOnly }) => bind(source, target, readOnly)),
  ];
}
