/**
 * `npm run demo`: from this checkout to a node that answers. Builds the image, makes an owner, boots one machine with
 * Secure Boot and a TPM, takes ownership of it, and asks it how it is. No privileges, nothing outside its own directory
 * but the shared cache and the development keys.
 */
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { command, runCommandLine } from '../tools/host/command-line.ts';
import { formatDuration, type Progress } from '../tools/host/progress.ts';
import { buildImage } from '../tools/mkimage/build.ts';
import { developmentKeys } from '../tools/mkimage/keys.ts';
import { narrateBoot } from './lab/boot-narration.ts';
import { type BuiltImage, readBuiltImage } from './lab/built-image.ts';
import { bootTimeline, nodeConsole, type TimelineEntry } from './lab/node-console.ts';
import { type DescribedNode, Operator, operatorEndpoints } from './lab/operator.ts';
import { createMachine, type Machine } from './machine/machine.ts';
import { makeSecureFirmware } from './machine/secure-firmware.ts';

const BOOT_DEADLINE_MS = 600_000;
const SHUTDOWN_DEADLINE_MS = 120_000;

interface DemoOptions {
  readonly exit: boolean;
  readonly json: boolean;
  readonly memoryMib: number;
  /** Where disk, TPM, keys and logs lie; removed at the end unless the user named it. */
  readonly directory: string;
  readonly progress: Progress;
  readonly signal: AbortSignal;
  readonly print: (line: string) => void;
}

interface DemoNode {
  readonly id: string;
  readonly state: string;
  readonly roles: readonly string[];
  readonly version: string;
  readonly services: readonly { readonly name: string; readonly state: string }[];
  readonly pcrs: {
    readonly predicted: Readonly<Record<string, string>>;
    readonly actual: Readonly<Record<string, string>>;
  };
}

interface DemoResult {
  readonly nodes: readonly DemoNode[];
  readonly timeline: readonly TimelineEntry[];
}

const demoCommand = command({
  name: 'demo',
  summary: 'Builds an image, boots a node from it, takes ownership of it, and shows what it says',
  description:
    'Everything runs in one virtual machine with Secure Boot and a TPM, as the current user. Without --exit the node stays\n' +
    'until Ctrl-C, with its ports open on this machine only.',
  options: {
    exit: { type: 'boolean', summary: 'switch the node off and end as soon as it has answered' },
    json: { type: 'boolean', summary: 'print the result as JSON on stdout; everything else is on stderr' },
    memory: { type: 'integer', value: 'MIB', default: 1024, minimum: 384, summary: "the machine's memory" },
    keep: {
      type: 'string',
      value: 'DIR',
      summary: 'keep image, disk, TPM, keys and logs in DIR, which must be new or empty',
    },
  },
  run: async ({ exit, json, memory, keep }, { signal, progress, print }) => {
    const directory = keep === undefined ? await mkdtemp(join(tmpdir(), 'ashlar-demo-')) : await emptyDirectory(keep);
    try {
      return await runDemo({ exit, json, memoryMib: memory, directory, progress, signal, print });
    } finally {
      if (keep === undefined) await rm(directory, { recursive: true, force: true });
    }
  },
});

async function runDemo(options: DemoOptions): Promise<number> {
  const { directory, progress, signal } = options;
  const startMs = performance.now();
  signal.throwIfAborted();
  const image = await buildDemoImage(options);
  const owner = join(directory, 'owner');
  await progress.step('owner and recovery keys', () => Operator.prepare(owner));
  const firmware = await makeSecureFirmware(join(directory, 'firmware'), await developmentKeys(), {
    progress,
    allowDrift: true,
  });
  await using machine = await createMachine({
    directory: join(directory, 'machine'),
    authorityDirectory: join(directory, 'tpm-authority'),
    firmware,
    image: { path: image.diskImagePath, format: 'raw' },
    memoryMib: options.memoryMib,
    network: { kind: 'user', guestPorts: [7400, 7401] },
    nodeParameters: await Operator.nodeParameters(owner),
    note: (text) => progress.note(text),
  });
  // Until the node has answered, Ctrl-C ends everything at once; afterwards it is the way to switch it off.
  const cutPower = () => void machine.powerCut();
  signal.addEventListener('abort', cutPower);
  const { nodeId, fingerprint, timeline } = await boot(machine, options);
  const operator = new Operator({
    ownerDirectory: owner,
    home: join(directory, 'config'),
    endpoints: await operatorEndpoints(machine),
  });
  const described = await progress.step('take ownership, and ask the node how it is', async () => {
    await operator.takeOwnership(fingerprint);
    return operator.waitForNode(nodeId);
  });
  const result: DemoResult = { nodes: [demoNode(described, image)], timeline };
  const problems = problemsOf(result);
  if (options.json) options.print(JSON.stringify(result, undefined, 2));
  else for (const line of summary(result, startMs)) options.print(line);
  for (const problem of problems) progress.warn(problem);
  signal.removeEventListener('abort', cutPower);
  if (!options.exit) await stay(nodeId, image, options);
  await progress.step('switch the node off', async () => {
    await machine.pressPowerButton();
    await machine.waitForPowerOff(SHUTDOWN_DEADLINE_MS);
  });
  return problems.length === 0 ? 0 : 1;
}

