/**
 * Stage 2: from the verified system to a node that serves. It stays as PID 1.
 *
 *     mounts, settings, clock → node parameters (measured, then read) → data partition → identity → configuration
 *     → init socket → supervisor: firewall, network, services → ready
 *
 * What restarting can better ends in a restart; what it cannot (parameters, a data partition that stays closed) waits for
 * a human with PCR 11 capped, who may be the owner at the other end of the network (recovery-mode.ts). The node parameters are untrusted until they are measured.
 */
import { type NodeParameters, NodeParametersError } from '../formats/node-parameters.ts';
import { releaseStartMemory } from '../linux/memory.ts';
import { setHostName, setWallClock } from '../linux/system.ts';
import { INIT_SOCKET } from '../rpc/init-client.ts';
import type { Logger, LogStore } from '../supervisor/log-store.ts';
import { loadServiceManifests, type ServiceManifest, servicesForRoles } from '../supervisor/service-manifest.ts';
import { nodeServiceHost, serviceStatuses } from '../supervisor/service-runnable.ts';
import { type Supervisor, startSupervisor } from '../supervisor/supervisor.ts';
import { createAttestor } from './attest-client.ts';
import type { Stage1Record, Timeline } from './boot-record.ts';
import { enterInitCgroup } from './cgroup.ts';
import { watchChildren } from './children.ts';
import { enrolSecureBoot } from './enrol-secure-boot.ts';
import { ensureIdentity, type NodeIdentity } from './identity.ts';
import { startInitServer } from './init-server.ts';
import { applyKernelSettings } from './kernel-settings.ts';
import { readEventLog, readSecureBoot } from './machine.ts';
import { mountAll, mountOptional, STAGE2_MOUNTS } from './mounts.ts';
import { nodeServices, stopServices, writeConfigurations } from './node-services.ts';
import { type BootFacts, nodeStatusReader } from './node-status.ts';
import { ensureOwnedDirectory } from './owned-files.ts';
import { type NodeParametersPlace, readNodeParameters } from './read-node-parameters.ts';
import { startReaper } from './reaper.ts';
import { isRecoverable, startRecoveryMode } from './recovery-mode.ts';
import { createSealingService } from './sealing-service.ts';
import { closeMappings, createShutdown, killRemainingProcesses, type Shutdown, unmountWithRetry } from './shutdown.ts';
import { watchStopRequests } from './signals.ts';
import type { Stage } from './stage1.ts';
import { readSystemDescription, type SystemDescription } from './system-description.ts';
import {
  dataPartitionRequest,
  type UnlockOptions,
  UnlockRefusedError,
  type UnlockResult,
  unlockData,
} from './unlock-client.ts';
import { NeedsHuman, waitForHuman } from './wait-for-human.ts';
import { armWatchdogs } from './watchdog.ts';

const SYSTEM_DESCRIPTION = '/run/ashlar/system.json';
const MANIFESTS = '/usr/share/ashlar/services';
const DATA = '/data';
/** The init socket's group: the agent. */
const AGENT_GID = 200;
/** A cluster of one: this node holds the control plane, too. */
const ROLES = ['control', 'node'] as const;

