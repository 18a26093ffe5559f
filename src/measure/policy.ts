/**
 * TPM 2.0 policy digests, computed without a TPM (TPM 2.0 Library Part 3, §23). All are SHA-256.
 *
 * The sealing policy of a node:
 *
 * ```
 * PolicyAuthorize(policy key, policyRef)    any PCR 11 that the policy key signed, hence any of our images …
 * PolicyPCR(7, 12, 13, 15)                  … under this machine's Secure Boot keys, with nothing injected and
 *                                               no volume opened yet
 * ```
 *
 * PCR 12 must be bound: with Secure Boot on, an SMBIOS string can append to the kernel command line, and only PCR 12 moves.
 */
import { createPublicKey, type KeyObject } from 'node:crypto';
import { pcrSize, sha256, zeroPcr } from './pcr.ts';

/** The highest epoch: `.pcrsig` carries a signature for each from 1 on, and its decoder has a limit. */
export const maxEpoch = 64;
/** An image is approved by so many policy keys beside its own. */
export const maxFormerPolicyKeys = 4;

/**
 * The `policyRef` of an epoch of images. A node that is sealed to epoch k opens under images of k and later ones, because
 * an image of epoch N is signed for 1 to N: raise the epoch and reseal to shut out every image signed before.
 *
 * @throws RangeError when it is no whole number from 1 to {@link maxEpoch}.
 */
export function policyRefOfEpoch(epoch: number): string {
  if (!Number.isInteger(epoch) || epoch < 1 || epoch > maxEpoch) {
    throw new RangeError(`cannot name epoch ${epoch}: it is a whole number from 1 to ${maxEpoch}`);
  }
  return `ashlar-epoch-${epoch}`;
}

/** The epoch that a `policyRef` of ours names; undefined for any other text. */
export function epochOfPolicyRef(policyRef: string): number | undefined {
  const digits = /^ashlar-epoch-([1-9][0-9]?)$/.exec(policyRef)?.[1];
  const epoch = digits === undefined ? undefined : Number(digits);
  return epoch !== undefined && epoch <= maxEpoch ? epoch : undefined;
}

/** Registers that the sealing policy binds beside the signed PCR 11. */
export const sealedPcrs = [7, 12, 13, 15] as const;

const algorithm = { rsa: 0x0001, sha256: 0x000b, null: 0x0010 } as const;
const command = {
  policyNv: 0x0000_0149,
  policySecret: 0x0000_0151,
  policyAuthorize: 0x0000_016a,
  policyOr: 0x0000_0171,
  policyPcr: 0x0000_017f,
} as const;
const maxPcr = 23;

function uint16(value: number): Uint8Array {
  return Uint8Array.of(value >> 8, value & 0xff);
}

