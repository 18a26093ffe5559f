/**
 * The supervisor's tree of a node, and the configuration its services start with.
 *
 *     init ── network ── dhcpcd
 *          └─ services ── etcd, curator (after etcd), chrony, agent
 */
import { existsSync } from 'node:fs';
import type { NodeParameters } from '../formats/node-parameters.ts';
import { chronyConfiguration } from '../net/chrony.ts';
import { runNetwork } from '../net/network.ts';
import { INIT_SOCKET } from '../rpc/init-client.ts';
import type { ServiceManifest } from '../supervisor/service-manifest.ts';
import {
  type ServiceHost,
  serviceRunnable,
  startServices,
  stopDeadlineMs,
  writeServiceConfiguration,
} from '../supervisor/service-runnable.ts';
import type { Runnable, Supervisor } from '../supervisor/supervisor.ts';
import type { Timeline } from './boot-record.ts';
import type { NodeIdentity } from './identity.ts';
import type { ShutdownStep } from './shutdown.ts';

/** Runs below the network, which starts it once the firewall stands. */
const DHCP_SERVICE = 'dhcpcd';
const PTP_DEVICE = '/dev/ptp0';

export interface NodeServicesOptions {
  readonly manifests: readonly ServiceManifest[];
  readonly host: ServiceHost;
  readonly timeline: Timeline;
}

/** The root of the tree. */
export function nodeServices({ manifests, host, timeline }: NodeServicesOptions): Runnable {
  const dhcp = manifests.find(({ name }) => name === DHCP_SERVICE);
  if (dhcp === undefined) throw new Error(`cannot start the network: the image has no service ${DHCP_SERVICE}`);
  const others = manifests.filter((manifest) => manifest !== dhcp);
  return async (ctx) => {
    ctx.run('network', networkRunnable(dhcp, manifests, host, timeline));
    ctx.run('services', startServices(others, host));
    ctx.done();
  };
}

function networkRunnable(
  dhcp: ServiceManifest,
  manifests: readonly ServiceManifest[],
  host: ServiceHost,
  timeline: Timeline,
): Runnable {
  return async (ctx) => {
    await runNetwork({
      signal: ctx.signal,
      services: manifests,
      say: (text) => host.log.append('init.network', 'WARNING', text),
      startDhcp: () => {
        ctx.run(DHCP_SERVICE, serviceRunnable(dhcp, host));
        ctx.healthy();
      },
      onAddress: ({ cidr, interface: link }) => {
        timeline.reach('init.network', `up ${cidr}`, 'init.network: up');
        host.log.append('init.network', 'DEBUG', `${cidr} is on ${link}`);
      },
    });
  };
}

/** The step of the shutdown that ends the tree. */
export function stopServices(supervisor: Supervisor, manifests: readonly ServiceManifest[]): ShutdownStep {
  const deadlineMs = stopDeadlineMs(manifests);
  return {
    name: 'stop the services',
    deadlineMs: deadlineMs * manifests.length,
    async run() {
      const leftBehind = await supervisor.stop(deadlineMs);
      if (leftBehind.length > 0) throw new Error(`${leftBehind.join(', ')} did not end in time`);
    },
  };
}

export interface ConfigurationOptions {
  readonly host: ServiceHost;
  readonly manifests: readonly ServiceManifest[];
  readonly parameters: NodeParameters;
  readonly identity: NodeIdentity;
  /** Of the data volume that is open, never of these parameters. */
  readonly recoveryKeyFingerprint: string;
  readonly roles: readonly string[];
  readonly version: string;
}

/** Writes the /config of each service that has one (shapes: docs/architecture.md). */
export function writeConfigurations(options: ConfigurationOptions): void {
  const { host, manifests, parameters, identity, recoveryKeyFingerprint, roles, version } = options;
  const { nodeId, nodeCertificatePem, curatorFingerprint, serviceFiles } = identity;
  const files: Record<string, Record<string, string>> = {
    agent: {
      'config.json': json({
        nodeId,
        listen: '0.0.0.0:7401',
        curator: '127.0.0.1:7400',
        curatorSpkiSha256: curatorFingerprint,
        initSocket: INIT_SOCKET,
        version,
        roles,
      }),
    },
    curator: {
      'config.json': json({
        nodeId,
        ownerCertificatePem: parameters.cluster.bootstrap.ownerCertificatePem,
        nodeCertificatePem,
        recoveryKeyFingerprint,
        listen: '0.0.0.0:7400',
        etcd: '127.0.0.1:2379',
        version,
      }),
    },
    chrony: {
      'chrony.conf': chronyConfiguration({
        servers: parameters.time?.servers ?? [],
        ptpDevices: existsSync(PTP_DEVICE) ? [PTP_DEVICE] : [],
      }),
    },
  };
  for (const manifest of manifests) {
    if (manifest.mounts.config !== true) continue;
    const ofService = { ...files[manifest.name], ...serviceFiles[manifest.name] };
    if (Object.keys(ofService).length === 0)
      throw new Error(`cannot configure ${manifest.name}: init has nothing for its /config`);
    writeServiceConfiguration(host, manifest, ofService);
  }
}

function json(value: unknown): string {
  return `${JSON.stringify(value, null, 2)}\n`;
}
