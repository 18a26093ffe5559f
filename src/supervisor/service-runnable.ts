/**
 * A service as a runnable: one life of it from leftovers removed to exit reason known.
 *
 * crun stays in the foreground as our child and the container's process as crun's, so libuv tells how the service ended.
 * The life ends in a thrown reason, unless it was told to end; starting again is the supervisor's business.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { chmodSync, chownSync, existsSync, mkdirSync, statSync, writeFileSync } from 'node:fs';
import { connect } from 'node:net';
import { constants } from 'node:os';
import { join } from 'node:path';
import { type Clock, sleep, systemClock } from './clock.ts';
import type { LogStore } from './log-store.ts';
import { type GivenDevice, ociConfiguration } from './oci-bundle.ts';
import { prepareServiceCgroup, type ServiceCgroup } from './service-cgroup.ts';
import { type Readiness, type ServiceManifest, servicesForRoles } from './service-manifest.ts';
import type { Runnable, RunnableContext, RunnableStatus } from './supervisor.ts';

/** Where things are on the machine that runs services. */
export interface ServiceHost {
  log: LogStore;
  clock: Clock;
  /** The OCI runtime. */
  crun: string;
  /** Holds NAME/rootfs of each service. */
  servicesDirectory: string;
  bundlesDirectory: string;
  crunStateDirectory: string;
  dataDirectory: string;
  configDirectory: string;
  /** Where cgroup v2 is mounted. */
  cgroupRoot: string;
}

/** The places of docs/architecture.md. */
export function nodeServiceHost(log: LogStore, clock: Clock = systemClock): ServiceHost {
  return {
    log,
    clock,
    crun: '/usr/bin/crun',
    servicesDirectory: '/services',
    bundlesDirectory: '/run/ashlar/bundles',
    crunStateDirectory: '/run/ashlar/crun',
    dataDirectory: '/data/services',
    configDirectory: '/run/ashlar/config',
    cgroupRoot: '/sys/fs/cgroup',
  };
}

const READY_FIRST_WAIT_MS = 50;
const READY_LAST_WAIT_MS = 1000;
const READY_CONNECT_MS = 2000;
/** What SIGKILL to a whole cgroup may take before something is wrong with the kernel or a disk. */
const KILL_DEADLINE_MS = 5000;
const CRUN_DEADLINE_MS = 10_000;
const CRUN_TIDY_MS = 2000;
const KILL_RETRY_MS = 100;
const LAST_LINES_MS = 1000;

/** Longest that stopping any of these may take: what `Supervisor.stop` needs as its deadline. */
export function stopDeadlineMs(manifests: readonly ServiceManifest[]): number {
  return Math.max(0, ...manifests.map((one) => one.stop.deadlineMs)) + KILL_DEADLINE_MS + CRUN_TIDY_MS;
}

/**
 * Gives a service the files of its /config: readable by it alone, writable by none. To be called before it starts; the
 * running service sees a later call's files, too.
 */
export function writeServiceConfiguration(
  host: ServiceHost,
  manifest: ServiceManifest,
  files: Readonly<Record<string, string>>,
): void {
  const directory = join(host.configDirectory, manifest.name);
  mkdirSync(directory, { recursive: true });
  chownSync(directory, 0, manifest.gid);
  chmodSync(directory, 0o750);
  for (const [name, content] of Object.entries(files)) {
    const path = join(directory, name);
    writeFileSync(path, content, { mode: 0o640 });
    chownSync(path, 0, manifest.gid);
  }
}

/** Runs each of these services, in the order that their `after` asks for; done as soon as all are known to the tree. */
export function startServices(manifests: readonly ServiceManifest[], host: ServiceHost): Runnable {
  const names = new Set(manifests.map((one) => one.name));
  return async (ctx) => {
    for (const manifest of manifests) {
      // What runs elsewhere in the tree (the DHCP client, by the network) was started before.
      const after = manifest.after.filter((name) => names.has(name));
      ctx.run(manifest.name, serviceRunnable(manifest, host), { after });
    }
    ctx.done();
  };
}