async function buildDemoImage({ directory, progress, signal }: DemoOptions): Promise<BuiltImage> {
  const outDir = join(directory, 'image');
  await buildImage({ outDir, allowDrift: true, progress, signal });
  return readBuiltImage(outDir);
}

async function boot(machine: Machine, { progress }: DemoOptions) {
  return progress.step('boot', async (report) => {
    using _narration = narrateBoot(machine, (line) => progress.note(line), report);
    await machine.powerOn();
    const ready = await machine.waitForLine(nodeConsole.ready, { deadlineMs: BOOT_DEADLINE_MS });
    const lines = machine.linesSinceMark();
    const fingerprint = lines
      .map((line) => nodeConsole.fingerprint.exec(line.text)?.[1])
      .find((found) => found !== undefined);
    if (fingerprint === undefined) throw new Error('cannot take ownership: the console shows no fingerprint');
    return { nodeId: nodeConsole.ready.exec(ready.text)?.[1] ?? '', fingerprint, timeline: bootTimeline(lines) };
  });
}

function demoNode(described: DescribedNode, image: BuiltImage): DemoNode {
  const predicted = image.predictedPcrs;
  return {
    id: described.id,
    state: described.state,
    roles: described.roles,
    version: described.version,
    services: described.services.map(({ name, state }) => ({ name, state })),
    pcrs: {
      predicted,
      actual: Object.fromEntries(Object.keys(predicted).map((index) => [index, described.pcrs[index] ?? ''])),
    },
  };
}

/** What is not as it must be, in sentences. */
function problemsOf(result: DemoResult): string[] {
  return result.nodes.flatMap((node) => [
    ...(node.state === 'UP' ? [] : [`${node.id} is ${node.state}, not UP`]),
    ...node.services.filter(({ state }) => state !== 'HEALTHY').map(({ name, state }) => `service ${name} is ${state}`),
    ...Object.entries(node.pcrs.predicted)
      .filter(([index, value]) => node.pcrs.actual[index] !== value)
      .map(([index, value]) => `PCR ${index} is ${node.pcrs.actual[index] || 'missing'}, predicted was ${value}`),
  ]);
}

function summary(result: DemoResult, startMs: number): string[] {
  const lines = result.nodes.flatMap((node) => [
    '',
    `${node.id} is ${node.state}: Ashlar ${node.version}, ${node.roles.join(', ')}`,
    `  services  ${node.services.map(({ name, state }) => `${name} ${state.toLowerCase()}`).join(', ')}`,
    ...Object.entries(node.pcrs.predicted).map(([index, value]) => {
      const isEqual = node.pcrs.actual[index] === value;
      return `  ${`PCR ${index}`.padEnd(8)}  ${value.slice(0, 16)}…  ${isEqual ? 'as predicted before it was switched on' : 'NOT as predicted'}`;
    }),
  ]);
  return [...lines, `  took      ${formatDuration(performance.now() - startMs)}`];
}

/** Tells what can be tried, and waits for Ctrl-C. */
async function stay(nodeId: string, image: BuiltImage, { directory, print, signal }: DemoOptions): Promise<void> {
  const config = `XDG_CONFIG_HOME=${join(directory, 'config')}`;
  for (const line of [
    '',
    'The node runs. In another terminal, in this checkout:',
    '',
    `  export ${config}`,
    '  npx ashlarctl cluster status',
    '  npx ashlarctl node list',
    `  npx ashlarctl node services ${nodeId}`,
    `  npx ashlarctl node logs ${nodeId} --follow`,
    `  npx mkimage inspect ${image.diskImagePath}`,
    '',
    `Its console: ${join(directory, 'machine', 'serial.log')}`,
    'Ctrl-C switches it off.',
  ]) {
    print(line);
  }
  if (!signal.aborted) await once(signal, 'abort');
}

async function emptyDirectory(path: string): Promise<string> {
  const directory = resolve(path);
  await mkdir(directory, { recursive: true });
  if ((await readdir(directory)).length > 0) {
    throw new Error(`cannot keep the demo in ${directory}: it is not empty; name a new directory`);
  }
  return directory;
}

process.exitCode = await runCommandLine(demoCommand, process.argv.slice(2));