/** Runs stage 2. Returns when the node's tree has been started, or never when a human is needed. */
export async function runStage2(stage: Stage, stage1: Stage1Record): Promise<void> {
  const { console, logStore, log, timeline } = stage;
  timeline.reach('init.stage2', 'start');
  startReaper({ children: watchChildren() });
  const shutdown = createShutdown(logStore.logger('init'), console);
  prepareKernel(log);
  armWatchdogs(log);
  watchStopRequests(log, (action, reason) => void shutdown.begin(action, reason));

  const system = await readSystemDescription(SYSTEM_DESCRIPTION);
  setClock(system, log);
  const facts = await describeBoot(system, stage1, log);
  const hasTpm = stage1.hasTpm === 'yes';
  let unlocking: (UnlockOptions & { readonly parameters: NodeParameters }) | undefined;
  try {
    const parameters = await readParameters({ disk: stage1.disk, hasTpm }, log);
    if (await enrolKeys(parameters, stage1.disk, system, log)) {
      await shutdown.begin('reboot', 'Secure Boot keys were enrolled');
      return;
    }
    unlocking = { system, systemDisk: `/dev/${stage1.disk}`, parameters, hasTpm };
    const sealing = await openData(unlocking, facts, shutdown, stage);
    const identity = await establishIdentity(system, facts, logStore);
    await startNode({ system, parameters, identity, sealing, facts, shutdown, timeline, logStore });
  } catch (error) {
    if (shutdown.signal.aborted) return; // the shutdown took something away from under the boot
    if (!(error instanceof NeedsHuman)) throw error;
    facts.stage = `failed: ${error.stage}`;
    const refused = error.cause instanceof UnlockRefusedError ? error.cause : undefined;
    if (unlocking !== undefined && refused !== undefined && isRecoverable(refused.refusal, { hasTpm })) {
      logStore.logger('init').error(`FAILED ${error.stage}: ${error.message}`);
      const { refusal, message } = refused;
      const request = dataPartitionRequest(unlocking);
      const notBefore = new Date(system.buildTime * 1000);
      const { parameters } = unlocking;
      return startRecoveryMode({
        ...{ refusal, message, request, parameters, notBefore },
        ...{ facts, shutdown, timeline, logStore },
      });
    }
    await waitForHuman(error, logStore, { hasTpm });
  }
}

function prepareKernel(log: Logger): void {
  mountAll(STAGE2_MOUNTS);
  mountOptional(log);
  enterInitCgroup();
  applyKernelSettings(log);
  setHostName('ashlar');
}

/** A machine without a clock battery starts in 1970; certificates would not be valid yet. */
function setClock({ buildTime }: SystemDescription, log: Logger): void {
  const earliestMs = buildTime * 1000;
  if (Date.now() >= earliestMs) return;
  log.warning(`the clock says ${new Date().toISOString()}; set to the image's build time`);
  setWallClock(earliestMs);
}

async function describeBoot(system: SystemDescription, stage1: Stage1Record, log: Logger): Promise<BootFacts> {
  const secureBoot = await readSecureBoot();
  log.info(`ashlar ${system.version}, slot ${stage1.slot}, Secure Boot ${secureBoot}`);
  return {
    nodeId: '',
    version: system.version,
    slot: stage1.slot,
    stage: 'data',
    roles: [...ROLES],
    tpm: stage1.hasTpm === 'yes' ? 'ready' : 'absent',
    data: { state: 'closed', createdThisBoot: false, recoveryKeyFingerprint: '' },
  };
}

async function readParameters(place: NodeParametersPlace, log: Logger): Promise<NodeParameters> {
  try {
    return await readNodeParameters(place, log);
  } catch (error) {
    if (error instanceof NodeParametersError) throw new NeedsHuman('parameters', error, { isCapped: false });
    throw error;
  }
}

/** True when the machine has to restart. Before any data is sealed: see `enrol-secure-boot.ts`. */
async function enrolKeys(
  { secureBoot }: NodeParameters,
  disk: string,
  { partitionUuid }: SystemDescription,
  log: Logger,
): Promise<boolean> {
  try {
    return await enrolSecureBoot({ disk, partitionUuid, isAllowed: secureBoot?.enrolKeys === true }, log);
  } catch (error) {
    throw new NeedsHuman('secure-boot', error, { isCapped: false });
  }
}

async function openData(
  options: UnlockOptions,
  facts: BootFacts,
  shutdown: Shutdown,
  { logStore, timeline }: Stage,
): Promise<UnlockResult['sealing']> {
  const log = logStore.logger('init.data');
  facts.data.state = 'opening';
  // Registered before anything is opened: a shutdown during the unlock closes what there is.
  shutdown.use({ name: 'close the data partition', deadlineMs: 5_000, run: closeMappings });
  shutdown.use({ name: 'unmount the data partition', deadlineMs: 8_000, run: () => unmountWithRetry(DATA) });
  shutdown.use({ name: 'end what is left of the services', deadlineMs: 8_000, run: killRemainingProcesses });
  try {
    const result = await unlockData(options, { signal: shutdown.signal, onEvent: (text) => log.info(text) });
    for (const warning of result.warnings) log.warning(warning);
    const { recoveryKeyFingerprint } = result;
    facts.data = { state: 'open', createdThisBoot: result.state === 'created', recoveryKeyFingerprint };
    timeline.reach('init.data', `open (${result.partition}, ${result.state})`, 'init.data: open');
    return result.sealing;
  } catch (error) {
    facts.data.state = 'refused';
    if (error instanceof UnlockRefusedError) throw new NeedsHuman('data', error, { isCapped: true });
    throw error;
  }
}

