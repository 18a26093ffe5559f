/**
 * What a service is, as data: image/system/services/NAME.json.
 *
 * One file serves twice: the image builder reads `rootfs` (and checks everything), and init runs the rest. Unknown keys
 * are refused by file and name, so that a mistyped limit is an error and not a missing limit.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import {
  type Check,
  type Checked,
  dictionary,
  flag,
  integer,
  list,
  object,
  oneOf,
  ShapeError,
  text,
} from '../formats/json-shape.ts';
import { capabilityNames } from './capabilities.ts';

const NAME = /^[a-z][a-z0-9-]{0,31}$/;
const name = text({ min: 1, max: 32, pattern: NAME });
/** Absolute, and already in its shortest form, so that comparing text compares places. */
const path = text({ min: 2, max: 256, pattern: /^(?:\/(?!\.{1,2}(?:\/|$))[A-Za-z0-9._+-]+)+$/ });
const id = integer({ min: 1, max: 65_534 });
const port = integer({ min: 1, max: 65_535 });
const bytes = integer({ min: 1 << 20, max: 2 ** 40 });
const milliseconds = integer({ min: 1, max: 600_000 });

const readinessByKind: Record<string, Check<Readiness>> = {
  started: object({ kind: oneOf('started') }),
  tcp: object({ kind: oneOf('tcp'), port }),
  socket: object({ kind: oneOf('socket'), path }),
  output: object({ kind: oneOf('output'), text: text({ min: 8, max: 200 }) }),
};

/** How init knows that a service does its job. None of these makes PID 1 send or parse a protocol's bytes. */
export type Readiness =
  /** As soon as its process runs. */
  | { kind: 'started' }
  /** When a TCP connection to 127.0.0.1:port is accepted; it is closed at once. */
  | { kind: 'tcp'; port: number }
  /** When a connection to a Unix stream socket (a path of the host) is accepted. */
  | { kind: 'socket'; path: string }
  /** When a line of its output contains this text: for services that listen long before they can answer. */
  | { kind: 'output'; text: string };

const readiness: Check<Readiness> = (value, at) => {
  const kind = typeof value === 'object' && value !== null && 'kind' in value ? String(value.kind) : '';
  const check = Object.hasOwn(readinessByKind, kind) ? readinessByKind[kind] : undefined;
  if (check === undefined) {
    throw new ShapeError(`${at}.kind`, `must be one of ${Object.keys(readinessByKind).join(', ')}`);
  }
  return check(value, at);
};

const manifest = object({
  name,
  description: text({ min: 1, max: 200 }),
  /** The service runs on nodes that have any of these roles; every node has the role `node`. */
  roles: list(oneOf('control', 'node'), { max: 2 }),
  /** Services that must be healthy before this one starts, and that stop after it. */
  after: list(name, { max: 16 }),
  process: object(
    { args: list(text({ max: 1024 }), { max: 64 }) },
    { env: dictionary(/^[A-Z][A-Z0-9_]*$/, text({ max: 1024 }), { max: 32 }) },
  ),
  uid: id,
  gid: id,
  /** Exactly these are held, also across execve; CAP_ names. */
  capabilities: list(oneOf(...capabilityNames), { max: 8 }),
  network: oneOf('host'),
  /** Name of a profile in src/supervisor/seccomp.ts. */
  seccomp: oneOf('default', 'time', 'network'),
  mounts: object(
    {
      /** Fresh directories in RAM, with a size; mode 0755, owned by the service. */
      tmpfs: list(object({ target: path, sizeBytes: integer({ min: 4096, max: 2 ** 30 }) }), { max: 8 }),
      binds: list(object({ source: path, target: path, readOnly: flag }), { max: 8 }),
    },
    {
      /** /data/services/NAME of the host as /data, writable. @default false */
      data: flag,
      /** /run/ashlar/config/NAME of the host as /config, read-only. @default false */
      config: flag,
    },
  ),
  /** Device nodes given to the service when the machine has them. */
  devices: list(path, { max: 8 }),
  limits: object(
    {
      memoryMaxBytes: bytes,
      pidsMax: integer({ min: 1, max: 4096 }),
      /** cgroup v2 cpu.weight; 100 is the default of a group. */
      cpuWeight: integer({ min: 1, max: 10_000 }),
    },
    {
      /**
       * memory.high: above it a service is slowed down to make it give memory back. One that leaks then crawls on for
       * minutes instead of dying and starting afresh, so it is for services that live off the page cache only.
       */
      memoryHighBytes: bytes,
    },
  ),
  readiness,
  stop: object({ signal: oneOf('SIGTERM', 'SIGINT', 'SIGQUIT'), deadlineMs: milliseconds }),
  /** TCP and UDP ports it listens on, for review and for clashes. */
  listens: list(port, { max: 8 }),
  /** What the image builder puts into /services/NAME/rootfs. Libraries that binaries name in ELF come by themselves. */
  rootfs: object({
    binaries: list(path, { max: 16 }),
    /** Libraries that are loaded by name at run time (dlopen), which ELF does not tell. */
    libraries: list(path, { max: 16 }),
    files: list(object({ path, content: text({ max: 16_384 }) }), { max: 16 }),
    directories: list(path, { max: 16 }),
  }),
});

