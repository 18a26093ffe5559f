/** `ashlarctl cluster …` */
import { isIP } from 'node:net';
import { userInfo } from 'node:os';
import { timestampDate } from '@bufbuild/protobuf/wkt';
import { NodeState } from '../../src/rpc/gen/ashlar/cluster/v1/cluster_pb.ts';
import { command, commandGroup, UsageError } from '../host/command-line.ts';
import { prepareCluster } from './cluster-prepare.ts';
import {
  COMMON_OPTIONS,
  checkEndpointOption,
  checkFingerprintOption,
  OVERRIDE_OPTION,
  printJson,
} from './command-options.ts';
import { connectCluster, parseOverrides } from './connection.ts';
import { openContexts, operatorCertificate } from './contexts.ts';
import { iso, nameOf } from './node-view.ts';
import { duration, fields, megabytes } from './table.ts';
import { takeOwnership } from './take-ownership.ts';

const prepare = command({
  name: 'prepare',
  summary: 'make the keys of a new cluster and the parameters for its first node',
  options: {
    'time-server': {
      type: 'string',
      value: 'ADDRESS',
      multiple: true,
      summary:
        'IP address of an NTP server that the node asks, eight at most; without one it follows its PTP clock, as virtual machines have one, or none',
    },
    'without-tpm': {
      type: 'boolean',
      summary: 'let the first node be a machine without TPM: its data key then lies unsealed beside the data',
    },
    json: COMMON_OPTIONS.json,
  },
  positionals: [{ name: 'directory', summary: 'a new directory for them', required: true }],
  async run(values, { print }) {
    for (const server of values['time-server'])
      if (isIP(server) === 0)
        throw new UsageError(
          `--time-server must be an IP address (a node has no resolver), got ${JSON.stringify(server)}`,
        );
    const prepared = await prepareCluster(values.directory, {
      timeServers: values['time-server'],
      isTpmRequired: !values['without-tpm'],
    });
    if (values.json) return printJson(print, prepared);
    for (const line of [
      ...fields([
        ['Directory', prepared.directory],
        ['Owner', prepared.ownerFingerprint],
        ['Recovery', prepared.recoveryFingerprint],
      ]),
      '',
      'Keep these safe, and a copy of them elsewhere:',
      '  owner.key     whoever has it owns the cluster; it is needed only to certify operators',
      '  recovery.key  opens the data of a node whose TPM will not; best kept offline',
      '',
      'Boot the first node with node-parameters.json (it holds no secret). Its console says "the cluster',
      'API\'s key is SHA256:…"; with that, own the cluster:',
      `  ashlarctl cluster take-ownership --endpoint HOST:7400 --fingerprint SHA256:… --owner ${values.directory}`,
    ])
      print(line);
  },
});

const own = command({
  name: 'take-ownership',
  summary: 'get an operator certificate of a cluster that is yours, and keep it as a context',
  description:
    "The fingerprint is the one of the cluster API's key on the console of the first node: it tells the node from an\nimpostor. The recovery key of the node's data is compared with the one in DIR; another one is refused.\nMay be repeated, also to replace an operator certificate that has expired.",
  options: {
    endpoint: { type: 'string', value: 'HOST:PORT', required: true, summary: 'the cluster API' },
    fingerprint: { type: 'string', value: 'SHA256:…', required: true, summary: "of the server's key" },
    owner: { type: 'string', value: 'DIR', required: true, summary: 'the directory that cluster prepare made' },
    operator: { type: 'string', value: 'NAME', summary: 'name in the certificate; your login name unless given' },
    context: { type: 'string', value: 'NAME', default: 'default', summary: 'name of the context' },
    'endpoint-override': OVERRIDE_OPTION,
    json: COMMON_OPTIONS.json,
  },
  async run(values, { print, signal }) {
    checkEndpointOption(values.endpoint);
    checkFingerprintOption(values.fingerprint);
    const context = await takeOwnership(openContexts(), {
      endpoint: values.endpoint,
      fingerprint: values.fingerprint,
      ownerDirectory: values.owner,
      contextName: values.context,
      operatorName: values.operator ?? loginName(),
      nodeEndpoints: parseOverrides(values['endpoint-override']),
      signal,
    });
    const validTo = operatorCertificate(context).validToDate.toISOString();
    if (values.json) {
      return printJson(print, {
        context: values.context,
        clusterId: context.clusterId,
        endpoint: context.endpoint,
        operator: context.operator.name,
        certificateNotAfter: validTo,
      });
    }
    for (const line of fields([
      ['Cluster', context.clusterId],
      ['Operator', `${context.operator.name}, certified until ${validTo}`],
      ['Context', `${values.context}, now the current one`],
    ]))
      print(line);
  },
});

const status = command({
  name: 'status',
  summary: 'the cluster at a glance',
  options: COMMON_OPTIONS,
  async run(values, { print, signal }) {
    using connection = await connectCluster(openContexts(), { context: values.context });
    const answer = await connection.call((cluster) => cluster.getClusterStatus({}, { signal }));
    const operatorUntil = operatorCertificate(connection.context).validToDate;
    const counts = answer.nodes.map(({ state, count }) => ({ state: nameOf(NodeState, state), count }));
    if (values.json) {
      return printJson(print, {
        clusterId: answer.clusterId,
        createdAt: iso(answer.createdAt),
        version: answer.version,
        endpoint: connection.context.endpoint,
        caFingerprint: answer.caFingerprint,
        caNotAfter: iso(answer.caNotAfter),
        operatorCertificateNotAfter: operatorUntil.toISOString(),
        nodes: Object.fromEntries(counts.map(({ state, count }) => [state, count])),
        etcd: answer.etcd && {
          version: answer.etcd.version,
          databaseBytes: Number(answer.etcd.databaseBytes),
          raftTerm: Number(answer.etcd.raftTerm),
          raftIndex: Number(answer.etcd.raftIndex),
          errors: answer.etcd.errors,
        },
      });
    }
    const { etcd } = answer;
    const leader = etcd === undefined || etcd.leader === 0n ? 'no leader' : 'has a leader';
    for (const line of fields([
      ['Cluster', answer.clusterId],
      ['Created', iso(answer.createdAt) ?? '-'],
      ['Endpoint', connection.context.endpoint],
      ['Version', answer.version],
      ['Nodes', counts.map(({ state, count }) => `${count} ${state}`).join(', ') || 'none yet'],
      [
        'etcd',
        etcd === undefined
          ? '-'
          : `${etcd.version}, ${leader}, ${megabytes(etcd.databaseBytes)}, term ${etcd.raftTerm}`,
      ],
      ...(etcd?.errors.length ? [['Alarms', etcd.errors] as const] : []),
      [
        'CA',
        `${answer.caFingerprint}, until ${answer.caNotAfter ? timestampDate(answer.caNotAfter).getUTCFullYear() : '-'}`,
      ],
      [
        'Operator',
        `${connection.context.operator.name}, certified for another ${duration(operatorUntil.getTime() - Date.now())}`,
      ],
    ]))
      print(line);
  },
});

export const clusterCommands = commandGroup({
  name: 'cluster',
  summary: 'prepare, own and look at a cluster',
  commands: [prepare, own, status],
});

/** As an operator's name may be. */
function loginName(): string {
  const name = userInfo()
    .username.toLowerCase()
    .replace(/[^a-z0-9._-]/g, '-')
    .slice(0, 63);
  return /^[a-z0-9]/.test(name) ? name : 'operator';
}
