/**
 * PID 1's side of attestation: one short-lived Worker (`attest.ts`) for each request, so that the event loop goes on.
 *
 *     agent ── nonce, credential ──▶ init ── and the SPKI of the node's TLS key ──▶ Worker ── TPM
 *
 * Init adds the TLS key itself: an agent that was taken over cannot have the TPM vouch for another one. All else passes
 * through as base64 of bounded length that nothing here decodes. The agent faces the network, so the TPM, of which there
 * is one, is lent for one request at a time, within a deadline, and rests as long as it worked before the next.
 */
import type { Worker } from 'node:worker_threads';
import { type Attestation, type AttestationIdentity, type InitParams, InitRefusal } from '../rpc/init-protocol.ts';
import type { KeyKind } from '../tpm/key-templates.ts';
import type { AttestMessage, AttestTask } from './attest-tpm.ts';
import { answerOf, startBundleWorker } from './bundle-worker.ts';

const WORKER_PATH = '/usr/lib/ashlar/attest.js';
const TPM = '/dev/tpmrm0';
/** Making an RSA endorsement key takes a slow discrete TPM the better part of a minute. */
const DEADLINE_MS = 60_000;
const REST_MIN_MS = 250;

export interface AttestorOptions {
  /** Stage 1 found a TPM. */
  readonly hasTpm: boolean;
  /** SubjectPublicKeyInfo (DER) of the key that the node API is served with. */
  readonly tlsSpki: Uint8Array;
  /** A device or a TCTI. @default `/dev/tpmrm0` */
  readonly tpm?: string;
  /** The Worker's bundle. @default `/usr/lib/ashlar/attest.js` */
  readonly workerPath?: string;
  /** @default 60 000 */
  readonly deadlineMs?: number;
  /** The shortest rest of the TPM after a request, successful or not. @default 250 */
  readonly restMinMs?: number;
}

/** Both reject with `InitRefusal`: UNAVAILABLE without a TPM or when it fails, BUSY while it works or rests. */
export interface Attestor {
  /** The TPM is asked once a boot; later answers are from memory. */
  attestationIdentity(): Promise<AttestationIdentity>;
  /** Also INVALID, when the TPM does not accept the credential. */
  attest(params: InitParams<'attest'>): Promise<Attestation>;
}

export function createAttestor(options: AttestorOptions): Attestor {
  const tpm = lendTpm(options);
  let identity: (AttestationIdentity & { readonly ekKind: KeyKind }) | undefined;
  const readIdentity = async () => {
    if (identity !== undefined) return identity;
    const answer = await tpm({ kind: 'identity' });
    if (answer.type !== 'identity') throw new Error(`cannot read the TPM's keys: the worker sent "${answer.type}"`);
    identity = answer.identity;
    return identity;
  };
  return {
    async attestationIdentity() {
      const { ekKind: _, ...told } = await readIdentity();
      return told;
    },
    async attest(params) {
      const { ekKind } = await readIdentity();
      const tlsSpki = Buffer.from(options.tlsSpki).toString('base64');
      const answer = await tpm({ kind: 'attest', ...params, tlsSpki, ekKind });
      if (answer.type !== 'attestation') throw new Error(`cannot attest: the worker sent "${answer.type}"`);
      return answer.attestation;
    },
  };
}

type Asked<T> = T extends AttestTask ? Omit<T, 'tpm'> : never;

/** Lends the TPM to one Worker at a time, and lets it rest after an attestation as long as that took. */
function lendTpm(options: AttestorOptions): (task: Asked<AttestTask>) => Promise<AttestMessage> {
  const { hasTpm, tpm = TPM, workerPath = WORKER_PATH, deadlineMs = DEADLINE_MS, restMinMs = REST_MIN_MS } = options;
  let worker: Worker | undefined;
  let isLent = false;
  let restsUntilMs = 0;
  return async (task) => {
    if (!hasTpm) throw new InitRefusal('UNAVAILABLE', 'this machine has no TPM: nothing can vouch for what it runs');
    if (isLent || worker !== undefined) throw new InitRefusal('BUSY', 'the TPM works for another caller; ask again');
    const restMs = Math.ceil(restsUntilMs - performance.now());
    if (restMs > 0) throw new InitRefusal('BUSY', `the TPM rests for ${restMs} ms more; ask again`);
    isLent = true;
    const startedMs = performance.now();
    try {
      const started = await startBundleWorker(workerPath, { ...task, tpm } as AttestTask);
      worker = started;
      // A Worker that native code does not let go of keeps the TPM: no second one is stuck beside it.
      started.once('exit', () => {
        worker = undefined;
      });
      const answer = await answerOf<AttestMessage>(started, {
        deadlineMs,
        late: () => new InitRefusal('UNAVAILABLE', `the TPM did not answer within ${deadlineMs / 1000} s`),
      });
      if (answer.type === 'refused')
        throw new InitRefusal(answer.isCredential ? 'INVALID' : 'UNAVAILABLE', answer.message);
      // The keys are read once a boot, and whoever reads them wants to attest next.
      if (answer.type === 'identity') return answer;
      restsUntilMs = restAfter(startedMs, restMinMs);
      return answer;
    } catch (error) {
      restsUntilMs = restAfter(startedMs, restMinMs);
      throw error;
    } finally {
      isLent = false;
    }
  };
}

function restAfter(startedMs: number, restMinMs: number): number {
  const nowMs = performance.now();
  return nowMs + Math.max(restMinMs, nowMs - startedMs);
}
