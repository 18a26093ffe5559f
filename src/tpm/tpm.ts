/**
 * The operations Ashlar asks of a TPM 2.0 (TCG TPM 2.0 Library, Part 3), one connection, blocking: for a Worker.
 *
 * Objects and sessions live in the TPM's few slots and are flushed when their scope ends (`using`).
 */
import {
  CAPABILITY,
  decodeCapability,
  decodeDigests,
  decodePcrSelections,
  decodeSized,
  encodeAes128Cfb,
  encodePcrSelections,
  encodePublic,
  encodeRsassaSha256Signature,
  encodeSensitiveCreate,
  encodeSha256DigestValues,
  encodeSized,
  OBJECT,
  objectName,
  type PcrSelection,
  type PublicArea,
  TPM_ALG,
} from '../formats/tpm-structures.ts';
import { ESYS, isTpmError, Output, TPM_RC, TssContext } from './tss.ts';

/** Where an operating system keeps the storage root key (TCG TPM v2.0 Provisioning Guidance, 7.8). */
export const STORAGE_ROOT_KEY_HANDLE = 0x81000001;

/** TPM_PT (Part 2, 6.13). */
const PROPERTY = { manufacturer: 0x105, permanent: 0x200, lockoutCounter: 0x20e, maxAuthFail: 0x20f } as const;
const PERMANENT_IN_LOCKOUT = 1 << 9;
const TPM_SU_CLEAR = 0;
const SESSION = { hmac: 0, policy: 1, trial: 3 } as const;
/** TPMA_SESSION (Part 2, 8.4). */
const SESSION_CONTINUE = 0x01;
const SESSION_DECRYPT = 0x20;
const SESSION_ENCRYPT = 0x40;
const EMPTY = new Uint8Array();
const ZERO_POINT = new Uint8Array(32);

/**
 * The ECC P-256 storage root key of the TCG's Provisioning Guidance (7.5.1): the same seed and template give the same
 * key, so whoever makes it again can check that a persistent one is genuine.
 */
const STORAGE_ROOT_KEY: PublicArea = {
  type: 'ecc-storage',
  attributes:
    OBJECT.fixedTpm |
    OBJECT.fixedParent |
    OBJECT.sensitiveDataOrigin |
    OBJECT.userWithAuth |
    OBJECT.noDictionaryAttackProtection |
    OBJECT.restricted |
    OBJECT.decrypt,
  authPolicy: EMPTY,
  x: ZERO_POINT,
  y: ZERO_POINT,
};

/** Sealed data as it is kept outside the TPM. Neither part is secret; both are useless without this TPM. */
export interface SealedObject {
  /** TPMT_PUBLIC. */
  readonly publicArea: Uint8Array;
  /** The contents of TPM2B_PRIVATE. */
  readonly privateArea: Uint8Array;
}

export interface Lockout {
  /** Failed authorizations that count. */
  readonly counter: number;
  /** Failures at which the lockout begins. */
  readonly limit: number;
  readonly active: boolean;
}

/** A key, sealed object or session in a slot of the TPM. */
export class TpmHandle implements Disposable {
  /** ESYS_TR of this connection. */
  readonly handle: number;
  readonly #release: () => void;

  constructor(handle: number, release: () => void) {
    this.handle = handle;
    this.#release = release;
  }

  [Symbol.dispose](): void {
    this.#release();
  }
}

/** The storage root key, with the name of the object that the TPM has just derived from its seed. */
export class StorageRootKey extends TpmHandle {
  readonly name: Uint8Array;
  /** Something worth telling an operator; undefined when all is as it should be. */
  readonly warning: string | undefined;

  constructor(handle: number, release: () => void, name: Uint8Array, warning?: string) {
    super(handle, release);
    this.name = name;
    this.warning = warning;
  }
}

/** A verification ticket (TPMT_TK_VERIFIED): the TPM's own note that it has checked a signature. */
export type VerifiedTicket = Uint8Array & { readonly ticket?: never };

