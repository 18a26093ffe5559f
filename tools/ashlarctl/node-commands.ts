/** `ashlarctl node …` */
import { writeFile } from 'node:fs/promises';
import { setTimeout as wait } from 'node:timers/promises';
import type { LogLine } from '../../src/rpc/gen/ashlar/node/v1/node_pb.ts';
import { RpcCallError } from '../../src/rpc/rpc-error.ts';
import { type Command, command, commandGroup, UsageError } from '../host/command-line.ts';
import { COMMON_OPTIONS, OVERRIDE_OPTION, printJson } from './command-options.ts';
import { connectCluster, type NodeConnection } from './connection.ts';
import { openContexts } from './contexts.ts';
import { nodeAttest } from './node-attest.ts';
import { nodePredict, nodeReseal } from './node-predict.ts';
import { nodeRecover } from './node-recover.ts';
import {
  logLineJson,
  logText,
  nodeDescription,
  nodeJson,
  nodeTable,
  serviceJson,
  serviceTable,
  statusJson,
} from './node-view.ts';

const TAIL_MAX = 100_000;

const NODE = [{ name: 'node', summary: 'its ID, or an unambiguous beginning of it', required: true }] as const;
const NODE_OPTIONS = { ...COMMON_OPTIONS, 'endpoint-override': OVERRIDE_OPTION } as const;

const connect = (values: { context: string | undefined; 'endpoint-override'?: readonly string[] }) =>
  connectCluster(openContexts(), { context: values.context, overrides: values['endpoint-override'] ?? [] });

const list = command({
  name: 'list',
  summary: 'all nodes and their states',
  description: 'UP: a heartbeat in the last 15 s. STALE: none for longer. NEW: registered, and none yet.',
  options: COMMON_OPTIONS,
  async run(values, { print, signal }) {
    using connection = await connect(values);
    const { nodes } = await connection.call((cluster) => cluster.listNodes({}, { signal }));
    if (values.json) return printJson(print, nodes.map(nodeJson));
    if (nodes.length === 0) return print('No node has registered yet.');
    for (const line of nodeTable(nodes, new Date())) print(line);
  },
});

const describe = command({
  name: 'describe',
  summary: 'all that a node says of itself',
  options: NODE_OPTIONS,
  positionals: NODE,
  async run(values, { print, signal, progress }) {
    using connection = await connect(values);
    const target = await connection.node(values.node);
    const { node } = await connection.call((cluster) => cluster.getNode({ nodeId: target.nodeId }, { signal }));
    if (node === undefined) throw new Error(`cannot describe ${target.nodeId}: the answer is empty`);
    // What the cluster knows is shown even of a node that does not answer.
    const fresh = await target
      .call((client) => client.getStatus({}, { signal }))
      .then(
        ({ status }) => status,
        (error: Error) => {
          signal.throwIfAborted();
          progress.warn(`${error.message}; showing what its last heartbeat said`);
          return undefined;
        },
      );
    if (values.json) return printJson(print, { ...nodeJson(node), ...(fresh && statusJson(fresh)) });
    for (const line of nodeDescription(node, fresh, new Date())) print(line);
  },
});

const services = command({
  name: 'services',
  summary: 'the services on a node',
  options: NODE_OPTIONS,
  positionals: NODE,
  async run(values, { print, signal }) {
    using connection = await connect(values);
    const node = await connection.node(values.node);
    const answer = await node.call((client) => client.listServices({}, { signal }));
    if (values.json) return printJson(print, answer.services.map(serviceJson));
    for (const line of serviceTable(answer.services)) print(line);
  },
});

const logs = command({
  name: 'logs',
  summary: 'log lines of a node',
  options: {
    ...NODE_OPTIONS,
    follow: { type: 'boolean', short: 'f', summary: 'go on with new lines until interrupted' },
    service: { type: 'string', value: 'NAME', summary: 'only the log of this service' },
    name: { type: 'string', value: 'NAME', summary: 'only the log of this name and those below it, such as init' },
    tail: { type: 'integer', value: 'N', default: 1000, maximum: TAIL_MAX, summary: 'how many past lines' },
  },
  positionals: NODE,
  async run(values, { print, signal }) {
    if (values.service !== undefined && values.name !== undefined) {
      throw new UsageError('--service and --name exclude each other');
    }
    using connection = await connect(values);
    const node = await connection.node(values.node);
    const show = (line: LogLine) => print(values.json ? JSON.stringify(logLineJson(line)) : logText(line));
    const query = { name: values.name ?? '', tail: values.tail, follow: values.follow };
    if (values.service === undefined) return await streamLogs(node, query, signal, show);

    // A service's log is somewhere in init's tree ("services.etcd"), so all is read and the rest left out.
    const isOfService = await serviceFilter(node, values.service, signal);
    const all = { name: '', tail: TAIL_MAX };
    const past: LogLine[] = [];
    await streamLogs(node, { ...all, follow: false }, signal, (line) => {
      if (isOfService(line)) past.push(line);
    });
    for (const line of past.slice(Math.max(0, past.length - values.tail))) show(line);
    if (!values.follow) return;
    let alreadySeen = past.length;
    await streamLogs(node, { ...all, follow: true }, signal, (line) => {
      if (!isOfService(line)) return;
      if (alreadySeen > 0) alreadySeen -= 1;
      else show(line);
    });
  },
});

