/**
 * A node whose data does not open, and can be brought back by its owner: instead of only waiting, it serves recovery.
 *
 *   PCR 11 is capped ─▶ tmpfs in the place of /data ─▶ TLS key of this boot ─▶ init socket
 *   ─▶ supervisor: firewall, DHCP, agent (src/agent/recovery-agent.ts) ─▶ the console shows fingerprint and address
 *
 * Nothing is unlocked by this. The owner attests the node, whose quote names that TLS key, and only then sends the recovery
 * slot's key; a reboot follows.
 */
import { generateKeyPair, randomBytes } from 'node:crypto';
import { promisify } from 'node:util';
import type { NodeParameters } from '../formats/node-parameters.ts';
import { createCertificate, spkiFingerprint } from '../formats/x509.ts';
import { MS_NODEV, MS_NOEXEC, MS_NOSUID, mount } from '../linux/mount.ts';
import { NODE_API_PORT } from '../net/ports.ts';
import { INIT_SOCKET } from '../rpc/init-client.ts';
import { InitRefusal } from '../rpc/init-protocol.ts';
import { ORGANIZATION, RECOVERY_SERVER_NAME } from '../rpc/tls-names.ts';
import type { DataPartitionRequest, DataRefusal } from '../storage/data-partition.ts';
import type { LogStore } from '../supervisor/log-store.ts';
import { loadServiceManifests } from '../supervisor/service-manifest.ts';
import { nodeServiceHost, serviceStatuses, writeServiceConfiguration } from '../supervisor/service-runnable.ts';
import { type Supervisor, startSupervisor } from '../supervisor/supervisor.ts';
import { createAttestor } from './attest-client.ts';
import type { Timeline } from './boot-record.ts';
import { startInitServer } from './init-server.ts';
import { readEventLog } from './machine.ts';
import { nodeServices, stopServices } from './node-services.ts';
import { type BootFacts, nodeStatusReader } from './node-status.ts';
import { ensureOwnedDirectory } from './owned-files.ts';
import { createRecovery } from './recover-client.ts';
import type { Shutdown } from './shutdown.ts';

const MANIFESTS = '/usr/share/ashlar/services';
const DATA = '/data';
const AGENT_GID = 200;
/** What a node needs to be reached, and nothing that uses data. */
const SERVICES: readonly string[] = ['agent', 'dhcpcd'];
/** What sealing anew puts right. Another state of the machine than it should have (PCR 12, Secure Boot off) it would not. */
const RECOVERABLE: ReadonlySet<string> = new Set<DataRefusal>([
  'another-tpm',
  'pcr-7-changed',
  'image-not-allowed',
  'policy-not-met',
  'header-refused',
  'no-node-key',
  'wrong-key',
]);

export interface RecoveryModeOptions {
  readonly refusal: string;
  readonly message: string;
  /** As the unlock had it. */
  readonly request: DataPartitionRequest;
  readonly parameters: NodeParameters;
  readonly notBefore: Date;
  readonly facts: BootFacts;
  readonly shutdown: Shutdown;
  readonly timeline: Timeline;
  readonly logStore: LogStore;
}

export function isRecoverable(refusal: string, { hasTpm }: { readonly hasTpm: boolean }): boolean {
  return hasTpm && RECOVERABLE.has(refusal);
}

/** Returns when the node's tree has been started; it runs until the owner, or somebody at the power button, ends it. */
export async function startRecoveryMode(options: RecoveryModeOptions): Promise<void> {
  const { facts, shutdown, timeline, logStore, parameters } = options;
  const log = logStore.logger('init.recovery');
  facts.stage = 'recovery';
  const manifests = loadServiceManifests(MANIFESTS).filter(({ name }) => SERVICES.includes(name));
  const flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  mount({ source: 'tmpfs', target: DATA, type: 'tmpfs', flags, data: 'mode=0755,size=16m' });
  await ensureOwnedDirectory(`${DATA}/services`, 0);
  for (const { uid, name, mounts } of manifests)
    if (mounts.data === true) await ensureOwnedDirectory(`${DATA}/services/${name}`, uid);

  const host = nodeServiceHost(logStore);
  const key = await makeBootKey(options.notBefore);
  const agent = manifests.find(({ name }) => name === 'agent');
  if (agent === undefined) throw new Error('cannot serve recovery: the image has no service agent');
  const { ownerCertificatePem } = parameters.cluster.bootstrap;
  writeServiceConfiguration(host, agent, {
    'recovery.json': `${JSON.stringify({ listen: `0.0.0.0:${NODE_API_PORT}`, initSocket: INIT_SOCKET, ownerCertificatePem }, null, 2)}\n`,
    'recovery.crt': key.certificatePem,
    'recovery.key': key.keyPem,
  });

  let supervisor: Supervisor | undefined;
  const notSealed = async () => {
    throw new InitRefusal('UNAVAILABLE', 'the data of this node is closed');
  };
  await startInitServer({
    path: INIT_SOCKET,
    gid: AGENT_GID,
    log: logStore.logger('init.server'),
    service: {
      status: nodeStatusReader(facts, timeline),
      services: async () =>
        serviceStatuses(manifests, ['node'], supervisor?.status() ?? [], Number(process.hrtime.bigint() / 1_000_000n)),
      // The log tells what the console shows, and the owner is at neither.
      logs: noLogs,
      eventLog: readEventLog,
      ...createAttestor({ hasTpm: true, tlsSpki: key.spki }),
      sealing: notSealed,
      requestReseal: notSealed,
      recovery: createRecovery(options),
      stop: (action, reason) => void shutdown.begin(action, reason),
    },
  });
  if (shutdown.signal.aborted) return;
  const started = startSupervisor(nodeServices({ manifests, host, timeline }), { log: logStore });
  supervisor = started;
  shutdown.use(stopServices(started, manifests));
  started.onChange(({ name, state }) => {
    if (state !== 'HEALTHY' || !name.endsWith('agent')) return;
    timeline.reach('init.recovery', 'serving', 'init.recovery: serving');
    log.warning(`this node can be recovered over its API, port ${NODE_API_PORT}; its key is ${key.fingerprint}`);
  });
}

function noLogs(): never {
  throw new InitRefusal('UNAVAILABLE', 'a node in recovery has no logs to read');
}

/** A TLS key that lives as long as this boot. */
async function makeBootKey(notBefore: Date) {
  const { publicKey, privateKey } = await promisify(generateKeyPair)('ec', { namedCurve: 'P-256' });
  const name = { organization: ORGANIZATION.node, commonName: 'recovery' };
  const certificatePem = createCertificate({
    subject: name,
    publicKey,
    issuer: { name, key: privateKey },
    serialNumber: Buffer.concat([Uint8Array.of(0x40), randomBytes(15)]),
    notBefore,
    // The clock of a node without network time may be anywhere; its key ends with the boot.
    notAfter: new Date(Date.UTC(notBefore.getUTCFullYear() + 20, 0, 1)),
    isCa: false,
    usages: ['serverAuth'],
    dnsNames: [RECOVERY_SERVER_NAME],
  });
  return {
    certificatePem,
    keyPem: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    spki: publicKey.export({ type: 'spki', format: 'der' }),
    fingerprint: spkiFingerprint(publicKey),
  };
}