export class Tpm implements Disposable {
  readonly #tss: TssContext;

  /** @param tcti `device:/dev/tpmrm0`, or `swtpm:path=SOCKET`. Throws `TpmError`. */
  constructor(tcti: string) {
    this.#tss = new TssContext(tcti);
  }

  [Symbol.dispose](): void {
    this.#tss[Symbol.dispose]();
  }

  /** Starts the TPM if firmware has not (Part 3, 9.3). */
  startup(): void {
    try {
      this.#tss.run('Esys_Startup', TPM_SU_CLEAR);
    } catch (error) {
      // TPM_RC_INITIALIZE: it is started already, which is the rule.
      if (!isTpmError(error, TPM_RC.initialize)) throw error;
    }
  }

  /** Four letters, as the vendor registered them with the TCG: `IBM`, `INTC`, `STM`. */
  manufacturer(): string {
    const value = this.#property(PROPERTY.manufacturer);
    const letters = Buffer.alloc(4);
    letters.writeUInt32BE(value);
    return letters
      .toString('latin1')
      .replace(/[^ -~]/g, '')
      .trim();
  }

  lockout(): Lockout {
    return {
      counter: this.#property(PROPERTY.lockoutCounter),
      limit: this.#property(PROPERTY.maxAuthFail),
      active: (this.#property(PROPERTY.permanent) & PERMANENT_IN_LOCKOUT) !== 0,
    };
  }

  /** The banks that are allocated, each with its PCRs. */
  pcrBanks(): PcrSelection[] {
    const capability = this.#capability(CAPABILITY.pcrs, 0, 1);
    if (capability.kind !== 'pcrs') throw new Error('cannot read PCR banks: the TPM answered with something else');
    return capability.selections.filter(({ pcrs }) => pcrs.length > 0);
  }

  /** Values of the SHA-256 bank by index. Throws when the bank lacks one of them. */
  readPcrs(indices: readonly number[]): Map<number, Buffer> {
    const values = new Map<number, Buffer>();
    let left = [...indices];
    while (left.length > 0) {
      const [counter, read, digests] = [new Output(), new Output(), new Output()];
      const selection = this.#tss.structure('TPML_PCR_SELECTION', sha256Selection(left));
      this.#tss.run('Esys_PCR_Read', ...NO_SESSIONS, selection, counter.buffer, read.buffer, digests.buffer);
      const found = decodePcrSelections(this.#tss.take('TPML_PCR_SELECTION', read)).flatMap(({ pcrs }) => pcrs);
      const bytes = decodeDigests(this.#tss.take('TPML_DIGEST', digests));
      if (found.length === 0) {
        throw new Error(
          `cannot read PCR ${left.join(', ')}: the TPM has no SHA-256 bank with it; enable SHA-256 in the firmware's TPM settings`,
        );
      }
      for (const [position, index] of found.entries()) values.set(index, Buffer.from(bytes[position] ?? EMPTY));
      left = left.filter((index) => !values.has(index));
    }
    return values;
  }

  /** Extends the SHA-256 bank: PCR = SHA-256(PCR ‖ digest). */
  extendPcr(index: number, digest: Uint8Array): void {
    const values = this.#tss.structure('TPML_DIGEST_VALUES', encodeSha256DigestValues(digest));
    this.#tss.run('Esys_PCR_Extend', index, ESYS.password, ESYS.none, ESYS.none, values);
  }

  /** Random bytes of the TPM, at most 32 a call; encrypted on the bus when a session is given. */
  random(byteCount: number, session?: TpmHandle): Buffer {
    const bytes = new Output();
    this.#tss.run('Esys_GetRandom', session?.handle ?? ESYS.none, ESYS.none, ESYS.none, byteCount, bytes.buffer);
    const random = decodeSized(this.#tss.take('TPM2B_DIGEST', bytes), 'random bytes');
    if (random.length !== byteCount) throw new Error(`cannot get ${byteCount} random bytes: TPM gave ${random.length}`);
    return Buffer.from(random);
  }

  /**
   * The storage root key, derived afresh and compared with the persistent one, which is made if absent. Callers salt
   * their sessions with the fresh name, so an object that somebody else has put at the well-known handle is not used.
   */
  storageRootKey(): StorageRootKey {
    const primary = this.#createPrimary(STORAGE_ROOT_KEY);
    let stays = false;
    try {
      const name = this.#name(primary);
      const existing = this.#persistent(STORAGE_ROOT_KEY_HANDLE);
      if (existing === undefined) {
        const made = new Output();
        const owner = [ESYS.ownerHierarchy, primary.handle, ESYS.password, ESYS.none, ESYS.none] as const;
        this.#tss.run('Esys_EvictControl', ...owner, STORAGE_ROOT_KEY_HANDLE, made.buffer);
        return new StorageRootKey(made.value, stayPersistent, name);
      }
      if (Buffer.compare(this.#name(existing), name) === 0) {
        return new StorageRootKey(existing.handle, stayPersistent, name);
      }
      stays = true;
      const warning =
        'the TPM keeps another key than the standard ECC P-256 storage root key at 0x81000001, left by an earlier ' +
        'system; it is not used (clearing the TPM in the firmware removes it)';
      return new StorageRootKey(primary.handle, () => primary[Symbol.dispose](), name, warning);
    } finally {
      if (!stays) primary[Symbol.dispose]();
    }
  }

  /** An HMAC session salted to a key, which encrypts the first parameter both ways. For commands other than unseal. */
  encryptedSession(saltKey: TpmHandle): TpmHandle {
    return this.#session(SESSION.hmac, saltKey.handle);
  }

  /** A policy session salted to a key, which encrypts the first parameter both ways. */
  policySession(saltKey: TpmHandle): TpmHandle {
    return this.#session(SESSION.policy, saltKey.handle);
  }

  /** A session that only computes a policy digest. */
  trialSession(): TpmHandle {
    return this.#session(SESSION.trial, ESYS.none);
  }

  /** Seals at most 128 bytes below the storage root key; only the policy opens it (no password, no lockout). */
  seal(
    parent: StorageRootKey,
    session: TpmHandle,
    { secret, authPolicy }: { secret: Uint8Array; authPolicy: Uint8Array },
  ): SealedObject {
    const template: PublicArea = { type: 'sealed', attributes: SEALED_ATTRIBUTES, authPolicy, unique: EMPTY };
    const wire = encodeSensitiveCreate({ auth: EMPTY, data: secret });
    const sensitive = this.#tss.structure('TPM2B_SENSITIVE_CREATE', wire);
    wire.fill(0);
    try {
      const [privateArea, publicArea, creation, hash, ticket] = outputs5();
      this.#tss.run(
        'Esys_Create',
        parent.handle,
        session.handle,
        ESYS.none,
        ESYS.none,
        sensitive,
        this.#publicStructure(template),
        this.#tss.structure('TPM2B_DATA', encodeSized(EMPTY)),
        this.#tss.structure('TPML_PCR_SELECTION', encodePcrSelections([])),
        privateArea.buffer,
        publicArea.buffer,
        creation.buffer,
        hash.buffer,
        ticket.buffer,
      );
      for (const output of [creation, hash, ticket]) this.#tss.discard(output);
      return {
        privateArea: decodeSized(this.#tss.take('TPM2B_PRIVATE', privateArea), 'TPM2B_PRIVATE'),
        publicArea: decodeSized(this.#tss.take('TPM2B_PUBLIC', publicArea), 'TPM2B_PUBLIC'),
      };
    } finally {
      sensitive.fill(0);
    }
  }

  /** Loads a sealed object. Throws `TpmError` with `TPM_RC.integrity` when another TPM made it. */
  load(parent: StorageRootKey, session: TpmHandle, sealed: SealedObject): TpmHandle {
    const object = new Output();
    this.#tss.run(
      'Esys_Load',
      parent.handle,
      session.handle,
      ESYS.none,
      ESYS.none,
      this.#tss.structure('TPM2B_PRIVATE', encodeSized(sealed.privateArea)),
      this.#tss.structure('TPM2B_PUBLIC', encodeSized(sealed.publicArea)),
      object.buffer,
    );
    return this.#transient(object.value);
  }

  /** The secret of a sealed object whose policy the session has met. Throws `TPM_RC.policyFail`. Wipe it after use. */
  unseal(object: TpmHandle, policySession: TpmHandle): Buffer {
    const data = new Output();
    this.#tss.run('Esys_Unseal', object.handle, policySession.handle, ESYS.none, ESYS.none, data.buffer);
    const wire = this.#tss.take('TPM2B_SENSITIVE_DATA', data);
    const secret = Buffer.from(decodeSized(wire, 'TPM2B_SENSITIVE_DATA'));
    wire.fill(0);
    return secret;
  }

  /** Loads a public key (TPMT_PUBLIC) for verification, with the name that its template gives. */
  loadExternal(publicArea: Uint8Array): TpmHandle & { readonly name: Uint8Array } {
    const object = new Output();
    const area = this.#tss.structure('TPM2B_PUBLIC', encodeSized(publicArea));
    this.#tss.run('Esys_LoadExternal', ...NO_SESSIONS, null, area, ESYS.ownerHierarchy, object.buffer);
    return Object.assign(this.#transient(object.value), { name: objectName(publicArea) });
  }

  /** Checks an RSASSA-SHA256 signature in the TPM. Throws `TPM_RC.signature`. */
  verifySignature(key: TpmHandle, digest: Uint8Array, signature: Uint8Array): VerifiedTicket {
    const ticket = new Output();
    this.#tss.run(
      'Esys_VerifySignature',
      key.handle,
      ...NO_SESSIONS,
      this.#tss.structure('TPM2B_DIGEST', encodeSized(digest)),
      this.#tss.structure('TPMT_SIGNATURE', encodeRsassaSha256Signature(signature)),
      ticket.buffer,
    );
    return this.#tss.take('TPMT_TK_VERIFIED', ticket);
  }

  /** Binds a policy session to the current values of these PCRs of the SHA-256 bank (Part 3, 23.7). */
  policyPcr(session: TpmHandle, indices: readonly number[]): void {
    this.#tss.run(
      'Esys_PolicyPCR',
      session.handle,
      ...NO_SESSIONS,
      this.#tss.structure('TPM2B_DIGEST', encodeSized(EMPTY)),
      this.#tss.structure('TPML_PCR_SELECTION', sha256Selection(indices)),
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
    this.#tss.run(
      'Esys_PolicyAuthorize',
      session.handle,
      ...NO_SESSIONS,
      this.#tss.structure('TPM2B_DIGEST', encodeSized(authorization.approvedPolicy)),
      this.#tss.structure('TPM2B_NONCE', encodeSized(authorization.policyRef)),
      this.#tss.structure('TPM2B_NAME', encodeSized(authorization.keyName)),
      this.#tss.structure('TPMT_TK_VERIFIED', authorization.ticket),
    );
  }

  policyDigest(session: TpmHandle): Buffer {
    const digest = new Output();
    this.#tss.run('Esys_PolicyGetDigest', session.handle, ...NO_SESSIONS, digest.buffer);
    return Buffer.from(decodeSized(this.#tss.take('TPM2B_DIGEST', digest), 'TPM2B_DIGEST'));
  }

  #createPrimary(template: PublicArea): TpmHandle {
    const [object, publicArea, creation, hash, ticket] = outputs5();
    this.#tss.run(
      'Esys_CreatePrimary',
      ESYS.ownerHierarchy,
      ESYS.password,
      ESYS.none,
      ESYS.none,
      this.#tss.structure('TPM2B_SENSITIVE_CREATE', encodeSensitiveCreate({ auth: EMPTY, data: EMPTY })),
      this.#publicStructure(template),
      this.#tss.structure('TPM2B_DATA', encodeSized(EMPTY)),
      this.#tss.structure('TPML_PCR_SELECTION', encodePcrSelections([])),
      object.buffer,
      publicArea.buffer,
      creation.buffer,
      hash.buffer,
      ticket.buffer,
    );
    for (const output of [publicArea, creation, hash, ticket]) this.#tss.discard(output);
    return this.#transient(object.value);
  }

  #session(type: number, saltKey: number): TpmHandle {
    const session = new Output();
    this.#tss.run(
      'Esys_StartAuthSession',
      saltKey,
      ESYS.none,
      ...NO_SESSIONS,
      null,
      type,
      this.#tss.structure('TPMT_SYM_DEF', encodeAes128Cfb()),
      TPM_ALG.sha256,
      session.buffer,
    );
    const handle = this.#transient(session.value);
    if (type !== SESSION.trial) {
      const attributes = SESSION_CONTINUE | SESSION_DECRYPT | SESSION_ENCRYPT;
      this.#tss.run('Esys_TRSess_SetAttributes', session.value, attributes, 0xff);
    }
    return handle;
  }

  /** An object at a persistent handle, undefined when there is none. */
  #persistent(handle: number): TpmHandle | undefined {
    const capability = this.#capability(CAPABILITY.handles, handle, 1);
    if (capability.kind !== 'handles' || capability.handles[0] !== handle) return undefined;
    const object = new Output();
    this.#tss.run('Esys_TR_FromTPMPublic', handle, ...NO_SESSIONS, object.buffer);
    return new TpmHandle(object.value, stayPersistent);
  }

  #name(object: TpmHandle): Buffer {
    const name = new Output();
    this.#tss.run('Esys_TR_GetName', object.handle, name.buffer);
    return Buffer.from(decodeSized(this.#tss.take('TPM2B_NAME', name), 'TPM2B_NAME'));
  }

  #capability(kind: number, property: number, count: number): ReturnType<typeof decodeCapability> {
    const [more, data] = [new Output(), new Output()];
    this.#tss.run('Esys_GetCapability', ...NO_SESSIONS, kind, property, count, more.buffer, data.buffer);
    return decodeCapability(this.#tss.take('TPMS_CAPABILITY_DATA', data));
  }

  #property(property: number): number {
    const capability = this.#capability(CAPABILITY.properties, property, 1);
    const value = capability.kind === 'properties' ? capability.properties.get(property) : undefined;
    if (value === undefined) throw new Error(`cannot read TPM property 0x${property.toString(16)}: the TPM has none`);
    return value;
  }

  #publicStructure(area: PublicArea): Buffer {
    return this.#tss.structure('TPM2B_PUBLIC', encodeSized(encodePublic(area)));
  }

  #transient(handle: number): TpmHandle {
    return new TpmHandle(handle, () => this.#tss.run('Esys_FlushContext', handle));
  }
}

const NO_SESSIONS = [ESYS.none, ESYS.none, ESYS.none] as const;
const SEALED_ATTRIBUTES = OBJECT.fixedTpm | OBJECT.fixedParent | OBJECT.noDictionaryAttackProtection;

function sha256Selection(pcrs: readonly number[]): Buffer {
  return encodePcrSelections([{ hash: TPM_ALG.sha256, pcrs }]);
}

function outputs5(): [Output, Output, Output, Output, Output] {
  return [new Output(), new Output(), new Output(), new Output(), new Output()];
}

/** A persistent object takes no slot; the stack forgets its handle with the connection. */
function stayPersistent(): void {}
