/**
 * Sealing a secret to this TPM, this machine state and images of the policy key.
 *
 *   authPolicy = PolicyAuthorize(policy key, policyRef)    any image the policy key vouches for, before leave-initrd
 *              ∘ PolicyPCR(7, 12, 13, 15)                  this Secure Boot state; 12 = 13 = 15 = 0
 *
 * PCR 12 and 13 are bound as zero because firmware strings (SMBIOS) and files on the ESP can add to the kernel command
 * line without moving any other PCR. PCR 15 is bound as zero so that nothing unseals once a volume has been opened.
 */
import { createPublicKey, timingSafeEqual } from 'node:crypto';
import { sha256 } from '../measure/pcr.ts';
import {
  decodePcrSignatures,
  type PcrSignature,
  pcrSignatureInput,
  policyKeyFingerprint,
} from '../measure/pcr-signature.ts';
import { encodeRsaPolicyKey, sealedPcrs, sealingPolicy } from '../measure/policy.ts';
import type { SealedObject, StorageRootKey, Tpm, TpmHandle } from './tpm.ts';
import { isTpmError, TPM_RC } from './tpm-error.ts';

/** PCRs that must be zero when sealing and unsealing. */
export const ZERO_PCRS = [12, 13, 15] as const;
/** The PCR that the policy key signs: the image's contents and its boot phase. */
export const IMAGE_PCR = 11;

export interface SealingPolicy {
  readonly policyKeyPem: string;
  readonly policyRef: string;
}

/** What an image seals to, and by which other keys it is approved. */
export interface ImagePolicy extends SealingPolicy {
  /**
   * Policy keys of images before this one, whose signatures `.pcrsig` has as well: what is sealed to one of them opens, and
   * can be sealed to the image's own.
   */
  readonly formerPolicyKeyPems: readonly string[];
}

/** Why a secret was not sealed or unsealed, for callers that branch. */
export type SealingFailure = 'pcr-not-zero' | 'pcr-7-changed' | 'image-not-allowed' | 'another-tpm' | 'policy-not-met';

export class SealingError extends Error {
  override readonly name = 'SealingError';
  readonly failure: SealingFailure;

  constructor(failure: SealingFailure, message: string, options?: ErrorOptions) {
    super(message, options);
    this.failure = failure;
  }
}

/** A secret sealed at some state of the machine. Nothing in it is secret. */
export interface SealedSecret extends SealedObject {
  /** The name of the storage root key it was sealed below: another TPM has another. */
  readonly storageRootKeyName: Uint8Array;
  /** PCR 7 at sealing, only to explain a later refusal. */
  readonly pcr7: Uint8Array;
}

/** Refuses when PCR 12, 13 or 15 is not zero, and says which and what that means. */
export function requireZeroPcrs(pcrs: ReadonlyMap<number, Uint8Array>): void {
  for (const index of ZERO_PCRS) {
    const value = pcrs.get(index) ?? new Uint8Array();
    if (value.length === 32 && value.every((byte) => byte === 0)) continue;
    throw new SealingError(
      'pcr-not-zero',
      `PCR ${index} is ${Buffer.from(value).toString('hex')}, expected 0: ${ZERO_PCR_REASONS[index]}`,
    );
  }
}

const ZERO_PCR_REASONS: Record<(typeof ZERO_PCRS)[number], string> = {
  12:
    'something was added to the kernel command line or credentials (SMBIOS strings of type 11, files in loader/ on the ' +
    'ESP, or a boot loader); remove it and restart',
  13: 'a system extension was added beside the image (files in loader/ on the ESP); remove it and restart',
  15: 'a volume was opened already since power-on; restart the machine',
};

/**
 * Seals `secret` (at most 128 bytes) to the TPM's present state, or to one with another PCR 7.
 *
 * The caller has checked that Secure Boot is on.
 *
 * @param pcr7 of the state to seal to. Then nothing of the present state is asked, so that a machine which has left its
 *   initrd phase can seal for its next boot. Without it PCR 12, 13 and 15 must be zero now.
 *
 * Throws `SealingError` or `TpmError`.
 */
