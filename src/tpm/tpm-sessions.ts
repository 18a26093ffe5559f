/** Sessions, and the policies they prove. A password policy is left out on purpose: it would put a secret on the bus. */
import { decodeSized, encodeAes128Cfb, encodeDigests, encodeSized, TPM_ALG } from '../formats/tpm-structures.ts';
import { entityHandle, NO_SESSIONS } from './tpm-connection.ts';
import type { Hierarchy, NvIndex, TpmHandle } from './tpm-handle.ts';
import { sha256Selection, TpmState } from './tpm-state.ts';
import { ESYS, Output } from './tss.ts';

const SESSION = { hmac: 0, policy: 1, trial: 3 } as const;
/** TPMA_SESSION (Part 2, 8.4). */
const SESSION_CONTINUE = 0x01;
const SESSION_DECRYPT = 0x20;
const SESSION_ENCRYPT = 0x40;
const EMPTY = new Uint8Array();

/** A verification ticket (TPMT_TK_VERIFIED): the TPM's own note that it has checked a signature. */
export type VerifiedTicket = Uint8Array & { readonly ticket?: never };

/** TPM_EO (Part 2, 6.8): how an NV index compares with the operand. All numbers are big-endian and unsigned. */
export const NV_COMPARISON = {
  equal: 0x0000,
  notEqual: 0x0001,
  greater: 0x0003,
  less: 0x0005,
  greaterOrEqual: 0x0007,
  lessOrEqual: 0x0009,
  allBitsSet: 0x000a,
  allBitsClear: 0x000b,
} as const;

/** Who authorizes the use of an NV index: the owner, or the index itself by its authorization value or policy. */
export interface NvAuthorization {
  readonly by: 'owner' | 'index';
  /** Needed when the index wants a policy, or its or the owner's authorization value is not empty. */
  readonly session?: TpmHandle;
}

export class TpmSessions extends TpmState {
  /** An HMAC session salted to a key, which encrypts the first parameter both ways. */
  encryptedSession(saltKey: TpmHandle): TpmHandle {
    return this.#session(SESSION.hmac, saltKey.handle);
  }

  /** As {@link encryptedSession}, but it authorizes by policy. It meets one command, then is empty again. */
  policySession(saltKey: TpmHandle): TpmHandle {
    return this.#session(SESSION.policy, saltKey.handle);
  }

  /** A session that only computes a policy digest. */
  trialSession(): TpmHandle {
    return this.#session(SESSION.trial, ESYS.none);
  }

  policyDigest(session: TpmHandle): Buffer {
    const digest = new Output();
    this.tss.run('Esys_PolicyGetDigest', session.handle, ...NO_SESSIONS, digest.buffer);
    return Buffer.from(decodeSized(this.tss.take('TPM2B_DIGEST', digest), 'TPM2B_DIGEST'));
  }

  /** Binds a policy session to the current values of these PCRs of the SHA-256 bank (Part 3, 23.7). */
  policyPcr(session: TpmHandle, indices: readonly number[]): void {
    this.tss.run(
      'Esys_PolicyPCR',
      session.handle,
      ...NO_SESSIONS,
      this.tss.structure('TPM2B_DIGEST', encodeSized(EMPTY)),
      this.tss.structure('TPML_PCR_SELECTION', sha256Selection(indices)),
    );
  }

  /**
   * Replaces the session's policy by "what this key has signed", if it is what was signed (Part 3, 23.16). Throws
   * `TPM_RC.value` when the session's digest is not `approvedPolicy`.
   */
  policyAuthorize(
    session: TpmHandle,
    authorization: {
      readonly approvedPolicy: Uint8Array;
      readonly policyRef: Uint8Array;
      readonly keyName: Uint8Array;
      readonly ticket: VerifiedTicket;
    },
  ): void {
    this.tss.run(
      'Esys_PolicyAuthorize',
      session.handle,
      ...NO_SESSIONS,
      this.tss.structure('TPM2B_DIGEST', encodeSized(authorization.approvedPolicy)),
      this.tss.structure('TPM2B_NONCE', encodeSized(authorization.policyRef)),
      this.tss.structure('TPM2B_NAME', encodeSized(authorization.keyName)),
      this.tss.structure('TPMT_TK_VERIFIED', authorization.ticket),
    );
  }