const eventLog = command({
  name: 'event-log',
  summary: "the firmware's TPM event log of a node",
  options: {
    ...NODE_OPTIONS,
    out: { type: 'string', value: 'FILE', summary: 'where to write it; tpm2_eventlog FILE then reads it' },
  },
  positionals: NODE,
  async run(values, { print, signal }) {
    if (values.out === undefined && !values.json) throw new UsageError('give --out FILE, or --json');
    using connection = await connect(values);
    const node = await connection.node(values.node);
    const answer = await node.call((client) => client.getEventLog({}, { signal }));
    if (values.out !== undefined) await writeFile(values.out, answer.eventLog);
    const sizeBytes = answer.eventLog.length;
    if (values.json) {
      const where =
        values.out === undefined ? { base64: Buffer.from(answer.eventLog).toString('base64') } : { file: values.out };
      return printJson(print, { nodeId: node.nodeId, sizeBytes, ...where });
    }
    print(`${values.out}: ${sizeBytes} bytes from ${node.nodeId}`);
  },
});

const ending = (name: 'reboot' | 'poweroff', summary: string, said: string): Command =>
  command({
    name,
    summary,
    options: {
      ...NODE_OPTIONS,
      reason: { type: 'string', value: 'TEXT', default: 'asked for by ashlarctl', summary: "why, for the node's log" },
    },
    positionals: NODE,
    async run(values, { print, signal }) {
      using connection = await connect(values);
      const node = await connection.node(values.node);
      await node.call<object>((client) => {
        const call = name === 'reboot' ? client.reboot : client.powerOff;
        return call({ reason: values.reason }, { signal });
      });
      if (values.json) return printJson(print, { nodeId: node.nodeId, begun: name });
      print(`${node.nodeId} ${said}`);
    },
  });

export const nodeCommands = commandGroup({
  name: 'node',
  summary: 'look at nodes, attest them, predict and renew their sealing, reboot them, power them off',
  commands: [
    list,
    describe,
    services,
    logs,
    eventLog,
    nodeAttest,
    nodePredict,
    nodeReseal,
    nodeRecover,
    ending('reboot', 'shut a node down in order and boot it again', 'shuts down and reboots; see: ashlarctl node list'),
    ending('poweroff', 'shut a node down in order and switch it off', 'shuts down and switches itself off.'),
  ],
});

interface LogQuery {
  readonly name: string;
  readonly tail: number;
  readonly follow: boolean;
}

/** All lines in order; when following, for ever, across the ends of connections. */
async function streamLogs(
  node: NodeConnection,
  query: LogQuery,
  signal: AbortSignal,
  show: (line: LogLine) => void,
): Promise<void> {
  let { tail } = query;
  let hasBegun = false;
  while (!signal.aborted) {
    try {
      await node.call(async (client) => {
        for await (const { lines } of client.streamLogs({ ...query, tail }, { signal })) {
          hasBegun = true;
          tail = 0;
          for (const line of lines) show(line);
        }
      });
      return;
    } catch (error) {
      // A long stream ends when its connection reaches its greatest age, or when the agent restarts.
      const cause = error instanceof Error ? error.cause : undefined;
      const isTransient = cause instanceof RpcCallError && cause.code === 'UNAVAILABLE';
      if (!query.follow || !hasBegun || !isTransient) throw error;
      await wait(1000, undefined, { signal }).catch(() => undefined);
    }
  }
}

async function serviceFilter(
  node: NodeConnection,
  service: string,
  signal: AbortSignal,
): Promise<(line: LogLine) => boolean> {
  const { services: known } = await node.call((client) => client.listServices({}, { signal }));
  if (known.some(({ name }) => name === service)) return ({ name }) => name.split('.').includes(service);
  const names = known.map(({ name }) => name).join(', ');
  throw new Error(`cannot read the log of ${service}: ${node.nodeId} has no such service, only ${names}`);
}
