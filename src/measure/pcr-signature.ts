/**
 * PCR signatures: the JSON of the `.pcrsig` section, which the stub hands to the initramfs as
 * `/.extra/tpm2-pcr-signature.json`. The format is systemd-measure's, with one key more: `ref`, the policyRef. The
 * signature is RSASSA PKCS #1 v1.5 SHA-256 over `pol ‖ ref`, which is what TPM2_VerifySignature gets for PolicyAuthorize;
 * with an empty policyRef it is exactly systemd-measure's.
 */
import { constants, type KeyObject, sign, verify } from 'node:crypto';
import { rsaPublicKeyDer } from '../formats/x509.ts';
import { sha256 } from './pcr.ts';
import { maxEpoch, maxFormerPolicyKeys, signedPcr11Policy } from './policy.ts';

export interface PcrSignature {
  readonly pcrs: readonly number[];
  /** SHA-256 of the key's PKCS #1 RSAPublicKey DER (not SPKI). */
  readonly keyFingerprint: Uint8Array;
  /** The policy digest that is approved. */
  readonly policy: Uint8Array;
  readonly policyRef: string;
  readonly signature: Uint8Array;
}

const maxJsonBytes = 1024 * 1024;
const maxSignatures = maxEpoch * (1 + maxFormerPolicyKeys);

export const policyKeyFingerprint = (key: KeyObject): Uint8Array => sha256(rsaPublicKeyDer(key));

/** The bytes to sign with RSASSA PKCS #1 v1.5 SHA-256. Here signing can be split off to a key elsewhere. */
export function pcrSignatureInput(policy: Uint8Array, policyRef: string): Uint8Array {
  return Buffer.concat([policy, Buffer.from(policyRef, 'utf8')]);
}

/** All of an approval of one value of PCR 11 but the signature, which is zeros of the length that the key's will have. */
export function unsignedPcr11(options: { pcr11: Uint8Array; policyRef: string; key: KeyObject }): PcrSignature {
  const bits = options.key.asymmetricKeyDetails?.modulusLength;
  if (bits === undefined) throw new RangeError(`cannot approve PCR 11: the policy key is not RSA`);
  return {
    pcrs: [11],
    keyFingerprint: policyKeyFingerprint(options.key),
    policy: signedPcr11Policy(options.pcr11),
    policyRef: options.policyRef,
    signature: new Uint8Array(Math.ceil(bits / 8)),
  };
}

/** Approves one value of PCR 11. */
export function signPcr11(options: { pcr11: Uint8Array; policyRef: string; key: KeyObject }): PcrSignature {
  const unsigned = unsignedPcr11(options);
  const signature = sign('sha256', pcrSignatureInput(unsigned.policy, unsigned.policyRef), {
    key: options.key,
    padding: constants.RSA_PKCS1_PADDING,
  });
  return { ...unsigned, signature };
}

export function verifyPcrSignature(signature: PcrSignature, key: KeyObject): boolean {
  const input = pcrSignatureInput(signature.policy, signature.policyRef);
  return verify('sha256', input, { key, padding: constants.RSA_PKCS1_PADDING }, signature.signature);
}

export function encodePcrSignatures(signatures: readonly PcrSignature[]): string {
  const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
  const entries = signatures.map(({ pcrs, keyFingerprint, policy, policyRef, signature }) => ({
    pcrs,
    pkfp: hex(keyFingerprint),
    pol: hex(policy),
    sig: Buffer.from(signature).toString('base64'),
    ...(policyRef === '' ? {} : { ref: policyRef }),
  }));
  return `${JSON.stringify({ sha256: entries })}\n`;
}

/** @throws RangeError naming the entry and key that is wrong. Other banks and unknown keys are passed over. */
export function decodePcrSignatures(json: string | Uint8Array): PcrSignature[] {
  const refuse = (reason: string): never => {
    throw new RangeError(`cannot decode PCR signatures: ${reason}`);
  };
  if (json.length > maxJsonBytes) refuse(`${json.length} bytes are over the limit of ${maxJsonBytes}`);
  let root: unknown;
  try {
    root = JSON.parse(typeof json === 'string' ? json : Buffer.from(json).toString('utf8'));
  } catch (error) {
    return refuse(error instanceof Error ? error.message : String(error));
  }
  const entries: unknown = isRecord(root) ? root['sha256'] : undefined;
  if (!Array.isArray(entries)) return refuse('there is no list "sha256"');
  if (entries.length > maxSignatures) refuse(`${entries.length} entries are over the limit of ${maxSignatures}`);
  return entries.map((entry: unknown, index) => {
    const where = `sha256[${index}]`;
    if (!isRecord(entry)) return refuse(`${where} is not an object`);
    const { pcrs, pkfp, pol, sig, ref = '' } = entry;
    const isPcrList =
      Array.isArray(pcrs) && pcrs.every((pcr) => Number.isInteger(pcr) && Number(pcr) >= 0 && Number(pcr) < 24);
    if (!isPcrList) return refuse(`${where}.pcrs is not a list of registers`);
    const digest = (value: unknown, key: string): Uint8Array =>
      typeof value === 'string' && /^[0-9a-fA-F]{64}$/.test(value)
        ? Buffer.from(value, 'hex')
        : refuse(`${where}.${key} is not 64 hex digits`);
    if (typeof sig !== 'string' || !/^[A-Za-z0-9+/]{1,4096}={0,2}$/.test(sig))
      return refuse(`${where}.sig is not base64`);
    if (typeof ref !== 'string' || ref.length > 64)
      return refuse(`${where}.ref is not a string of at most 64 characters`);
    return {
      pcrs: pcrs.map(Number),
      keyFingerprint: digest(pkfp, 'pkfp'),
      policy: digest(pol, 'pol'),
      policyRef: ref,
      signature: Buffer.from(sig, 'base64'),
    };
  });
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
