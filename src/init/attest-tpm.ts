/**
 * What the attestation Worker asks of the TPM. It blocks.
 *
 *     identity   certificates from NV, endorsement key, attestation key
 *     attest     both keys made again → credential opened → quote over SHA-256(nonce ‖ its secret ‖ SPKI of the TLS key)
 *
 * Nothing is stored in the TPM: both keys are primaries, the same each time they are made.
 */
import { type Evidence, qualifyingData, quotedPcrs } from '../measure/evidence.ts';
import type { Attestation, AttestationIdentity } from '../rpc/init-protocol.ts';
import type { KeyKind } from '../tpm/key-templates.ts';
import { Tpm, type TpmKey } from '../tpm/tpm.ts';
import { TpmError, tpmResponseCode } from '../tpm/tpm-error.ts';

/** What is asked of the Worker. Bytes are in base64, as they came from the agent. */
export type AttestTask =
  | { readonly kind: 'identity'; readonly tpm: string }
  | {
      readonly kind: 'attest';
      readonly tpm: string;
      readonly ekKind: KeyKind;
      readonly nonce: string;
      readonly credentialBlob: string;
      readonly encryptedSecret: string;
      /** Of the key that the node API is served with. */
      readonly tlsSpki: string;
    };

/** The answer. */
export type AttestMessage =
  | { readonly type: 'identity'; readonly identity: AttestationIdentity & { readonly ekKind: KeyKind } }
  | { readonly type: 'attestation'; readonly attestation: Attestation }
  /** `isCredential`: the TPM works, and does not accept what it was given. */
  | { readonly type: 'refused'; readonly isCredential: boolean; readonly message: string };

/** In the order of preference: to make an RSA key takes a discrete TPM many seconds. */
const EK_KINDS = ['ecc-p256', 'rsa-2048'] as const;
/** TPM_RC of a response that finds fault with a parameter (Part 2, 6.6.2). */
const RC_FORMAT_ONE = 0x080;
/** Certificates above the endorsement key's own. */
const CHAIN_MAX = 7;

/** Never throws: what fails is an answer, too. */
export function runAttestTask(task: AttestTask): AttestMessage {
  try {
    using tpm = new Tpm(task.tpm.includes(':') ? task.tpm : `device:${task.tpm}`);
    if (task.kind === 'identity') return { type: 'identity', identity: readIdentity(tpm) };
    return { type: 'attestation', attestation: attest(tpm, task) };
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    return { type: 'refused', isCredential: error instanceof CredentialError, message };
  }
}

class CredentialError extends Error {}

/** The endorsement key is one that its maker has certified, if there is such a one. */
function readIdentity(tpm: Tpm): AttestationIdentity & { readonly ekKind: KeyKind } {
  const certified = EK_KINDS.map((kind) => ({ kind, certificate: tpm.ekCertificate(kind) }));
  const { kind, certificate } = certified.find((one) => one.certificate !== undefined) ?? {
    kind: EK_KINDS[0],
    certificate: undefined,
  };
  const chain = certificate === undefined ? [] : tpm.ekCertificateChain().slice(0, CHAIN_MAX);
  using ek = tpm.createEk(kind);
  using ak = tpm.createAk();
  return {
    ekKind: kind,
    ekPublic: base64(ek.publicArea),
    ekCertificates: [...(certificate === undefined ? [] : [certificate]), ...chain].map(base64),
    akPublic: base64(ak.publicArea),
  };
}

function attest(tpm: Tpm, task: AttestTask & { kind: 'attest' }): Attestation {
  using ak = tpm.createAk();
  const secret = openCredential(tpm, ak, task);
  const binding = qualifyingData({ nonce: bytes(task.nonce), secret, tlsSpki: bytes(task.tlsSpki) });
  secret.fill(0);
  // Values first: a register that moves before the quote shows as a quote of other values, and never passes for these.
  const pcrs = tpm.readPcrs(quotedPcrs);
  const quote: Evidence['quote'] = tpm.quote(ak, binding, quotedPcrs);
  return {
    quote: base64(quote.attest),
    signature: base64(quote.signature),
    pcrs: Object.fromEntries([...pcrs].map(([index, value]) => [String(index), value.toString('hex')])),
  };
}

function openCredential(tpm: Tpm, ak: TpmKey, task: AttestTask & { kind: 'attest' }): Buffer {
  using ek = tpm.createEk(task.ekKind);
  const credential = { credentialBlob: bytes(task.credentialBlob), encryptedSecret: bytes(task.encryptedSecret) };
  try {
    return tpm.activateCredential(ak, ek, credential);
  } catch (error) {
    const code = error instanceof TpmError ? tpmResponseCode(error.code) : undefined;
    if (code === undefined || (code & RC_FORMAT_ONE) === 0) throw error;
    throw new CredentialError(
      `the credential is not for this TPM and its attestation key: ${error instanceof Error ? error.message : ''}`,
      { cause: error },
    );
  }
}

function base64(content: Uint8Array): string {
  return Buffer.from(content).toString('base64');
}

function bytes(text: string): Buffer {
  return Buffer.from(text, 'base64');
}
