/** What a TPM tells of an NV index (TPMS_NV_PUBLIC, TCG TPM 2.0 Library Part 2, 13.5), and the name that follows. */
import { createHash } from 'node:crypto';
import { encodeSized, TPM_ALG, TpmReader, u16, u32 } from './tpm-structures.ts';

/** TPMA_NV (Part 2, 13.4). */
export const NV = {
  ownerWrite: 2 ** 1,
  authWrite: 2 ** 2,
  policyWrite: 2 ** 3,
  /** A 64-bit counter that only counts up: {@link NvPublic.sizeBytes} is 8. */
  counter: 2 ** 4,
  ownerRead: 2 ** 17,
  authRead: 2 ** 18,
  policyRead: 2 ** 19,
  noDictionaryAttackProtection: 2 ** 25,
  /** Set by the TPM at the first write: before that nothing can be read. */
  written: 2 ** 29,
  /** Made by the platform's firmware; the owner cannot undefine it. */
  platformCreate: 2 ** 30,
} as const;

export interface NvPublic {
  /** 0x01000000 and up; 0x01C00000 to 0x01C07FFF are the TCG's (Registry of Reserved TPM 2.0 Handles). */
  readonly index: number;
  /** NV bits. */
  readonly attributes: number;
  /** Empty, or 32 bytes. */
  readonly authPolicy: Uint8Array;
  readonly sizeBytes: number;
}

/** TPMS_NV_PUBLIC with SHA-256 as name algorithm. */
export function encodeNvPublic({ index, attributes, authPolicy, sizeBytes }: NvPublic): Buffer {
  return Buffer.concat([u32(index), u16(TPM_ALG.sha256), u32(attributes), encodeSized(authPolicy), u16(sizeBytes)]);
}

/** Throws `FormatError` with field and offset; also when the name algorithm is not SHA-256. */
export function decodeNvPublic(bytes: Uint8Array): NvPublic {
  const reader = new TpmReader(bytes, 'TPMS_NV_PUBLIC');
  const index = reader.u32('nvIndex');
  reader.expect(2, TPM_ALG.sha256, 'nameAlg');
  const decoded = {
    index,
    attributes: reader.u32('attributes'),
    authPolicy: reader.sized('authPolicy'),
    sizeBytes: reader.u16('dataSize'),
  };
  reader.end();
  return decoded;
}

/** The name of an NV index (Part 1, 16): whoever pins it pins attributes and policy, and whether it was written. */
export function nvName(nvPublic: NvPublic): Buffer {
  return Buffer.concat([u16(TPM_ALG.sha256), createHash('sha256').update(encodeNvPublic(nvPublic)).digest()]);
}