/** The services of a tree for a reader: named as in their manifests, wherever in the tree they run. */
export function serviceStatuses(
  manifests: readonly ServiceManifest[],
  roles: readonly string[],
  statuses: readonly RunnableStatus[],
  nowMs: number,
) {
  return servicesForRoles(manifests, roles).map(({ name }) => {
    const found = statuses.find((status) => status.name === name || status.name.endsWith(`.${name}`));
    return {
      name,
      state: found?.state ?? ('WAITING' as const),
      /** How long it has been in this state. */
      sinceMs: found === undefined ? nowMs : Math.max(0, nowMs - found.sinceMs),
      restarts: found?.restarts ?? 0,
      lastExit: (found?.lastExit ?? '').slice(0, 1024),
      healthy: found?.state === 'HEALTHY',
    };
  });
}

export function serviceRunnable(manifest: ServiceManifest, host: ServiceHost): Runnable {
  return async (ctx) => {
    const cgroup = prepareServiceCgroup(host.cgroupRoot, manifest, host.clock);
    await removeLeftovers(manifest, host, cgroup);
    const bundle = writeBundle(manifest, host, cgroup);
    ctx.signal.throwIfAborted();

    const oomKillsBefore = cgroup.oomKills();
    const ready = readinessOf(manifest.readiness, host.clock);
    const child = spawnCrun(host, ['run', '--bundle', bundle, manifest.name], ['ignore', 'pipe', 'pipe']);
    const ended = endOf(child, 'exit');
    const silent = endOf(child, 'close');
    captureOutput(child, ctx, host.log, ready.onLine);
    const over = new AbortController();
    const life = AbortSignal.any([ctx.signal, over.signal]);
    const watching = ready.reached(life).then(
      () => life.aborted || ctx.healthy(),
      (error: unknown) => {
        if (!life.aborted) throw error;
      },
    );
    const stopping = stopWhenAborted(manifest, host, cgroup, ctx, child);
    try {
      const outcome = await Promise.race([ended, watching.then(() => ended)]);
      if (ctx.signal.aborted) {
        ctx.log.info(outcome.text);
        return;
      }
      const oomKills = cgroup.oomKills() - oomKillsBefore;
      throw new Error(oomKills === 0 ? outcome.text : outOfMemory(manifest, outcome.text));
    } finally {
      over.abort();
      await Promise.all([cgroup.kill(KILL_DEADLINE_MS), stopping.finish()]);
      // Its last lines; not for ever, since whoever else got hold of the pipe could keep it open.
      await Promise.race([silent, expiry(host.clock, LAST_LINES_MS)]);
    }
  };
}

/** A container of the same name may be left from a run whose crun was killed; it must be gone before the next. */
async function removeLeftovers(manifest: ServiceManifest, host: ServiceHost, cgroup: ServiceCgroup): Promise<void> {
  await cgroup.kill(KILL_DEADLINE_MS);
  if (existsSync(join(host.crunStateDirectory, manifest.name))) {
    const deletion = await runCrun(host, ['delete', '--force', manifest.name]);
    if (deletion.code !== 0) throw new Error(`cannot remove what is left of ${manifest.name}: ${deletion.text}`);
  }
}

function writeBundle(manifest: ServiceManifest, host: ServiceHost, cgroup: ServiceCgroup): string {
  const { name, uid, gid, mounts } = manifest;
  const places = {
    rootfs: join(host.servicesDirectory, name, 'rootfs'),
    data: join(host.dataDirectory, name),
    config: join(host.configDirectory, name),
    cgroup: cgroup.boxPath,
  };
  if (mounts.config === true && !existsSync(places.config)) {
    throw new Error(`cannot start ${name}: its configuration directory ${places.config} is not there`);
  }
  if (mounts.data === true) {
    if (!existsSync(host.dataDirectory)) throw new Error(`cannot start ${name}: ${host.dataDirectory} is not there`);
    mkdirSync(places.data, { recursive: true, mode: 0o700 });
    chownSync(places.data, uid, gid);
    chmodSync(places.data, 0o700);
  }
  const bundle = join(host.bundlesDirectory, name);
  mkdirSync(bundle, { recursive: true, mode: 0o700 });
  mkdirSync(host.crunStateDirectory, { recursive: true, mode: 0o700 });
  const devices = manifest.devices.flatMap(givenDevice);
  writeFileSync(join(bundle, 'config.json'), JSON.stringify(ociConfiguration(manifest, places, devices)));
  return bundle;
}

