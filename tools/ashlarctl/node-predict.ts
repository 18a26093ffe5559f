/** `ashlarctl node predict` and `node reseal`: will the data still open, and what to do so that it does. */
import { decodeEventLog } from '../../src/formats/event-log.ts';
import { predictUnseal, type UnsealChange, type UnsealPrediction } from '../../src/measure/predict-unseal.ts';
import type { Sealing } from '../../src/rpc/gen/ashlar/node/v1/node_pb.ts';
import { RpcCallError } from '../../src/rpc/rpc-error.ts';
import { wrap } from '../host/command-help.ts';
import { command, UsageError } from '../host/command-line.ts';
import { COMMON_OPTIONS, OVERRIDE_OPTION, printJson } from './command-options.ts';
import { connectCluster, type NodeConnection } from './connection.ts';
import { openContexts } from './contexts.ts';
import { decodeInput, readInputFile } from './input-file.ts';
import { readSecureBootVariable } from './secure-boot-files.ts';
import { printable } from './table.ts';

const COLUMNS = 100;
const INDENT = ' '.repeat(6);
const MAX_UKI_BYTES = 512 * 1024 * 1024;

const NODE = [{ name: 'node', summary: 'its ID, or an unambiguous beginning of it', required: true }] as const;
const CHANGED = {
  db: {
    type: 'string',
    value: 'FILE',
    multiple: true,
    summary: 'what db will hold, whole: certificates, .esl, .auth or a file of efivarfs; as it is unless given',
  },
  dbx: { type: 'string', value: 'FILE', multiple: true, summary: 'what dbx will hold, whole; as it is unless given' },
  owner: {
    type: 'string',
    value: 'GUID',
    summary: 'owner of the entries made from certificates (the file owner-guid)',
  },
} as const;

export const nodePredict = command({
  name: 'predict',
  summary: 'will the data of a node open after a change of image, db or dbx',
  description:
    'Asks the node what its data is sealed to and how its firmware measured, and changes nothing. Exit code 0: it will\nopen; 1: it will not, and what to do.',
  options: {
    ...COMMON_OPTIONS,
    'endpoint-override': OVERRIDE_OPTION,
    uki: { type: 'string', value: 'FILE', required: true, summary: 'the image that is to boot (.efi)' },
    ...CHANGED,
  },
  positionals: NODE,
  async run(values, { print, signal }) {
    const change = await readChange(values);
    using connection = await connectCluster(openContexts(), {
      context: values.context,
      overrides: values['endpoint-override'],
    });
    const node = await connection.node(values.node);
    const sealing = await sealingOf(node, signal);
    const prediction = await predictFor(node, { sealing, uki: values.uki, change, signal });
    if (values.json) printJson(print, predictionJson(node.nodeId, sealing, prediction));
    else for (const line of predictionText(node.nodeId, prediction)) print(line);
    return prediction.unseals ? 0 : 1;
  },
});

export const nodeReseal = command({
  name: 'reseal',
  summary: 'have the data of a node sealed anew at its next boot',
  description:
    'To the policy of the image that boots then; with --pcr7, or with what db or dbx will hold, also to a Secure Boot\nstate that is yet to come: then the data opens before and after that change. Reboot the node for it to happen.',
  options: {
    ...COMMON_OPTIONS,
    'endpoint-override': OVERRIDE_OPTION,
    pcr7: { type: 'string', value: 'HEX', summary: 'the PCR 7 to come, as node predict shows it' },
    uki: { type: 'string', value: 'FILE', summary: 'with --db or --dbx: the image that boots under them (.efi)' },
    ...CHANGED,
    reason: { type: 'string', value: 'TEXT', default: 'asked for by ashlarctl', summary: "why, for the node's log" },
  },
  positionals: NODE,
  async run(values, { print, signal }) {
    const { uki } = values;
    const changesVariables = values.db.length + values.dbx.length > 0;
    if (changesVariables && values.pcr7 !== undefined)
      throw new UsageError('--pcr7 and --db or --dbx exclude each other');
    if (changesVariables !== (uki !== undefined))
      throw new UsageError('--uki goes with --db or --dbx, and they with it');
    if (values.pcr7 !== undefined && !/^[0-9a-f]{64}$/.test(values.pcr7)) {
      throw new UsageError('--pcr7 takes 64 lower-case hexadecimal digits');
    }
    const change = uki === undefined ? undefined : await readChange({ ...values, uki });
    using connection = await connectCluster(openContexts(), {
      context: values.context,
      overrides: values['endpoint-override'],
    });
    const node = await connection.node(values.node);
    const sealing = await sealingOf(node, signal);
    const predicted =
      change === undefined || uki === undefined
        ? undefined
        : predictedPcr7(await predictFor(node, { sealing, uki, change, signal }));
    const pcr7 = values.pcr7 ?? predicted ?? '';
    await node.call((client) => client.requestReseal({ reason: values.reason, pcr7 }, { signal }));
    if (values.json) return printJson(print, { nodeId: node.nodeId, requested: true, pcr7: pcr7 === '' ? null : pcr7 });
    print(`${node.nodeId} seals its data anew at its next boot:`);
    print(`  ashlarctl node reboot ${node.nodeId}`);
    if (pcr7 !== '') print(`It then opens also with PCR 7 ${pcr7}.`);
  },
});

