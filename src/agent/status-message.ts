/** What init says of the node, as messages of the node's API. */
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { timestampFromMs } from '@bufbuild/protobuf/wkt';
import {
  type LogLineSchema,
  type NodeStatus,
  NodeStatusSchema,
  ServiceState,
  type ServiceStatusSchema,
} from '../rpc/gen/ashlar/node/v1/node_pb.ts';
import type {
  NodeStatus as InitNodeStatus,
  ServiceStatus as InitServiceStatus,
  LogEntry,
} from '../rpc/init-protocol.ts';

export function nodeStatusMessage(status: InitNodeStatus, services: readonly InitServiceStatus[]): NodeStatus {
  return create(NodeStatusSchema, {
    nodeId: status.nodeId,
    version: status.version,
    bootId: status.bootId,
    slot: status.slot,
    stage: status.stage,
    bootTime: timestampFromMs(Math.round(status.bootTimeMs)),
    addresses: status.addresses,
    roles: status.roles,
    pcrs: Object.fromEntries(Object.entries(status.pcrs)),
    secureBoot: status.secureBoot,
    tpm: status.tpm,
    memory: {
      totalBytes: BigInt(Math.round(status.memory.totalBytes)),
      availableBytes: BigInt(Math.round(status.memory.availableBytes)),
    },
    pid1RssBytes: BigInt(Math.round(status.pid1RssBytes)),
    timeline: status.timeline,
    data: status.data,
    services: services.map(serviceMessage),
  });
}

/** Sorted by name where they are listed, so that a list is the same twice. */
export function serviceMessage(service: InitServiceStatus): MessageInitShape<typeof ServiceStatusSchema> {
  return {
    name: service.name,
    state: ServiceState[service.state],
    inStateMs: service.sinceMs,
    restarts: Math.min(service.restarts, 0xffff_ffff),
    lastExit: service.lastExit,
    healthy: service.healthy,
  };
}

export function logLineMessage(entry: LogEntry): MessageInitShape<typeof LogLineSchema> {
  const { name, severity, atMs, wallMs, text } = entry;
  return { name, severity, atMs, time: timestampFromMs(Math.round(wallMs)), text };
}
