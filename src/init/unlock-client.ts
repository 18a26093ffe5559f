/**
 * PID 1's side of opening the data partition: starts the Worker (`unlock.ts`), runs programs for it, holds the deadline,
 * and sees to it that PCR 11 is capped with `leave-initrd` however the Worker ends, and also when it does not end.
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import type { Worker } from 'node:worker_threads';
import { FSCK, MKFS } from '../storage/data-filesystem.ts';
import type {
  DataPartitionPaths,
  DataPartitionRequest,
  DataPartitionResult,
  DataRefusal,
} from '../storage/data-partition.ts';
import { startBundleWorker } from './bundle-worker.ts';
import { type MeasureOptions, measure } from './extend-pcr.ts';
import type { ProgramEnd, UnlockMessage } from './unlock.ts';

const WORKER_PATH = '/usr/lib/ashlar/unlock.js';
/** Making a file system on a slow, large disk takes longest. */
const DEADLINE_MS = 180_000;
const OUTPUT_LIMIT_BYTES = 4096;
const PHASE_PCR = 11;
const LEAVE_INITRD = createHash('sha256').update('leave-initrd').digest();

const PATHS: DataPartitionPaths = {
  tpm: '/dev/tpmrm0',
  efivars: '/sys/firmware/efi/efivars',
  pcrSignature: '/run/ashlar/tpm2-pcr-signature.json',
  headers: '/run/ashlar',
  mountPoint: '/data',
};

export interface UnlockOptions {
  /** The disk that stage 1 read the system from, `/dev/vda`. */
  readonly systemDisk: string;
  readonly system: {
    readonly partitionUuid: string;
    readonly policyKeyPem: string;
    readonly formerPolicyKeyPems: readonly string[];
    readonly sealing: { readonly policyRef: string };
  };
  readonly parameters: {
    readonly recovery: { readonly publicKeyPem: string };
    readonly tpm?: { readonly required: boolean };
  };
  /** Stage 1 found a TPM: then a machine without one is an error, whatever the parameters say. */
  readonly hasTpm: boolean;
  /** @default the node's */
  readonly paths?: DataPartitionPaths;
  /** The Worker's bundle. @default `/usr/lib/ashlar/unlock.js` */
  readonly workerPath?: string;
  /** @default 180 000 */
  readonly deadlineMs?: number;
  /** How PCR 11 is capped. @default by `/dev/tpm0`, within its deadline */
  readonly capping?: Omit<MeasureOptions, 'hasTpm'>;
}

export interface UnlockCallbacks {
  readonly signal: AbortSignal;
  /** A line for the console. */
  readonly onEvent: (text: string) => void;
}

export type UnlockResult = DataPartitionResult;

/** The data partition stays closed; `message` is for the console, `refusal` for code that branches. */
export class UnlockRefusedError extends Error {
  override readonly name = 'UnlockRefusedError';
  readonly refusal: DataRefusal | 'deadline';

  constructor(refusal: DataRefusal | 'deadline', message: string, options?: ErrorOptions) {
    super(message, options);
    this.refusal = refusal;
  }
}

/** What the Workers of unlock and recovery are told. */
export function dataPartitionRequest(options: UnlockOptions): DataPartitionRequest {
  return {
    systemDisk: options.systemDisk,
    systemPartitionUuid: options.system.partitionUuid,
    policy: {
      policyKeyPem: options.system.policyKeyPem,
      formerPolicyKeyPems: options.system.formerPolicyKeyPems,
      policyRef: options.system.sealing.policyRef,
    },
    recoveryPublicKeyPem: options.parameters.recovery.publicKeyPem,
    isTpmRequired: options.parameters.tpm?.required ?? true,
    hasTpm: options.hasTpm,
    paths: options.paths ?? PATHS,
  };
}