export function sealSecret(
  tpm: Tpm,
  rootKey: StorageRootKey,
  secret: Uint8Array,
  policy: SealingPolicy,
  pcr7: Uint8Array = presentPcr7(tpm),
): SealedSecret {
  if (pcr7.every((byte) => byte === 0)) {
    throw new SealingError(
      'policy-not-met',
      'PCR 7 is 0: the firmware has not measured Secure Boot into the SHA-256 bank; enable it in the firmware settings',
    );
  }
  const policyKey = createPublicKey(policy.policyKeyPem);
  const authPolicy = sealingPolicy({ policyKey, policyRef: policy.policyRef, pcr7 });
  using session = tpm.encryptedSession(rootKey);
  const sealed = tpm.seal(rootKey, session, { secret, authPolicy });
  return { ...sealed, storageRootKeyName: rootKey.name, pcr7 };
}

function presentPcr7(tpm: Tpm): Uint8Array {
  const pcrs = tpm.readPcrs(sealedPcrs);
  requireZeroPcrs(pcrs);
  return pcrs.get(7) ?? Buffer.alloc(32);
}

/**
 * The signatures of the policy key with this policyRef over PCR 11, from the image's `.pcrsig`.
 *
 * The file travels beside the image unprotected: only entries of the key that the measured `system.json` names are used,
 * and the TPM checks the signature itself. Throws when the file is malformed or holds none.
 */
export function selectPcrSignatures(json: Uint8Array, policy: SealingPolicy): PcrSignature[] {
  const fingerprint = policyKeyFingerprint(createPublicKey(policy.policyKeyPem));
  const found = decodePcrSignatures(json).filter(
    ({ keyFingerprint, policyRef, pcrs }) =>
      Buffer.compare(keyFingerprint, fingerprint) === 0 &&
      policyRef === policy.policyRef &&
      pcrs.length === 1 &&
      pcrs[0] === IMAGE_PCR,
  );
  if (found.length > 0) return found;
  throw new SealingError(
    'image-not-allowed',
    `the image brings no PCR 11 signature of policy key ${shortHex(fingerprint)} with policyRef "${policy.policyRef}"; ` +
      'it was signed for another policy: build it again with mkimage',
  );
}

/**
 * Unseals what {@link sealSecret} has sealed, in eight commands. Why the TPM
 * refuses is found out only afterwards. Wipe the result after use.
 *
 * @param signatures the image's PCR 11 signatures by the policy key; the one that matches the present PCR 11 is used
 * @param scope what the three objects in the TPM are flushed with; without it, before this returns
 *
 * Throws `SealingError`, or `TpmError` for what has no better explanation.
 */
export function unsealSecret(
  tpm: Tpm,
  rootKey: StorageRootKey,
  sealed: SealedSecret,
  policy: SealingPolicy,
  signatures: readonly PcrSignature[],
  scope?: DisposableStack,
): Buffer {
  requireSameTpm(rootKey, sealed);
  using own = new DisposableStack();
  const loaded = scope ?? own;
  const session = loaded.use(tpm.policySession(rootKey));
  const object = loaded.use(loadSealed(tpm, rootKey, sealed));
  const key = loaded.use(tpm.loadExternal(encodeRsaPolicyKey(createPublicKey(policy.policyKeyPem))));
  authorizeImage(tpm, session, key, signatures);
  tpm.policyPcr(session, sealedPcrs);
  try {
    return tpm.unseal(object, session);
  } catch (error) {
    if (!isTpmError(error, TPM_RC.policyFail)) throw error;
    throw explainPolicyFailure(tpm, sealed, error);
  }
}