export type ServiceManifest = Checked<typeof manifest>;
export type ServiceRole = ServiceManifest['roles'][number];

/**
 * A checked manifest from the text of its file. Throws an error that names the file and the field; `fileName` must be
 * the service's name and `.json`.
 */
export function parseServiceManifest(json: string, fileName: string): ServiceManifest {
  try {
    const parsed = manifest(JSON.parse(json), '');
    checkItself(parsed, fileName);
    return parsed;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new Error(`cannot use the service manifest ${fileName}: ${reason}`, { cause: error });
  }
}

/** Reads and checks every manifest of a directory, and that they fit together; in an order that `after` allows. */
export function loadServiceManifests(directory: string): ServiceManifest[] {
  const files = readdirSync(directory).filter((file) => file.endsWith('.json'));
  return orderServices(
    files.sort().map((file) => parseServiceManifest(readFileSync(join(directory, file), 'utf8'), file)),
  );
}

/**
 * Manifests so ordered that each comes after those it names. Throws when a name is missing or comes round to itself, or
 * when two share a name, a uid or a port.
 */
export function orderServices(manifests: readonly ServiceManifest[]): ServiceManifest[] {
  refuseShared(manifests, 'name', (one) => [one.name]);
  refuseShared(manifests, 'uid', (one) => [one.uid]);
  refuseShared(manifests, 'gid', (one) => [one.gid]);
  refuseShared(manifests, 'port', (one) => one.listens);
  const byName = new Map(manifests.map((one) => [one.name, one]));
  const ordered = new Set<ServiceManifest>();
  const visit = (one: ServiceManifest, trail: string[]) => {
    if (ordered.has(one)) return;
    if (trail.includes(one.name)) {
      throw new Error(`cannot order the services: ${[...trail, one.name].join(' after ')} is a circle`);
    }
    for (const before of one.after) {
      const found = byName.get(before);
      if (found === undefined) {
        throw new Error(`cannot order the services: ${one.name} comes after ${before}, which has no manifest`);
      }
      for (const role of one.roles) {
        if (!found.roles.includes(role) && !found.roles.includes('node')) {
          throw new Error(`cannot order the services: ${one.name} runs where ${before} does not (role ${role})`);
        }
      }
      visit(found, [...trail, one.name]);
    }
    ordered.add(one);
  };
  // What others wait for goes first: starting one costs PID 1 a moment, and a boot lasts as long as its longest chain.
  const awaited = new Set(manifests.flatMap((one) => one.after));
  for (const one of manifests) if (awaited.has(one.name)) visit(one, []);
  for (const one of manifests) visit(one, []);
  return [...ordered];
}

/** Services of a node with these roles, in the same order. */
export function servicesForRoles(manifests: readonly ServiceManifest[], roles: readonly string[]): ServiceManifest[] {
  return manifests.filter((one) => one.roles.some((role) => roles.includes(role)));
}

/** Directories that the rootfs must have because something is mounted there; the root itself is read-only. */
export function mountPoints({ mounts }: ServiceManifest): string[] {
  const tmpfs = mounts.tmpfs.map(({ target }) => target);
  // A bind below a tmpfs gets its mount point in RAM, made by crun.
  const binds = mounts.binds.map(({ target }) => target).filter((target) => !isBelowAny(target, ['/run', ...tmpfs]));
  const given = [mounts.data === true ? ['/data'] : [], mounts.config === true ? ['/config'] : []].flat();
  return [
    ...new Set([
      '/proc',
      '/dev',
      '/run',
      '/tmp',
      ...given,
      ...tmpfs.filter((at) => !isBelowAny(at, ['/run', '/tmp'])),
      ...binds,
    ]),
  ];
}

function isBelowAny(place: string, parents: readonly string[]): boolean {
  return parents.some((parent) => place.startsWith(`${parent}/`));
}

function checkItself(one: ServiceManifest, fileName: string): void {
  if (basename(fileName) !== `${one.name}.json`) throw new ShapeError('name', `must be the file's: ${fileName}`);
  if (one.roles.length === 0) throw new ShapeError('roles', 'must name at least one role');
  const [program] = one.process.args;
  if (program === undefined || !one.rootfs.binaries.includes(program)) {
    throw new ShapeError('process.args[0]', 'must be one of rootfs.binaries');
  }
  if ((one.limits.memoryHighBytes ?? 0) > one.limits.memoryMaxBytes) {
    throw new ShapeError('limits.memoryHighBytes', `must not exceed memoryMaxBytes, ${one.limits.memoryMaxBytes}`);
  }
  if (one.readiness.kind === 'tcp' && !one.listens.includes(one.readiness.port)) {
    throw new ShapeError('readiness.port', `must be one of listens, not ${one.readiness.port}`);
  }
  if (one.after.includes(one.name)) throw new ShapeError('after', 'must not name the service itself');
}

function refuseShared(
  manifests: readonly ServiceManifest[],
  what: string,
  valuesOf: (one: ServiceManifest) => readonly (string | number)[],
): void {
  const owners = new Map<string | number, string>();
  for (const one of manifests) {
    for (const value of new Set(valuesOf(one))) {
      const owner = owners.get(value);
      if (owner !== undefined)
        throw new Error(`cannot run ${owner} and ${one.name} together: both have ${what} ${value}`);
      owners.set(value, one.name);
    }
  }
}