  /**
   * Requires knowledge of an authorization value, proved now (Part 3, 23.4).
   *
   * @param session proves a value that is not empty; not the policy session itself
   */
  policySecret(
    policySession: TpmHandle,
    entity: Hierarchy | NvIndex,
    options: { readonly policyRef?: Uint8Array; readonly session?: TpmHandle } = {},
  ): void {
    const [timeout, ticket] = [new Output(), new Output()];
    this.tss.run(
      'Esys_PolicySecret',
      entityHandle(entity),
      policySession.handle,
      this.authorization(entity, options.session),
      ESYS.none,
      ESYS.none,
      null,
      null,
      this.tss.structure('TPM2B_NONCE', encodeSized(options.policyRef ?? EMPTY)),
      0,
      timeout.buffer,
      ticket.buffer,
    );
    this.tss.discard(timeout);
    this.tss.discard(ticket);
  }

  /**
   * Replaces the session's policy by "one of these", if it is one of them (Part 3, 23.6). Throws `TPM_RC.value` when it is
   * none of them.
   *
   * @param branches two to eight policy digests
   */
  policyOr(session: TpmHandle, branches: readonly Uint8Array[]): void {
    if (branches.length < 2 || branches.length > 8) {
      throw new RangeError(`cannot make a PolicyOR of ${branches.length} branches: two to eight are possible`);
    }
    const digests = this.tss.structure('TPML_DIGEST', encodeDigests(branches));
    this.tss.run('Esys_PolicyOR', session.handle, ...NO_SESSIONS, digests);
  }

  /** Requires that an NV index compares with `operand` (Part 3, 23.9). Throws `TPM_RC.policy` when it does not. */
  policyNv(
    session: TpmHandle,
    nv: NvIndex,
    condition: {
      readonly operand: Uint8Array;
      readonly comparison: keyof typeof NV_COMPARISON;
      /** Bytes from the index's start. */
      readonly offset?: number;
    },
    authorization: NvAuthorization = { by: 'owner' },
  ): void {
    this.tss.run(
      'Esys_PolicyNV',
      ...this.nvAuthorization(nv, authorization),
      session.handle,
      this.nvSession(nv, authorization),
      ESYS.none,
      ESYS.none,
      this.tss.structure('TPM2B_DIGEST', encodeSized(condition.operand)),
      condition.offset ?? 0,
      NV_COMPARISON[condition.comparison],
    );
  }

  /** The authorizing handle, and the index. */
  protected nvAuthorization(nv: NvIndex, { by }: NvAuthorization): [number, number] {
    return [by === 'owner' ? ESYS.ownerHierarchy : nv.handle, nv.handle];
  }

  protected nvSession(nv: NvIndex, { by, session }: NvAuthorization): number {
    return this.authorization(by === 'owner' ? 'owner' : nv, session);
  }

  #session(type: number, saltKey: number): TpmHandle {
    const session = new Output();
    this.tss.run(
      'Esys_StartAuthSession',
      saltKey,
      ESYS.none,
      ...NO_SESSIONS,
      null,
      type,
      this.tss.structure('TPMT_SYM_DEF', encodeAes128Cfb()),
      TPM_ALG.sha256,
      session.buffer,
    );
    const handle = this.transient(session.value);
    if (type !== SESSION.trial) {
      const attributes = SESSION_CONTINUE | SESSION_DECRYPT | SESSION_ENCRYPT;
      this.tss.run('Esys_TRSess_SetAttributes', session.value, attributes, 0xff);
    }
    return handle;
  }
}
