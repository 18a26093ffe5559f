/**
 * The policy key and what it signs: which PCR 11 values an image may have (UAPI `.pcrsig`, systemd-stub(7)). Pure.
 *
 *   .pcrsig  {"sha256":[{"pcrs":[11],"pkfp":…,"pol":…,"sig":…,"ref":…}]}
 *   pkfp = SHA-256 of the key in PKCS#1 DER; pol = PolicyPCR digest; sig = RSASSA-SHA256 over pol ‖ ref
 *
 * The file travels beside the image unprotected. Only entries of the key that the measured `system.json` names are
 * used, and the TPM checks the signature itself.
 */
import { createHash, createPublicKey, type KeyObject } from 'node:crypto';
import { type Checked, integer, list, object, ShapeError, text } from '../formats/json-shape.ts';
import { encodePublic, OBJECT, objectName, type RsaPublic, u32 } from './structures.ts';

/** One signed PCR policy. */
export interface PcrSignature {
  readonly pcrs: readonly number[];
  /** The PolicyPCR digest that was signed. */
  readonly policy: Uint8Array;
  readonly signature: Uint8Array;
  /** Bytes of the policyRef that were signed with it. */
  readonly policyRef: Uint8Array;
}

const SIGNATURES_MAX_BYTES = 64 * 1024;

const entry = object(
  {
    pcrs: list(integer({ min: 0, max: 23 }), { max: 24 }),
    pkfp: text({ pattern: /^[0-9a-f]{64}$/, max: 64 }),
    pol: text({ pattern: /^[0-9a-f]{64}$/, max: 64 }),
    sig: text({ pattern: /^[A-Za-z0-9+/]+={0,2}$/, max: 1024 }),
  },
  { ref: text({ max: 64 }) },
);
const document = object({ sha256: list(entry, { max: 64 }) });

/**
 * The signatures that `policyKey` has made with `policyRef` over `pcrs`, from a `.pcrsig` document.
 *
 * Throws when the document is malformed or holds none.
 */
export function selectPcrSignatures(
  json: Uint8Array,
  { policyKeyPem, policyRef, pcrs }: { policyKeyPem: string; policyRef: string; pcrs: readonly number[] },
): PcrSignature[] {
  const fingerprint = policyKeyFingerprint(policyKeyPem);
  const found = decodeDocument(json).sha256.filter(
    ({ pkfp, ref = '', pcrs: signed }) =>
      pkfp === fingerprint &&
      ref === policyRef &&
      signed.length === pcrs.length &&
      signed.every((n, i) => n === pcrs[i]),
  );
  if (found.length === 0) {
    throw new Error(
      `cannot use the image's PCR signatures: none is of policy key ${fingerprint.slice(0, 16)}… with ` +
        `policyRef "${policyRef}"; the image was signed for another policy, build it again with mkimage`,
    );
  }
  return found.map(({ pcrs: signed, pol, sig, ref = '' }) => ({
    pcrs: signed,
    policy: Buffer.from(pol, 'hex'),
    signature: Buffer.from(sig, 'base64'),
    policyRef: Buffer.from(ref, 'utf8'),
  }));
}

function decodeDocument(json: Uint8Array): Checked<typeof document> {
  if (json.length > SIGNATURES_MAX_BYTES) {
    throw new Error(`cannot use the image's PCR signatures: ${json.length} bytes, ${SIGNATURES_MAX_BYTES} are allowed`);
  }
  try {
    return document(JSON.parse(Buffer.from(json).toString('utf8')), '');
  } catch (error) {
    const reason = error instanceof ShapeError ? error.message : 'they are not JSON';
    throw new Error(`cannot use the image's PCR signatures: ${reason}`, { cause: error });
  }
}

/** `pkfp`: lower-case hex of SHA-256 over the PKCS#1 RSAPublicKey, not over the SubjectPublicKeyInfo. */
export function policyKeyFingerprint(policyKeyPem: string): string {
  return createHash('sha256')
    .update(rsaKey(policyKeyPem).export({ format: 'der', type: 'pkcs1' }))
    .digest('hex');
}

/** The policy key as a TPM object: tpm2-tools' template, so that `tpm2_loadexternal` gives the same name. */
export function policyKeyPublic(policyKeyPem: string): RsaPublic {
  const { n, e } = rsaKey(policyKeyPem).export({ format: 'jwk' });
  if (n === undefined || e === undefined) throw new Error('cannot use the policy key: it has no modulus or exponent');
  const exponent = Buffer.from(e, 'base64url');
  if (exponent.length > 4) throw new Error('cannot use the policy key: its exponent is over 32 bits; use 65537');
  return {
    type: 'rsa',
    attributes: OBJECT.userWithAuth | OBJECT.decrypt | OBJECT.sign,
    authPolicy: new Uint8Array(),
    exponent: exponent.readUIntBE(0, exponent.length),
    modulus: Buffer.from(n, 'base64url'),
  };
}

/** What PolicyAuthorize wants signed: SHA-256(approvedPolicy ‖ policyRef) (Part 3, 23.16). */
export function authorizationDigest(policy: Uint8Array, policyRef: Uint8Array): Buffer {
  return createHash('sha256').update(policy).update(policyRef).digest();
}

const TPM_CC_POLICY_AUTHORIZE = 0x0000016a;
const TPM_CC_POLICY_PCR = 0x0000017f;

/** The policy digest after PolicyAuthorize(key, policyRef), which starts anew from zeros (Part 3, 23.16). */
export function policyAuthorizeDigest(policyKeyPem: string, policyRef: Uint8Array): Buffer {
  const name = objectName(encodePublic(policyKeyPublic(policyKeyPem)));
  const keyPart = createHash('sha256').update(Buffer.alloc(32)).update(u32(TPM_CC_POLICY_AUTHORIZE)).update(name);
  return createHash('sha256').update(keyPart.digest()).update(policyRef).digest();
}

/** The policy digest after PolicyPCR on top of `policy` (Part 3, 23.7). `selection` is a TPML_PCR_SELECTION. */
export function policyPcrDigest(policy: Uint8Array, selection: Uint8Array, pcrValues: readonly Uint8Array[]): Buffer {
  const values = createHash('sha256');
  for (const value of pcrValues) values.update(value);
  const total = createHash('sha256').update(policy).update(u32(TPM_CC_POLICY_PCR)).update(selection);
  return total.update(values.digest()).digest();
}

function rsaKey(pem: string): KeyObject {
  const key = createPublicKey(pem);
  if (key.asymmetricKeyType !== 'rsa') {
    throw new Error(
      `cannot use the policy key: it is ${key.asymmetricKeyType}, an RSA key of 2048 or 3072 bits is needed`,
    );
  }
  return key;
}