function givenDevice(path: string): GivenDevice[] {
  const found = statSync(path, { throwIfNoEntry: false });
  if (found === undefined || !(found.isCharacterDevice() || found.isBlockDevice())) return [];
  // dev_t of glibc: 12 bits of major above 8 of minor, the rest of the minor above those.
  const major = (found.rdev >> 8) & 0xfff;
  const minor = (found.rdev & 0xff) | ((found.rdev >> 12) & 0xfff00);
  return [{ path, type: found.isCharacterDevice() ? 'c' : 'b', major, minor }];
}

function captureOutput(child: ChildProcess, ctx: RunnableContext, log: LogStore, onLine?: (text: string) => void) {
  for (const stream of [child.stdout, child.stderr]) {
    // Most daemons write everything to stderr, so the stream says nothing of how serious a line is.
    const lines = log.capture(ctx.name, 'INFO', onLine);
    stream?.on('data', (chunk: Buffer) => lines.push(chunk));
    stream?.once('end', () => lines.end());
  }
}

// ---- stopping

interface Stopping {
  /** Forgets the wish to stop when the life has ended by itself; resolves when a stop already begun has finished. */
  finish(): Promise<void>;
}

/** Asks the service to end once its signal aborts; after its deadline, ends it. */
function stopWhenAborted(
  manifest: ServiceManifest,
  host: ServiceHost,
  cgroup: ServiceCgroup,
  ctx: RunnableContext,
  child: ChildProcess,
): Stopping {
  let stopped = Promise.resolve();
  const begin = () => {
    stopped = stopService(manifest, host, cgroup, ctx, child);
    // Awaited at the end of the life; until then a failure must not count as unhandled.
    stopped.catch(() => {});
  };
  if (ctx.signal.aborted) begin();
  else ctx.signal.addEventListener('abort', begin, { once: true });
  return {
    finish: () => {
      ctx.signal.removeEventListener('abort', begin);
      return stopped;
    },
  };
}

async function stopService(
  manifest: ServiceManifest,
  host: ServiceHost,
  cgroup: ServiceCgroup,
  ctx: RunnableContext,
  child: ChildProcess,
): Promise<void> {
  const { signal: name, deadlineMs } = manifest.stop;
  const lateMs = host.clock.nowMs() + deadlineMs;
  const hasEnded = () => child.exitCode !== null || child.signalCode !== null;
  const ended = new Promise<true>((resolve) => {
    child.once('exit', () => resolve(true));
    if (hasEnded()) resolve(true);
  });
  let asked = false;
  while (!asked && !hasEnded() && host.clock.nowMs() < lateMs) {
    // Refused while crun has not made the container yet.
    asked = (await runCrun(host, ['kill', manifest.name, name])).code === 0;
    if (!asked) await Promise.race([ended, expiry(host.clock, KILL_RETRY_MS)]);
  }
  const inTime = await Promise.race([ended, expiry(host.clock, Math.max(0, lateMs - host.clock.nowMs()))]);
  if (inTime) return;
  ctx.log.warning(`did not end within ${deadlineMs} ms of ${name}: killing it`);
  // The processes first, for crun to tell how they ended and to tidy up; then crun, should it hang.
  await cgroup.kill(KILL_DEADLINE_MS);
  if (!(await Promise.race([ended, expiry(host.clock, CRUN_TIDY_MS)]))) child.kill('SIGKILL');
}

function expiry(clock: Clock, delayMs: number): Promise<false> {
  return new Promise((resolve) => {
    clock.schedule(delayMs, () => resolve(false));
  });
}

