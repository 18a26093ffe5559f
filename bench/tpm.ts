/**
 * What the TPM library costs, natively under swtpm: the unsealing that a boot does, a quote, what it takes to load, and
 * the replay of an event log. A command takes a real chip between a millisecond and a second, so their number says more
 * about a machine than the time here does.
 */
import { execFile } from 'node:child_process';
import { createHash, generateKeyPairSync, randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { build } from 'esbuild';
import { decodeEventLog } from '../src/formats/event-log.ts';
import { replayEventLog } from '../src/measure/event-log-replay.ts';
import { signPcr11 } from '../src/measure/pcr-signature.ts';
import { encodeLog } from '../src/tpm/evidence-fixture.ts';
import { sealSecret, unsealSecret } from '../src/tpm/sealing.ts';
import { type SoftwareTpm, startSoftwareTpm } from '../src/tpm/swtpm-fixture.ts';
import { Tpm } from '../src/tpm/tpm.ts';
import { type TpmBus, tapTpm } from '../src/tpm/tpm-bus-fixture.ts';

const REPOSITORY = join(import.meta.dirname, '..');
const LOG_BYTES = 100_000;
const POLICY_REF = 'ashlar-epoch-1';

export interface TpmCosts {
  /** From opening the device to the secret in hand, the whole policy met. */
  readonly unsealMs: number[];
  /** Opening the device, making the attestation key, quoting sixteen registers. */
  readonly quoteMs: number[];
  /** In a fresh process: loading the library's code, and opening a TPM, which loads tpm2-tss. */
  readonly loadCodeMs: number[];
  readonly openMs: number[];
  /** Processor time of both: what is left when the machine is busy with other things. */
  readonly loadProcessorMs: number[];
  /** Decoding a log of 100 kB and replaying its registers. */
  readonly replayMs: number[];
  readonly unsealCommands: string[];
  readonly quoteCommands: string[];
}

export async function benchTpm(count: number, report: (text: string) => void): Promise<TpmCosts> {
  await using machine = await startSoftwareTpm();
  await using bus = await tapTpm(machine);
  const unseal = prepareUnseal(machine);
  report('unseal and quote');
  const unsealMs = timed(count, () => unseal(machine.tcti));
  const quoteMs = timed(count, () => quote(machine.tcti));
  const unsealCommands = await commandsOf(bus, () => unseal(bus.tcti));
  const quoteCommands = await commandsOf(bus, () => quote(bus.tcti));
  report('replay an event log');
  const log = logOf(LOG_BYTES);
  const replayMs = timed(count, () => replayEventLog(decodeEventLog(log)));
  report('load the library');
  const loads = await loadTimes(machine.tcti, count);
  return {
    ...{ unsealMs, quoteMs, replayMs, unsealCommands, quoteCommands },
    loadCodeMs: loads.map(({ codeMs }) => codeMs),
    openMs: loads.map(({ openMs }) => openMs),
    loadProcessorMs: loads.map(({ processorMs }) => processorMs),
  };
}

/** The first time costs more, and happens once in a process: it is not counted. */
function timed(count: number, call: () => unknown): number[] {
  call();
  return Array.from({ length: count }, () => {
    const start = performance.now();
    call();
    return performance.now() - start;
  });
}

async function commandsOf(bus: TpmBus, call: () => void): Promise<string[]> {
  await bus.forget();
  call();
  return bus.commands();
}

/** Seals as a first boot does; the result unseals as every boot does. */
function prepareUnseal(machine: SoftwareTpm): (tcti: string) => void {
  const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const policy = { policyKeyPem: publicKey.export({ format: 'pem', type: 'spki' }).toString(), policyRef: POLICY_REF };
  const secret = randomBytes(32);
  using tpm = new Tpm(machine.tcti);
  using rootKey = tpm.storageRootKey();
  tpm.extendPcr(7, createHash('sha256').update('Secure Boot').digest());
  tpm.extendPcr(11, createHash('sha256').update('image').digest());
  const pcr11 = tpm.readPcrs([11]).get(11) ?? Buffer.alloc(0);
  const signatures = [signPcr11({ pcr11, policyRef: POLICY_REF, key: privateKey })];
  const sealed = sealSecret(tpm, rootKey, secret, policy);
  return (tcti) => {
    using booted = new Tpm(tcti);
    const known = booted.persistentStorageRootKey();
    if (known === undefined) throw new Error('cannot unseal: the storage root key is gone');
    const found = unsealSecret(booted, known, sealed, policy, signatures);
    if (!found.equals(secret)) throw new Error('cannot unseal: it is another secret');
  };
}

function quote(tcti: string): void {
  using tpm = new Tpm(tcti);
  using ak = tpm.createAk();
  tpm.quote(
    ak,
    randomBytes(32),
    Array.from({ length: 16 }, (_, index) => index),
  );
}

/** Events as firmware writes them: many small ones, a few with a list of keys. */
function logOf(sizeBytes: number): Uint8Array {
  const event = (index: number) => ({
    pcr: index % 15,
    type: index % 20 === 0 ? 0x8000_0001 : 0x0d,
    data: randomBytes(index % 20 === 0 ? 3000 : 60),
  });
  let count = 1;
  let log = encodeLog([event(1)]);
  while (log.length < sizeBytes) {
    count = Math.ceil((count * (sizeBytes + 1)) / log.length);
    log = encodeLog(Array.from({ length: count }, (_, index) => event(index)));
  }
  return log;
}

interface LoadTimes {
  readonly codeMs: number;
  readonly openMs: number;
  readonly processorMs: number;
}

/** One file, as the image has its programs; koffi is found beside it. */
async function loadTimes(tcti: string, count: number): Promise<LoadTimes[]> {
  const directory = await mkdtemp(join(REPOSITORY, 'out', 'tpm-'));
  try {
    const options = { bundle: true, platform: 'node', format: 'cjs', minify: true, logLevel: 'silent' } as const;
    const library = join(directory, 'node-tpm2.cjs');
    const entry = join(REPOSITORY, 'src/tpm/node-tpm2.ts');
    await build({ ...options, entryPoints: [entry], outfile: library, external: ['koffi'] });
    const program = join(directory, 'load.cjs');
    await writeFile(program, LOAD_PROGRAM);
    const times: LoadTimes[] = [];
    for (let run = 0; run < count; run += 1) {
      const { stdout } = await promisify(execFile)(process.execPath, [program, tcti]);
      times.push(JSON.parse(stdout) as LoadTimes);
    }
    return times;
  } finally {
    await rm(directory, { recursive: true });
  }
}

const LOAD_PROGRAM = `
const start = performance.now();
const before = process.cpuUsage();
const { Tpm } = require('./node-tpm2.cjs');
const loaded = performance.now();
new Tpm(process.argv[2]);
const { user, system } = process.cpuUsage(before);
const processorMs = (user + system) / 1000;
console.log(JSON.stringify({ codeMs: loaded - start, openMs: performance.now() - loaded, processorMs }));
`;