async function establishIdentity(
  system: SystemDescription,
  facts: BootFacts,
  logStore: LogStore,
): Promise<NodeIdentity> {
  const notBefore = new Date(system.buildTime * 1000);
  const identity = await ensureIdentity({ dataDirectory: DATA, roles: ROLES, notBefore });
  facts.nodeId = identity.nodeId;
  setHostName(identity.nodeId);
  const log = logStore.logger('init.identity');
  log.info(`this is ${identity.nodeId}`);
  if (identity.curatorFingerprint !== null) log.info(`the cluster API's key is ${identity.curatorFingerprint}`);
  return identity;
}

interface NodeStart {
  readonly system: SystemDescription;
  readonly parameters: NodeParameters;
  readonly identity: NodeIdentity;
  /** What the data is sealed to; undefined without a TPM. */
  readonly sealing: UnlockResult['sealing'];
  readonly facts: BootFacts;
  readonly shutdown: Shutdown;
  readonly timeline: Timeline;
  readonly logStore: LogStore;
}

async function startNode(options: NodeStart): Promise<void> {
  const { system, parameters, identity, sealing, facts, shutdown, timeline, logStore } = options;
  facts.stage = 'services';
  const manifests = servicesForRoles(loadServiceManifests(MANIFESTS), ROLES);
  const host = nodeServiceHost(logStore);
  await ensureOwnedDirectory(`${DATA}/services`, 0);
  for (const { uid, name, mounts } of manifests)
    if (mounts.data === true) await ensureOwnedDirectory(`${DATA}/services/${name}`, uid);
  const { recoveryKeyFingerprint } = facts.data;
  const { version } = system;
  writeConfigurations({ host, manifests, parameters, identity, recoveryKeyFingerprint, roles: ROLES, version });

  let supervisor: Supervisor | undefined;
  // The socket is there before the agent starts, because the agent's bundle binds it.
  await startInitServer({
    path: INIT_SOCKET,
    gid: AGENT_GID,
    log: logStore.logger('init.server'),
    service: {
      status: nodeStatusReader(facts, timeline),
      services: async () =>
        serviceStatuses(manifests, ROLES, supervisor?.status() ?? [], Number(process.hrtime.bigint() / 1_000_000n)),
      logs: ({ name, tail, follow }, signal) => {
        const query = { ...(name === undefined ? {} : { name }), tail: tail ?? 1000 };
        return follow === true ? logStore.follow(query, signal) : asIterable(logStore.read(query));
      },
      eventLog: readEventLog,
      ...createAttestor({ hasTpm: facts.tpm !== 'absent', tlsSpki: identity.nodeSpki }),
      ...createSealingService({ sealing, dataDirectory: DATA }),
      stop: (action, reason) => void shutdown.begin(action, reason),
    },
  });
  if (shutdown.signal.aborted) return;
  const started = startSupervisor(nodeServices({ manifests, host, timeline }), { log: logStore });
  supervisor = started;
  shutdown.use(stopServices(started, manifests));
  announceHealth({ supervisor: started, manifests, facts, timeline });
}

/** Says when each service is healthy, and once that the node is ready. */
function announceHealth({
  supervisor,
  manifests,
  facts,
  timeline,
}: {
  supervisor: Supervisor;
  manifests: readonly ServiceManifest[];
  facts: BootFacts;
  timeline: Timeline;
}): void {
  const healthy = new Set<string>();
  supervisor.onChange(({ name, state }) => {
    const service = manifests.find((manifest) => name === manifest.name || name.endsWith(`.${manifest.name}`));
    if (service === undefined) return;
    if (state !== 'HEALTHY') {
      healthy.delete(service.name);
      return;
    }
    healthy.add(service.name);
    timeline.reach('init.services', `${service.name} healthy`);
    if (healthy.size < manifests.length || facts.stage === 'ready') return;
    facts.stage = 'ready';
    timeline.reach('init', `node ${facts.nodeId} ready`, 'init: ready');
    releaseStartMemory();
  });
}

async function* asIterable<T>(values: readonly T[]): AsyncIterable<T> {
  yield* values;
}