// ---- readiness

interface ReadinessWatch {
  onLine?: (text: string) => void;
  /** Resolves when the service is ready; rejects when the signal aborts. */
  reached(signal: AbortSignal): Promise<void>;
}

function readinessOf(readiness: Readiness, clock: Clock): ReadinessWatch {
  switch (readiness.kind) {
    case 'started':
      return { reached: () => Promise.resolve() };
    case 'tcp':
      return { reached: (signal) => untilConnects({ host: '127.0.0.1', port: readiness.port }, clock, signal) };
    case 'socket':
      return { reached: (signal) => untilConnects({ path: readiness.path }, clock, signal) };
    case 'output': {
      const said = Promise.withResolvers<void>();
      return {
        onLine: (text) => {
          if (text.includes(readiness.text)) said.resolve();
        },
        reached: (signal) =>
          new Promise((resolve, reject) => {
            signal.addEventListener('abort', () => reject(signal.reason), { once: true });
            said.promise.then(resolve, reject);
          }),
      };
    }
  }
}

type Address = { host: string; port: number } | { path: string };

async function untilConnects(address: Address, clock: Clock, signal: AbortSignal): Promise<void> {
  for (let waitMs = READY_FIRST_WAIT_MS; ; waitMs = Math.min(READY_LAST_WAIT_MS, waitMs * 1.5)) {
    if (await accepts(address)) return;
    await sleep(clock, waitMs, signal);
  }
}

/** Whether a connection is accepted; nothing is sent and nothing read. */
function accepts(address: Address): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ ...address, timeout: READY_CONNECT_MS });
    const finish = (accepted: boolean) => {
      socket.destroy();
      resolve(accepted);
    };
    socket.once('connect', () => finish(true));
    socket.once('timeout', () => finish(false));
    socket.once('error', () => finish(false));
  });
}

// ---- crun

interface Outcome {
  code: number | null;
  text: string;
}

function spawnCrun(host: ServiceHost, args: string[], stdio: ('ignore' | 'pipe')[]): ChildProcess {
  const state = ['--cgroup-manager=cgroupfs', '--root', host.crunStateDirectory];
  return spawn(host.crun, [...state, ...args], { stdio, env: {} });
}

/** Runs a short crun command; its text is what it wrote to stderr, or how it ended. */
async function runCrun(host: ServiceHost, args: string[]): Promise<Outcome> {
  const child = spawnCrun(host, args, ['ignore', 'ignore', 'pipe']);
  let stderr = '';
  child.stderr?.on('data', (chunk: Buffer) => {
    if (stderr.length < 1024) stderr += chunk.toString('utf8');
  });
  const cancel = host.clock.schedule(CRUN_DEADLINE_MS, () => child.kill('SIGKILL'));
  const outcome = await endOf(child, 'close');
  cancel();
  return { code: outcome.code, text: stderr.trim() || outcome.text };
}

/**
 * How crun ended. `exit` is its process's own end; `close` also that nobody holds its output any more, which a container
 * does that outlives a killed crun.
 */
function endOf(child: ChildProcess, event: 'exit' | 'close'): Promise<Outcome> {
  return new Promise((resolve) => {
    child.once('error', (error) => resolve({ code: null, text: `cannot run crun: ${error.message}` }));
    child.once(event, (code, signal) => resolve({ code, text: exitText(code, signal) }));
  });
}

/** crun ends with 128 + the signal's number when a signal ended the container's process. */
export function exitText(code: number | null, signal: NodeJS.Signals | null): string {
  if (signal !== null) return `crun was killed by ${signal}`;
  const number = (code ?? 0) - 128;
  const name = Object.entries(constants.signals).find(([, value]) => value === number)?.[0];
  return name === undefined ? `exited with status ${code}` : `killed by ${name}`;
}

function outOfMemory(manifest: ServiceManifest, how: string): string {
  const mebibytes = Math.round(manifest.limits.memoryMaxBytes / 2 ** 20);
  return `out of memory (limit ${mebibytes} MiB): ${how}`;
}