function uint32(value: number): Uint8Array {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

/** TPML_PCR_SELECTION of the SHA-256 bank. */
export function encodePcrSelection(pcrs: readonly number[]): Uint8Array {
  const bitmap = new Uint8Array(3);
  for (const pcr of pcrs) {
    if (!Number.isInteger(pcr) || pcr < 0 || pcr > maxPcr)
      throw new RangeError(`cannot select PCR ${pcr}: not 0 to ${maxPcr}`);
    bitmap[pcr >> 3] = (bitmap[pcr >> 3] ?? 0) | (1 << (pcr & 7));
  }
  return Buffer.concat([uint32(1), uint16(algorithm.sha256), Uint8Array.of(3), bitmap]);
}

/** SHA-256 of the values in ascending order of register: what PolicyPCR compares and a quote signs. */
export function pcrDigest(values: ReadonlyMap<number, Uint8Array>): Uint8Array {
  const sorted = [...values].toSorted(([a], [b]) => a - b);
  for (const [pcr, value] of sorted) {
    if (value.length !== pcrSize) throw new RangeError(`cannot digest PCR ${pcr}: its value has ${value.length} bytes`);
  }
  return sha256(...sorted.map(([, value]) => value));
}

/** The policy digest after TPM2_PolicyPCR over these values. */
export function policyPcr(values: ReadonlyMap<number, Uint8Array>, start: Uint8Array = zeroPcr()): Uint8Array {
  return sha256(start, uint32(command.policyPcr), encodePcrSelection([...values.keys()]), pcrDigest(values));
}

/** The policy digest after TPM2_PolicyAuthorize: whatever came before is replaced (Part 3 §23.16). */
export function policyAuthorize(keyName: Uint8Array, policyRef: Uint8Array): Uint8Array {
  return sha256(sha256(zeroPcr(), uint32(command.policyAuthorize), keyName), policyRef);
}

/**
 * The policy digest after TPM2_PolicySecret (Part 3 §23.4).
 *
 * @param entityName of a hierarchy its handle: 40000001 the owner's, 4000000b the endorsement hierarchy's
 */
export function policySecret(
  entityName: Uint8Array,
  { policyRef = new Uint8Array(0), start = zeroPcr() }: { policyRef?: Uint8Array; start?: Uint8Array } = {},
): Uint8Array {
  return sha256(sha256(start, uint32(command.policySecret), entityName), policyRef);
}

/** The policy digest after TPM2_PolicyOR: whatever came before is replaced (Part 3 §23.6). */
export function policyOr(branches: readonly Uint8Array[]): Uint8Array {
  return sha256(zeroPcr(), uint32(command.policyOr), ...branches);
}

/**
 * The policy digest after TPM2_PolicyNV (Part 3 §23.9).
 *
 * @param nvIndexName as of when the policy is to be met: TPMA_NV_WRITTEN is part of it
 * @param condition.comparison TPM_EO (Part 2 §6.8)
 */
export function policyNv(
  nvIndexName: Uint8Array,
  condition: { operand: Uint8Array; comparison: number; offset?: number },
  start: Uint8Array = zeroPcr(),
): Uint8Array {
  const args = sha256(condition.operand, uint16(condition.offset ?? 0), uint16(condition.comparison));
  return sha256(start, uint32(command.policyNv), args, nvIndexName);
}

/** `pol` of a PCR signature: PolicyPCR(11) from an empty session. */
export function signedPcr11Policy(pcr11: Uint8Array): Uint8Array {
  return policyPcr(new Map([[11, pcr11]]));
}

/**
 * TPMT_PUBLIC of the policy key as it must be loaded with TPM2_LoadExternal: an unrestricted RSA signing key, userWithAuth
 * and decrypt set (attributes 0x00060040), no symmetric algorithm, no scheme. The exponent is written as 65537, as tpm2-tools
 * does, and not as the equivalent 0: the name is a hash of these bytes, so the choice is part of the sealing policy.
 */
export function encodeRsaPolicyKey(key: KeyObject): Uint8Array {
  const publicKey = key.type === 'private' ? createPublicKey(key) : key;
  const details = publicKey.asymmetricKeyDetails;
  if (publicKey.asymmetricKeyType !== 'rsa' || details?.publicExponent !== 65537n) {
    throw new RangeError(`cannot use policy key: it is ${publicKey.asymmetricKeyType}; use RSA with exponent 65537`);
  }
  const bits = details.modulusLength ?? 0;
  const modulus = Buffer.from(publicKey.export({ format: 'jwk' }).n ?? '', 'base64url');
  return Buffer.concat([
    uint16(algorithm.rsa),
    uint16(algorithm.sha256),
    uint32(0x0006_0040),
    uint16(0),
    uint16(algorithm.null),
    uint16(algorithm.null),
    uint16(bits),
    uint32(65537),
    uint16(modulus.length),
    modulus,
  ]);
}

/** The TPM name of the policy key: hash algorithm ‖ SHA-256(TPMT_PUBLIC). */
export function rsaPolicyKeyName(key: KeyObject): Uint8Array {
  return Buffer.concat([uint16(algorithm.sha256), sha256(encodeRsaPolicyKey(key))]);
}

/**
 * authPolicy of what a node seals.
 *
 * @param options.values of the registers in {@link sealedPcrs}: this machine's PCR 7, and zeros unless told.
 */
export function sealingPolicy(options: {
  policyKey: KeyObject;
  policyRef: string;
  pcr7: Uint8Array;
  values?: ReadonlyMap<number, Uint8Array>;
}): Uint8Array {
  const authorized = policyAuthorize(rsaPolicyKeyName(options.policyKey), Buffer.from(options.policyRef, 'utf8'));
  const values = new Map<number, Uint8Array>(sealedPcrs.map((pcr) => [pcr, options.values?.get(pcr) ?? zeroPcr()]));
  return policyPcr(values.set(7, options.pcr7), authorized);
}
