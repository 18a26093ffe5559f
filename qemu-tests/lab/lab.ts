/**
 * Where VM tests live: an image built once for the run, firmware with its keys enrolled, machines that end with the
 * test, and evidence when it fails.
 *
 *     vmTest('a promise', async (lab) => {
 *       const machine = await lab.machine();
 *       await machine.powerOn();
 *       await machine.waitForLine(nodeConsole.ready, { deadlineMs: lab.bootDeadlineMs });
 *     });
 */
import { existsSync } from 'node:fs';
import { mkdir, readFile, rename, rm } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { type TestContext, test } from 'node:test';
import { encodeNodeParameters, type NodeParameters } from '../../src/formats/node-parameters.ts';
import { createProgress } from '../../tools/host/progress.ts';
import { buildImage } from '../../tools/mkimage/build.ts';
import { developmentKeys } from '../../tools/mkimage/keys.ts';
import { createMachine, type Firmware, type Machine, type MachineOptions } from '../machine/machine.ts';
import { type FirmwareState, makeSecureFirmware, type SecureBootKeys } from '../machine/secure-firmware.ts';
import { type BuiltImage, readBuiltImage } from './built-image.ts';
import { Operator, operatorEndpoints } from './operator.ts';
import { evidenceDirectory, openRunDirectory, type RunDirectory } from './run-directory.ts';

/** For a whole boot; far above what one takes, since a wait that ends early proves nothing on a busy host. */
const BOOT_DEADLINE_MS = 300_000;
const SHUTDOWN_DEADLINE_MS = 120_000;

export class Lab {
  readonly context: TestContext;
  readonly run: RunDirectory;
  /** Of this test. */
  readonly directory: string;
  readonly image: BuiltImage;
  readonly firmware: Firmware;
  readonly bootDeadlineMs = BOOT_DEADLINE_MS;
  readonly shutdownDeadlineMs = SHUTDOWN_DEADLINE_MS;
  readonly #machines: Machine[] = [];
  #firmwares = 0;

  constructor(context: TestContext, run: RunDirectory, directory: string, image: BuiltImage, firmware: Firmware) {
    this.context = context;
    this.run = run;
    this.directory = directory;
    this.image = image;
    this.firmware = firmware;
  }

  /** A machine with the image in its disk, switched off. It ends with the test. */
  async machine(overrides: Partial<MachineOptions> = {}): Promise<Machine> {
    const machine = await createMachine({
      directory: join(this.directory, `machine-${this.#machines.length}`),
      authorityDirectory: join(this.run.path, 'tpm-authority'),
      firmware: this.firmware,
      image: { path: this.image.diskImagePath, format: 'raw' },
      network: { kind: 'user', guestPorts: [7400, 7401], restrict: true },
      nodeParameters: await this.nodeParameters(),
      note: (text) => this.context.diagnostic(text),
      ...overrides,
    });
    this.#machines.push(machine);
    return machine;
  }

  /** The certificate (PEM) of the authority that certified the TPMs of this run's machines. */
  get tpmAuthorityPath(): string {
    return join(this.run.path, 'tpm-authority', 'issuer-certificate.pem');
  }

  /** Firmware in another state than this test's own, or of another release, or with other keys than the image's. */
  async firmwareIn(state: FirmwareState, keys?: SecureBootKeys): Promise<Firmware> {
    const directory = join(this.directory, `firmware-${this.#firmwares++}`);
    const options = { progress: createProgress(), allowDrift: true };
    return makeSecureFirmware(directory, keys ?? (await developmentKeys()), options, state);
  }

  /** Parameters of the run's owner, changed by `change`. */
  async nodeParameters(change: (parameters: NodeParameters) => NodeParameters = (same) => same): Promise<Uint8Array> {
    const owner = await this.run.shared('owner', (directory) => Operator.prepare(directory));
    const parameters = JSON.parse(await readFile(join(owner, 'node-parameters.json'), 'utf8')) as NodeParameters;
    return encodeNodeParameters(change(parameters));
  }

  /** The operator of a machine that has come up, with a home of its own. */
  async operator(machine: Machine, name = 'operator'): Promise<Operator> {
    const owner = await this.run.shared('owner', (directory) => Operator.prepare(directory));
    return new Operator({
      ownerDirectory: owner,
      home: join(this.directory, name),
      endpoints: await operatorEndpoints(machine),
    });
  }

  async dispose(): Promise<void> {
    for (const machine of this.#machines) await machine[Symbol.asyncDispose]();
  }
}

/** A test that boots. When it fails, all that its machines left is kept and named in the output. */
export function vmTest(name: string, body: (lab: Lab) => Promise<void>): void {
  test(name, async (context) => {
    const run = await openRunDirectory();
    const image = await runImage(run);
    const slug = name
      .toLowerCase()
      .replaceAll(/[^a-z0-9]+/g, '-')
      .slice(0, 80);
    const directory = join(run.path, `test-${slug}`);
    await mkdir(directory, { recursive: true });
    const firmware = await makeSecureFirmware(join(directory, 'firmware'), await developmentKeys(), {
      progress: createProgress(),
      allowDrift: true,
    });
    const lab = new Lab(context, run, directory, image, firmware);
    let failed = true;
    try {
      await body(lab);
      failed = false;
    } finally {
      await lab.dispose();
      if (failed) context.diagnostic(`evidence is in ${await keepEvidence(directory, slug)}`);
      else await rm(directory, { recursive: true, force: true });
    }
  });
}

/** The image all tests of this run boot. */
async function runImage(run: RunDirectory): Promise<BuiltImage> {
  const directory = await run.shared('image', async (outDir) => {
    // Drift is the lock's business, and its own test's: these must run next year, too.
    await buildImage({ outDir, allowDrift: true, progress: createProgress() });
  });
  return readBuiltImage(directory);
}

async function keepEvidence(directory: string, slug: string): Promise<string> {
  const kept = join(evidenceDirectory, slug);
  await rm(kept, { recursive: true, force: true });
  await mkdir(evidenceDirectory, { recursive: true });
  if (existsSync(directory)) await rename(directory, kept);
  return relative(process.cwd(), kept);
}
