/**
 * Which policy key a generation is sealed to. Its tokens need not say so: the sealed object's policy does, and an image
 * knows its own key and the former ones that it was approved with too.
 */
import { createPublicKey } from 'node:crypto';
import { decodePublic } from '../formats/tpm-public-area.ts';
import { policyKeyFingerprint } from '../measure/pcr-signature.ts';
import { sealingPolicy } from '../measure/policy.ts';
import type { ImagePolicy } from '../tpm/sealing.ts';
import type { SealedGeneration } from './luks-tokens.ts';

/** As PEM; undefined when the image knows none to which the generation can be sealed. */
export function sealedPolicyKey(
  { policyKeyPem, formerPolicyKeyPems }: ImagePolicy,
  { policyRef, sealed }: Pick<SealedGeneration, 'policyRef' | 'sealed'>,
): string | undefined {
  const sealedTo = Buffer.from(decodePublic(sealed.publicArea).authPolicy);
  return [policyKeyPem, ...formerPolicyKeyPems].find((pem) => {
    const policy = sealingPolicy({ policyKey: createPublicKey(pem), policyRef, pcr7: sealed.pcr7 });
    return sealedTo.equals(policy);
  });
}

/** SHA-256 of the key's PKCS #1 DER, lower-case hex: `pkfp` in `.pcrsig`. */
export function policyKeyFingerprintHex(pem: string): string {
  return Buffer.from(policyKeyFingerprint(createPublicKey(pem))).toString('hex');
}
