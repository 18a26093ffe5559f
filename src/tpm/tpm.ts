/**
 * A TPM 2.0 (TCG TPM 2.0 Library, Part 3), one connection, blocking: for a Worker. The operations are in layers, each a
 * file that knows those above it:
 *
 *   tpm-connection   open, start, authorization values
 *   tpm-state        properties, lockout, hierarchies, PCRs, random numbers
 *   tpm-sessions     salted and encrypted sessions, policies
 *   tpm-keys         primaries, seal and unseal, keys of others
 *   tpm-nv           NV indices
 *   tpm              attestation; the whole, as callers see it
 *
 * Objects and sessions live in the TPM's few slots and are flushed when their scope ends (`using`).
 */
import { decodeDerPrefix, derTag } from '../formats/der.ts';
import { decodeSized, encodeSized, TPM_ALG, u16 } from '../formats/tpm-structures.ts';
import { ENDORSEMENT_CERTIFICATE_INDEX, ENDORSEMENT_CHAIN_INDICES, type KeyKind } from './key-templates.ts';
import type { TpmHandle } from './tpm-handle.ts';
import { TpmNv } from './tpm-nv.ts';
import { sha256Selection } from './tpm-state.ts';
import { ESYS, Output } from './tss.ts';

export { type Hierarchy, NvIndex, StorageRootKey, TpmHandle, TpmKey } from './tpm-handle.ts';
export { type SealedObject, STORAGE_ROOT_KEY_HANDLE } from './tpm-keys.ts';
export type { NvDefinition } from './tpm-nv.ts';
export type { NvAuthorization, VerifiedTicket } from './tpm-sessions.ts';
export type { Lockout, Ownership, TpmIdentity } from './tpm-state.ts';

/** What a TPM says of its PCRs, signed. */
export interface Quote {
  /** TPMS_ATTEST (Part 2, 10.12.12). */
  readonly attest: Uint8Array;
  /** TPMT_SIGNATURE (Part 2, 11.3.4). */
  readonly signature: Uint8Array;
}

export class Tpm extends TpmNv {
  /**
   * Signs the values of PCRs of the SHA-256 bank (Part 3, 18.4).
   *
   * @param qualifyingData the asker's nonce, at most 32 bytes: without it an old quote would do
   */
  quote(key: TpmHandle, qualifyingData: Uint8Array, pcrs: readonly number[]): Quote {
    const [attest, signature] = [new Output(), new Output()];
    this.tss.run(
      'Esys_Quote',
      key.handle,
      ESYS.password,
      ESYS.none,
      ESYS.none,
      this.tss.structure('TPM2B_DATA', encodeSized(qualifyingData)),
      this.tss.structure('TPMT_SIG_SCHEME', u16(TPM_ALG.null)),
      this.tss.structure('TPML_PCR_SELECTION', sha256Selection(pcrs)),
      attest.buffer,
      signature.buffer,
    );
    return {
      attest: decodeSized(this.tss.take('TPM2B_ATTEST', attest), 'TPM2B_ATTEST'),
      signature: this.tss.take('TPMT_SIGNATURE', signature),
    };
  }

  /**
   * Decrypts a credential that was made for this endorsement key and names this object: proof that both are in one TPM
   * (Part 3, 12.5). Throws `TPM_RC.integrity` or `TPM_RC.value` when it was made for another.
   *
   * @param object the attestation key
   * @param ek from {@link createEk}; its policy (PolicySecret of the endorsement hierarchy) is met here
   * @param credential contents of TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET
   * @param session proves the endorsement hierarchy's authorization value when that is not empty
   */
  activateCredential(
    object: TpmHandle,
    ek: TpmHandle,
    credential: { readonly credentialBlob: Uint8Array; readonly encryptedSecret: Uint8Array },
    session?: TpmHandle,
  ): Buffer {
    using policy = this.policySession(ek);
    this.policySecret(policy, 'endorsement', session && { session });
    const secret = new Output();
    this.tss.run(
      'Esys_ActivateCredential',
      object.handle,
      ek.handle,
      ESYS.password,
      policy.handle,
      ESYS.none,
      this.tss.structure('TPM2B_ID_OBJECT', encodeSized(credential.credentialBlob)),
      this.tss.structure('TPM2B_ENCRYPTED_SECRET', encodeSized(credential.encryptedSecret)),
      secret.buffer,
    );
    return Buffer.from(decodeSized(this.tss.take('TPM2B_DIGEST', secret), 'TPM2B_DIGEST'));
  }

  /** The maker's certificate of the endorsement key (DER), from NV (EK Credential Profile, 2.2.1.4), if there is one. */
  ekCertificate(kind: KeyKind): Buffer | undefined {
    const bytes = this.#readCertificates(ENDORSEMENT_CERTIFICATE_INDEX[kind]);
    return bytes && certificatesIn(bytes)[0];
  }

  /** The certificates between the endorsement key's and the maker's root (EK Credential Profile, 2.2.1.5.2), as stored. */
  ekCertificateChain(): Buffer[] {
    const { first, last } = ENDORSEMENT_CHAIN_INDICES;
    const indices = this.handles(first).filter((index) => index >= first && index <= last);
    return certificatesIn(Buffer.concat(indices.map((index) => this.#readCertificates(index) ?? Buffer.alloc(0))));
  }

  #readCertificates(index: number): Buffer | undefined {
    const nv = this.nvOpen(index);
    return nv && this.nvRead(nv, nv.publicArea.sizeBytes, { by: 'index' });
  }
}

/** Certificates that follow one another. Makers pad an index with 0x00 or 0xff, so what is no sequence ends the list. */
function certificatesIn(bytes: Buffer): Buffer[] {
  const certificates: Buffer[] = [];
  let rest = bytes;
  while (rest[0] === derTag.sequence) {
    const { whole } = decodeDerPrefix(rest, 'endorsement key certificate');
    certificates.push(Buffer.from(whole));
    rest = rest.subarray(whole.length);
  }
  return certificates;
}