/**
 * Opens and mounts the data partition, creating it at first boot.
 *
 * Throws `UnlockRefusedError`, or the signal's reason; PCR 11 has `leave-initrd` then, and when this resolves. Any other
 * error may mean that it has not: then only a restart is safe.
 */
export async function unlockData(options: UnlockOptions, { signal, onEvent }: UnlockCallbacks): Promise<UnlockResult> {
  const { workerPath = WORKER_PATH, deadlineMs = DEADLINE_MS } = options;
  const deadline = AbortSignal.timeout(deadlineMs);
  let worker: Worker | undefined;
  let last: UnlockMessage | undefined;
  let failure: unknown;
  try {
    worker = await startBundleWorker(workerPath, dataPartitionRequest(options));
    last = await followWorker(worker, AbortSignal.any([signal, deadline]), onEvent);
  } catch (error) {
    // Not awaited: it ends when the library it may be stuck in returns, which can be never.
    void worker?.terminate();
    failure = error;
    if (!deadline.aborted || signal.aborted) throw error;
    const text = `cannot open the data partition within ${deadlineMs / 1000} s; restart the machine`;
    failure = new UnlockRefusedError('deadline', text, { cause: error });
    throw failure;
  } finally {
    // The Worker caps PCR 11 before its last message. If it sent none, or could not, the cap is ours to set.
    if (last === undefined || (last.type === 'refused' && last.refusal === 'tpm-failed'))
      await capAfter(failure ?? new Error(last?.message), options);
  }
  if (last.type === 'refused') throw new UnlockRefusedError(last.refusal, last.message);
  if (last.type !== 'opened') throw new Error(`cannot open the data partition: the worker ended with "${last.type}"`);
  return last.result;
}

/** Throws when PCR 11 can't be capped; then why there was need for it is the error's cause. */
async function capAfter(reason: unknown, { hasTpm, capping }: UnlockOptions): Promise<void> {
  try {
    await measure(PHASE_PCR, LEAVE_INITRD, { ...capping, hasTpm });
  } catch (error) {
    const text = `cannot leave the data partition closed: ${error instanceof Error ? error.message : String(error)}`;
    throw new Error(text, { cause: reason });
  }
}

/** Resolves with the Worker's last message. */
function followWorker(worker: Worker, signal: AbortSignal, onEvent: (text: string) => void): Promise<UnlockMessage> {
  const { promise, resolve, reject } = Promise.withResolvers<UnlockMessage>();
  const onMessage = (message: UnlockMessage) => {
    if (message.type === 'report') onEvent(message.text);
    else if (message.type === 'run') {
      runProgram(message.program, message.args, signal).then((end) => worker.postMessage(end), reject);
    } else resolve(message);
  };
  const onAbort = () => reject(signal.reason);
  signal.addEventListener('abort', onAbort, { once: true });
  if (signal.aborted) onAbort();
  worker.on('message', onMessage);
  worker.once('error', reject);
  worker.once('exit', (code) => reject(new Error(`cannot open the data partition: the worker ended with ${code}`)));
  return promise.finally(() => signal.removeEventListener('abort', onAbort));
}

/** Runs one of the two programs the Worker may ask for, and returns its end and the start of what it wrote. */
async function runProgram(program: string, args: readonly string[], signal: AbortSignal): Promise<ProgramEnd> {
  if (program !== MKFS && program !== FSCK) throw new Error(`cannot run ${program} for the unlock worker`);
  const child = spawn(program, [...args], { stdio: ['ignore', 'pipe', 'pipe'], env: {}, signal });
  const parts: Buffer[] = [];
  let kept = 0;
  const keep = (part: Buffer) => {
    if (kept < OUTPUT_LIMIT_BYTES) parts.push(part.subarray(0, OUTPUT_LIMIT_BYTES - kept));
    kept += part.length;
  };
  child.stdout.on('data', keep);
  child.stderr.on('data', keep);
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (exitCode) => resolve(exitCode));
  });
  return { code, output: Buffer.concat(parts).toString('utf8').trim() };
}
