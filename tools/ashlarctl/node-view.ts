/** Nodes, services and log lines as JSON and as text. */
import { type Timestamp, timestampDate } from '@bufbuild/protobuf/wkt';
import { type Node, NodeState } from '../../src/rpc/gen/ashlar/cluster/v1/cluster_pb.ts';
import {
  type LogLine,
  type NodeStatus,
  ServiceState,
  type ServiceStatus,
} from '../../src/rpc/gen/ashlar/node/v1/node_pb.ts';
import { duration, fields, megabytes, printable, table } from './table.ts';

export function nodeJson(node: Node) {
  return {
    id: node.nodeId,
    state: nameOf(NodeState, node.state),
    registeredAt: iso(node.registeredAt),
    lastHeartbeatAt: iso(node.lastHeartbeatAt),
    certificateNotAfter: iso(node.certificateNotAfter),
    ...statusJson(node.status),
  };
}

export function statusJson(status: NodeStatus | undefined) {
  return {
    version: status?.version ?? null,
    roles: status?.roles ?? [],
    addresses: status?.addresses ?? [],
    bootId: status?.bootId ?? null,
    bootTime: iso(status?.bootTime),
    slot: status?.slot ?? null,
    stage: status?.stage ?? null,
    secureBoot: status?.secureBoot ?? null,
    tpm: status?.tpm ?? null,
    data: status?.data
      ? {
          state: status.data.state,
          createdThisBoot: status.data.createdThisBoot,
          recoveryKeyFingerprint: status.data.recoveryKeyFingerprint,
        }
      : null,
    memory: status?.memory
      ? { totalBytes: Number(status.memory.totalBytes), availableBytes: Number(status.memory.availableBytes) }
      : null,
    pid1RssBytes: Number(status?.pid1RssBytes ?? 0),
    pcrs: status?.pcrs ?? {},
    services: (status?.services ?? []).map(serviceJson),
    timeline: (status?.timeline ?? []).map(({ stage, atMs }) => ({ stage, atMs })),
  };
}

export function serviceJson(service: ServiceStatus) {
  const { name, restarts, lastExit, healthy, inStateMs } = service;
  return { name, state: nameOf(ServiceState, service.state), inStateMs, restarts, healthy, lastExit };
}

export function logLineJson({ name, severity, atMs, time, text }: LogLine) {
  return { name, severity, atMs, time: iso(time), text };
}

export function nodeTable(nodes: readonly Node[], now: Date): string[] {
  return table(
    ['NODE', 'STATE', 'HEARTBEAT', 'VERSION', 'SERVICES', 'ROLES', 'ADDRESSES'],
    nodes.map(({ nodeId, state, lastHeartbeatAt, status }) => [
      nodeId,
      nameOf(NodeState, state),
      lastHeartbeatAt ? `${duration(now.getTime() - timestampDate(lastHeartbeatAt).getTime())} ago` : '-',
      status?.version ?? '-',
      status ? `${status.services.filter(({ healthy }) => healthy).length}/${status.services.length}` : '-',
      status?.roles.join(',') || '-',
      addressSummary(status?.addresses ?? []),
    ]),
  );
}

function addressSummary([first, ...others]: readonly string[]): string {
  if (first === undefined) return '-';
  return `${first.replace(/\/\d+$/, '')}${others.length === 0 ? '' : ` +${others.length}`}`;
}

export function serviceTable(services: readonly ServiceStatus[]): string[] {
  return table(
    ['SERVICE', 'STATE', 'FOR', 'RESTARTS', 'LAST EXIT'],
    services.map((service) => [
      service.name,
      nameOf(ServiceState, service.state),
      duration(service.inStateMs),
      String(service.restarts),
      service.lastExit || '-',
    ]),
  );
}

/** @param fresh the node's own answer; absent when only the cluster's view is known */
export function nodeDescription(node: Node, fresh: NodeStatus | undefined, now: Date): string[] {
  const status = fresh ?? node.status;
  const lines = fields([
    ['Node', node.nodeId],
    ['State', nameOf(NodeState, node.state)],
    ['Registered', iso(node.registeredAt) ?? '-'],
    ['Heartbeat', iso(node.lastHeartbeatAt) ?? 'none since the curator started'],
    ['Certificate', `until ${iso(node.certificateNotAfter) ?? '-'}`],
    ['Version', status?.version ?? '-'],
    ['Roles', status?.roles.join(', ') || '-'],
    ['Addresses', status?.addresses ?? []],
    [
      'Booted',
      status?.bootTime
        ? `${iso(status.bootTime)} (${duration(now.getTime() - timestampDate(status.bootTime).getTime())} ago), slot ${status.slot}`
        : '-',
    ],
    ['Boot ID', status?.bootId ?? '-'],
    ['Stage', status?.stage ?? '-'],
    ['Secure Boot', status?.secureBoot ?? '-'],
    ['TPM', status?.tpm ?? '-'],
    ['Data', status?.data ? `${status.data.state}${status.data.createdThisBoot ? ', made this boot' : ''}` : '-'],
    ['Recovery', status?.data?.recoveryKeyFingerprint || '-'],
    [
      'Memory',
      status?.memory
        ? `${megabytes(status.memory.availableBytes)} of ${megabytes(status.memory.totalBytes)} available; init ${megabytes(status.pid1RssBytes)}`
        : '-',
    ],
  ]);
  if (status === undefined) return lines;
  const pcrs = Object.entries(status.pcrs).sort(([a], [b]) => Number(a) - Number(b));
  return [
    ...lines,
    '',
    ...serviceTable(status.services),
    ...(pcrs.length === 0
      ? []
      : [
          '',
          ...table(
            ['PCR', 'SHA-256'],
            pcrs.map(([index, value]) => [index, value]),
          ),
        ]),
    '',
    ...table(
      ['AT', 'BOOT'],
      status.timeline.map(({ stage, atMs }) => [`${(atMs / 1000).toFixed(3).padStart(8)} s`, stage]),
    ),
  ];
}

/** `2026-11-20 15:27:18.817  W  init.data  text` */
export function logText({ name, severity, time, text }: LogLine): string {
  const at = (iso(time) ?? '').replace('T', ' ').replace('Z', '');
  return `${at}  ${severity.slice(0, 1)}  ${printable(name)}  ${printable(text)}`;
}

export function iso(timestamp: Timestamp | undefined): string | null {
  return timestamp === undefined ? null : timestampDate(timestamp).toISOString();
}

export function nameOf(enumeration: Readonly<Record<string, number>>, value: number): string {
  return Object.keys(enumeration).find((name) => enumeration[name] === value) ?? `UNKNOWN(${value})`;
}
