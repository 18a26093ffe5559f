/** The keys that are made again from a seed and a template instead of being stored: same TPM, same template, same key. */
import { createHash } from 'node:crypto';
import { OBJECT, type PublicArea } from '../formats/tpm-public-area.ts';

/** The curve or modulus of a primary key. */
export type KeyKind = 'ecc-p256' | 'rsa-2048';

const EMPTY = new Uint8Array();
const ZERO_32 = new Uint8Array(32);
const ZERO_MODULUS = new Uint8Array(256);

const STORAGE_ATTRIBUTES =
  OBJECT.fixedTpm |
  OBJECT.fixedParent |
  OBJECT.sensitiveDataOrigin |
  OBJECT.userWithAuth |
  OBJECT.noDictionaryAttackProtection |
  OBJECT.restricted |
  OBJECT.decrypt;

/** The storage root keys of the TCG's TPM v2.0 Provisioning Guidance, 7.5.1. */
export const STORAGE_ROOT_KEY: Record<KeyKind, PublicArea> = {
  'ecc-p256': { type: 'ecc-storage', attributes: STORAGE_ATTRIBUTES, authPolicy: EMPTY, x: ZERO_32, y: ZERO_32 },
  'rsa-2048': { type: 'rsa-storage', attributes: STORAGE_ATTRIBUTES, authPolicy: EMPTY, modulus: ZERO_MODULUS },
};

const ENDORSEMENT_ATTRIBUTES =
  OBJECT.fixedTpm |
  OBJECT.fixedParent |
  OBJECT.sensitiveDataOrigin |
  OBJECT.adminWithPolicy |
  OBJECT.restricted |
  OBJECT.decrypt;

/** PolicyA of the EK Credential Profile (B.6.5): PolicySecret(TPM_RH_ENDORSEMENT). */
export const ENDORSEMENT_KEY_POLICY = Buffer.from(
  '837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa',
  'hex',
);

/** Templates L-1 and L-2 of the TCG EK Credential Profile for TPM Family 2.0 (B.3.3 and B.3.4). */
export const ENDORSEMENT_KEY: Record<KeyKind, PublicArea> = {
  'rsa-2048': {
    type: 'rsa-storage',
    attributes: ENDORSEMENT_ATTRIBUTES,
    authPolicy: ENDORSEMENT_KEY_POLICY,
    modulus: ZERO_MODULUS,
  },
  'ecc-p256': {
    type: 'ecc-storage',
    attributes: ENDORSEMENT_ATTRIBUTES,
    authPolicy: ENDORSEMENT_KEY_POLICY,
    x: ZERO_32,
    y: ZERO_32,
  },
};

/** NV indices of those keys' certificates (EK Credential Profile, 2.2.1.4), and of the chains above them (2.2.1.5.2). */
export const ENDORSEMENT_CERTIFICATE_INDEX: Record<KeyKind, number> = {
  'rsa-2048': 0x01c00002,
  'ecc-p256': 0x01c0000a,
};
export const ENDORSEMENT_CHAIN_INDICES = { first: 0x01c00100, last: 0x01c001ff } as const;

/**
 * The attestation key: restricted, so that it signs only what the TPM itself has made. `unique` sets it apart from other
 * primary signing keys of this TPM; the version in it is how a later template gets another key.
 */
export const ATTESTATION_KEY: PublicArea = {
  type: 'ecc-signing',
  attributes:
    OBJECT.fixedTpm |
    OBJECT.fixedParent |
    OBJECT.sensitiveDataOrigin |
    OBJECT.userWithAuth |
    OBJECT.noDictionaryAttackProtection |
    OBJECT.restricted |
    OBJECT.sign,
  authPolicy: EMPTY,
  x: createHash('sha256').update('ashlar-ak-1').digest(),
  y: ZERO_32,
};