async function readChange(values: {
  readonly uki: string;
  readonly db: readonly string[];
  readonly dbx: readonly string[];
  readonly owner: string | undefined;
}): Promise<UnsealChange> {
  return {
    uki: await readInputFile(values.uki, 'the UKI', MAX_UKI_BYTES),
    ...(values.db.length > 0 && { db: await readSecureBootVariable(values.db, values.owner) }),
    ...(values.dbx.length > 0 && { dbx: await readSecureBootVariable(values.dbx, values.owner) }),
  };
}

async function sealingOf(node: NodeConnection, signal: AbortSignal): Promise<Sealing> {
  try {
    const { sealing } = await node.call((client) => client.getSealing({}, { signal }));
    if (sealing !== undefined) return sealing;
  } catch (error) {
    if (!(error instanceof RpcCallError && error.code === 'FAILED_PRECONDITION')) throw error;
    throw new Error(`nothing to predict: ${error.details} (${node.nodeId})`, { cause: error });
  }
  throw new Error(`cannot tell what the data of ${node.nodeId} is sealed to: the answer is empty`);
}

async function predictFor(
  node: NodeConnection,
  asked: {
    readonly sealing: Sealing;
    readonly uki: string;
    readonly change: UnsealChange;
    readonly signal: AbortSignal;
  },
): Promise<UnsealPrediction> {
  const { signal, sealing, change } = asked;
  const { eventLog } = await node.call((client) => client.getEventLog({}, { signal }));
  const log = decodeInput(`the event log of ${node.nodeId}`, () => decodeEventLog(eventLog));
  return decodeInput(asked.uki, () => predictUnseal(sealing, log, change));
}

/** The PCR 7 to seal to, of a change that needs nothing else. */
function predictedPcr7({ pcr7, checks }: UnsealPrediction): string {
  const other = checks.find(({ name, passed }) => name !== 'pcr7' && !passed);
  if (other !== undefined || pcr7 === undefined) {
    throw new Error(
      `sealing anew would not help: ${other?.detail ?? 'the firmware does not run the image'}; ${other?.wayOut ?? ''}`,
    );
  }
  return hex(pcr7.value);
}

function predictionText(nodeId: string, { unseals, checks }: UnsealPrediction): string[] {
  const indented = (text: string, first: string) =>
    wrap(printable(text), COLUMNS - INDENT.length).map((line, index) => `${index === 0 ? first : INDENT}${line}`);
  return [
    ...checks.flatMap(({ passed, detail, wayOut, command: todo }) => [
      ...indented(detail, passed ? 'ok    ' : 'FAIL  '),
      ...(wayOut === undefined ? [] : indented(wayOut, '   →  ')),
      ...(todo === undefined ? [] : [`  ${todo.replace(' NODE ', ` ${nodeId} `)}`]),
    ]),
    unseals ? `The data of ${nodeId} will open.` : `The data of ${nodeId} will NOT open.`,
  ];
}

function predictionJson(nodeId: string, sealing: Sealing, { unseals, checks, pcr7, pcr11 }: UnsealPrediction) {
  const { policyRef, policyKeyFingerprint, generation, waiting } = sealing;
  return {
    nodeId,
    unseals,
    checks,
    sealedTo: {
      policyRef,
      policyKeyFingerprint,
      pcr7: sealing.pcr7,
      generation,
      ...(waiting !== undefined && {
        waiting: {
          policyRef: waiting.policyRef,
          policyKeyFingerprint: waiting.policyKeyFingerprint,
          pcr7: waiting.pcr7,
          generation: waiting.generation,
        },
      }),
    },
    predicted: { pcr7: pcr7 === undefined ? null : hex(pcr7.value), pcr11: hex(pcr11.value) },
  };
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}