/** What of the policy is not met, as far as the PCRs tell. */
function explainPolicyFailure(tpm: Tpm, sealed: SealedSecret, cause: Error): SealingError {
  const pcrs = tpm.readPcrs(sealedPcrs);
  try {
    requireZeroPcrs(pcrs);
  } catch (error) {
    if (error instanceof SealingError) return error;
    throw error;
  }
  const now = pcrs.get(7) ?? Buffer.alloc(0);
  if (Buffer.compare(now, sealed.pcr7) !== 0) {
    return new SealingError(
      'pcr-7-changed',
      `PCR 7 is ${now.toString('hex')}, the key was sealed to ${Buffer.from(sealed.pcr7).toString('hex')}: ` +
        'Secure Boot was switched off, its keys or revocation list changed, or the image was signed with another key',
      { cause },
    );
  }
  return new SealingError('policy-not-met', `the TPM finds the sealing policy not met: ${cause.message}`, { cause });
}

function requireSameTpm(rootKey: StorageRootKey, sealed: SealedSecret): void {
  const { name } = rootKey;
  const same = name.length === sealed.storageRootKeyName.length && timingSafeEqual(name, sealed.storageRootKeyName);
  if (!same) {
    throw new SealingError(
      'another-tpm',
      `it was sealed below storage root key ${shortName(sealed.storageRootKeyName)}, this TPM has ${shortName(name)}: ` +
        'the disk was moved, the TPM was replaced, or it was cleared',
    );
  }
}

function loadSealed(tpm: Tpm, rootKey: StorageRootKey, sealed: SealedSecret): TpmHandle {
  try {
    return tpm.load(rootKey, sealed);
  } catch (error) {
    if (!isTpmError(error, TPM_RC.integrity)) throw error;
    throw new SealingError('another-tpm', `the TPM does not recognise the sealed key: ${error.message}`, {
      cause: error,
    });
  }
}

/** PolicyPCR(11), then PolicyAuthorize with the signature over exactly that. */
function authorizeImage(
  tpm: Tpm,
  session: TpmHandle,
  key: TpmHandle & { readonly name: Uint8Array },
  signatures: readonly PcrSignature[],
): void {
  tpm.policyPcr(session, [IMAGE_PCR]);
  const [first, ...others] = signatures;
  // An image has one signature for each epoch; with more the session tells which is meant.
  const reached = others.length > 0 ? tpm.policyDigest(session) : undefined;
  const signed = reached === undefined ? first : signatures.find(({ policy }) => reached.equals(policy));
  if (signed === undefined) throw unsignedPcr11(tpm);
  try {
    const digest = sha256(pcrSignatureInput(signed.policy, signed.policyRef));
    tpm.policyAuthorize(session, {
      approvedPolicy: signed.policy,
      policyRef: Buffer.from(signed.policyRef, 'utf8'),
      keyName: key.name,
      ticket: tpm.verifySignature(key, digest, signed.signature),
    });
  } catch (error) {
    if (isTpmError(error, TPM_RC.value)) throw unsignedPcr11(tpm, error);
    if (!isTpmError(error, TPM_RC.signature)) throw error;
    const message = `the image's PCR 11 signature is not of the policy key: ${error.message}`;
    throw new SealingError('image-not-allowed', message, { cause: error });
  }
}

function unsignedPcr11(tpm: Tpm, cause?: Error): SealingError {
  const pcr11 = tpm.readPcrs([IMAGE_PCR]).get(IMAGE_PCR) ?? Buffer.alloc(0);
  return new SealingError(
    'image-not-allowed',
    `PCR 11 is ${pcr11.toString('hex')}, for which the image brings no signature of the policy key: the initrd phase is ` +
      'over already (restart), or the image was altered',
    { cause },
  );
}

/** A key's name, without the algorithm before the digest. */
export function shortName(name: Uint8Array): string {
  return shortHex(name.subarray(2));
}

function shortHex(bytes: Uint8Array): string {
  return `${Buffer.from(bytes.subarray(0, 8)).toString('hex')}…`;
}
