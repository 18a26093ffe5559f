/**
 * Takes evidence of a node, the verifier's side:
 *
 *   1. who is the TPM: its endorsement key and its attestation key, believed in nothing yet
 *   2. a fresh secret, encrypted to the endorsement key for the name of the attestation key (MakeCredential)
 *   3. a quote with a fresh nonce, which binds nonce, secret and the TLS key that this connection has really seen
 *
 * What comes of it is for the judge; here only what has no shape fails.
 */
import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { objectName } from '../../src/formats/tpm-public-area.ts';
import { type Evidence, nonceBytes, quotedPcrs } from '../../src/measure/evidence.ts';
import { credentialSecretBytes, makeCredential } from '../../src/measure/make-credential.ts';
import type {
  AttestResponse,
  GetAttestationIdentityResponse,
  Sealing,
} from '../../src/rpc/gen/ashlar/node/v1/node_pb.ts';
import { RpcCallError } from '../../src/rpc/rpc-error.ts';

/** Longer than init gives the TPM, so that the node's own words arrive. */
export const ATTESTATION_TIMEOUT_MS = 90_000;
/** The TPM is lent to one caller at a time and rests between them. */
const BUSY_ATTEMPTS = 8;
const BUSY_PAUSE_MS = 1_500;

/** The calls that a service with attestation has. */
export interface AttestationCalls {
  identity(): Promise<GetAttestationIdentityResponse>;
  attest(request: {
    readonly nonce: Uint8Array;
    readonly credentialBlob: Uint8Array;
    readonly encryptedSecret: Uint8Array;
  }): Promise<AttestResponse>;
  /** What the data is sealed to; undefined when it is not. */
  sealing?(): Promise<Sealing | undefined>;
  /** SubjectPublicKeyInfo (DER) that the server has proved to hold in this connection's handshake. */
  tlsSpki(): Uint8Array;
}

export interface TakeEvidenceOptions {
  readonly signal: AbortSignal;
  /** @default the clock's */
  readonly now?: () => Date;
  /** @default 1500 */
  readonly busyPauseMs?: number;
}

/** Rejects with the error of a call, or when what the node calls its keys are none. */
export async function takeEvidence(node: AttestationCalls, options: TakeEvidenceOptions): Promise<Evidence> {
  const now = options.now ?? (() => new Date());
  const identity = await whenFree(options, () => node.identity());
  const secret = randomBytes(credentialSecretBytes);
  const nonce = randomBytes(nonceBytes);
  const credential = challenge(identity, secret);
  const answer = await whenFree(options, () => node.attest({ nonce, ...onlyPublic(credential) }));
  const sealing = await node.sealing?.();
  return {
    node: { id: answer.nodeId, version: answer.version, bootId: answer.bootId },
    time: now(),
    nonce,
    tlsSpki: node.tlsSpki(),
    ek: { publicArea: identity.ekPublic, certificates: identity.ekCertificates },
    ak: { publicArea: identity.akPublic },
    activation: { ...credential, secret },
    quote: { attest: answer.quote, signature: answer.signature },
    pcrs: new Map(quotedPcrs.map((index) => [index, answer.pcrs[index] ?? new Uint8Array()])),
    eventLog: answer.eventLog,
    ...(sealing !== undefined && { sealing: sealingClaim(sealing) }),
  };
}

function challenge(identity: GetAttestationIdentityResponse, secret: Uint8Array) {
  try {
    return makeCredential(identity.ekPublic, objectName(identity.akPublic), secret);
  } catch (cause) {
    throw new Error(
      `cannot challenge the TPM: what the node calls its endorsement key is none: ${cause instanceof Error ? cause.message : String(cause)}`,
      { cause },
    );
  }
}

/** What the challenge was made from must stay here until the TPM has answered. */
function onlyPublic({ credentialBlob, encryptedSecret }: ReturnType<typeof makeCredential>) {
  return { credentialBlob, encryptedSecret };
}

function sealingClaim({ policyRef, policyKeyFingerprint, pcr7, generation, anchor, resealed }: Sealing) {
  return { policyRef, policyKeyFingerprint, pcr7, generation, anchor, ...(resealed !== '' && { resealed }) };
}

/** Asks again while the TPM works for somebody else. */
async function whenFree<T>(options: TakeEvidenceOptions, call: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await call();
    } catch (error) {
      const said = error instanceof Error && error.cause instanceof RpcCallError ? error.cause : error;
      const isBusy = said instanceof RpcCallError && said.code === 'RESOURCE_EXHAUSTED';
      if (!isBusy || attempt === BUSY_ATTEMPTS) throw error;
      await sleep(options.busyPauseMs ?? BUSY_PAUSE_MS, undefined, { signal: options.signal });
    }
  }
}
