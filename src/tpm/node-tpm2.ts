/**
 * node-tpm2: what this folder offers to others, documented in docs/tpm.md. It needs koffi, Node.js and tpm2-tss 3.2 or
 * later, and nothing else of Ashlar but its codecs. (Sealing as Ashlar does it is not part of the library.)
 */

export {
  decodeNvPublic,
  encodeNvPublic,
  NV,
  type NvPublic,
  nvName,
} from '../formats/tpm-nv-public.ts';
export {
  decodePublic,
  type EccSigningPublic,
  type EccStoragePublic,
  encodePublic,
  OBJECT,
  objectName,
  type PublicArea,
  type RsaStoragePublic,
  type SealedPublic,
} from '../formats/tpm-public-area.ts';
export type { PcrSelection } from '../formats/tpm-structures.ts';
export { type Credential, makeCredential } from '../measure/make-credential.ts';
export {
  encodeRsaPolicyKey,
  policyAuthorize,
  policyNv,
  policyOr,
  policyPcr,
  policySecret,
} from '../measure/policy.ts';
export {
  ATTESTATION_KEY,
  ENDORSEMENT_CERTIFICATE_INDEX,
  ENDORSEMENT_CHAIN_INDICES,
  ENDORSEMENT_KEY,
  ENDORSEMENT_KEY_POLICY,
  type KeyKind,
  STORAGE_ROOT_KEY,
} from './key-templates.ts';
export { type Quote, Tpm } from './tpm.ts';
export { isTpmError, TPM_RC, TpmError, type TpmFailure, type TpmLayer } from './tpm-error.ts';
export { type Hierarchy, NvIndex, StorageRootKey, TpmHandle, TpmKey } from './tpm-handle.ts';
export { type SealedObject, STORAGE_ROOT_KEY_HANDLE } from './tpm-keys.ts';
export type { NvDefinition } from './tpm-nv.ts';
export { NV_COMPARISON, type NvAuthorization, type VerifiedTicket } from './tpm-sessions.ts';
export type { Lockout, Ownership, TpmIdentity } from './tpm-state.ts';
