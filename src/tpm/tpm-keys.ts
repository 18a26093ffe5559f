/** Keys and sealed objects: primaries from the TCG's templates, what hangs below them, and keys of others. */
import { encodePublic, OBJECT, objectName, type PublicArea } from '../formats/tpm-public-area.ts';
import {
  decodeSized,
  encodePcrSelections,
  encodeRsassaSha256Signature,
  encodeSensitiveCreate,
  encodeSized,
} from '../formats/tpm-structures.ts';
import { ATTESTATION_KEY, ENDORSEMENT_KEY, type KeyKind, STORAGE_ROOT_KEY } from './key-templates.ts';
import { NO_SESSIONS } from './tpm-connection.ts';
import {
  HIERARCHY_HANDLES,
  type Hierarchy,
  StorageRootKey,
  stayPersistent,
  type TpmHandle,
  TpmKey,
} from './tpm-handle.ts';
import { TpmSessions, type VerifiedTicket } from './tpm-sessions.ts';
import { ESYS, Output } from './tss.ts';

/** Where an operating system keeps the storage root key (TCG TPM v2.0 Provisioning Guidance, 7.8). */
export const STORAGE_ROOT_KEY_HANDLE = 0x81000001;

const EMPTY = new Uint8Array();
const SEALED_ATTRIBUTES = OBJECT.fixedTpm | OBJECT.fixedParent | OBJECT.noDictionaryAttackProtection;

/** Sealed data as it is kept outside the TPM. Neither part is secret; both are useless without this TPM. */
export interface SealedObject {
  /** TPMT_PUBLIC. */
  readonly publicArea: Uint8Array;
  /** The contents of TPM2B_PRIVATE. */
  readonly privateArea: Uint8Array;
}

export class TpmKeys extends TpmSessions {
  /**
   * The storage root key, derived afresh and compared with the persistent one, which is made if absent. Needs the owner's
   * authorization, so it is for provisioning; later starts use {@link persistentStorageRootKey}.
   *
   * Callers salt their sessions with the fresh name, so an object that somebody else has put at the well-known handle is
   * not used.
   */
  storageRootKey(): StorageRootKey {
    const primary = this.createStorageRootKey('ecc-p256');
    let stays = false;
    try {
      const existing = this.openPersistent(STORAGE_ROOT_KEY_HANDLE);
      if (existing === undefined) {
        const made = this.evictControl(primary, STORAGE_ROOT_KEY_HANDLE);
        return new StorageRootKey(made.handle, stayPersistent, primary.publicArea);
      }
      if (existing.publicArea.equals(primary.publicArea)) {
        return new StorageRootKey(existing.handle, stayPersistent, primary.publicArea);
      }
      stays = true;
      const warning =
        'the TPM keeps another key than the standard ECC P-256 storage root key at 0x81000001, left by an earlier ' +
        'system; it is not used (clearing the TPM in the firmware removes it)';
      return new StorageRootKey(primary.handle, () => primary[Symbol.dispose](), primary.publicArea, warning);
    } finally {
      if (!stays) primary[Symbol.dispose]();
    }
  }

  /**
   * The key at 0x81000001, in one command and without the owner's authorization; undefined when there is none. Compare its
   * `name` with the one from provisioning before you salt a session to it: the name is computed here from the very public
   * area to which sessions will be salted, so that nobody on the bus can show one key and have another used.
   */
  persistentStorageRootKey(): StorageRootKey | undefined {
    const existing = this.openPersistent(STORAGE_ROOT_KEY_HANDLE);
    return existing && new StorageRootKey(existing.handle, stayPersistent, existing.publicArea);
  }

  /** The TCG's storage root key, transient (Provisioning Guidance, 7.5.1). */
  createStorageRootKey(kind: KeyKind, session?: TpmHandle): TpmKey {
    return this.#createPrimary('owner', STORAGE_ROOT_KEY[kind], session);
  }

  /** The TCG's endorsement key (EK Credential Profile, templates L-1 and L-2), transient. */
  createEk(kind: KeyKind, session?: TpmHandle): TpmKey {
    return this.#createPrimary('endorsement', ENDORSEMENT_KEY[kind], session);
  }

  /** The attestation key, transient: a restricted ECDSA P-256 signing key of the endorsement hierarchy. */
  createAk(session?: TpmHandle): TpmKey {
    return this.#createPrimary('endorsement', ATTESTATION_KEY, session);
  }

  /**
   * Keeps a transient object of the owner at a persistent handle (0x81000000 to 0x817fffff), or removes a persistent
   * object when given that itself (Part 3, 28.5).
   */
  evictControl(object: TpmHandle, persistentHandle: number, session?: TpmHandle): TpmHandle {
    const made = new Output();
    const authorization = this.authorization('owner', session);
    const owner = [ESYS.ownerHierarchy, object.handle, authorization, ESYS.none, ESYS.none] as const;
    this.tss.run('Esys_EvictControl', ...owner, persistentHandle, made.buffer);
    return this.permanent(made.value);
  }

  /** Seals at most 128 bytes below the storage root key; only the policy opens it (no password, no lockout). */
  seal(
    parent: TpmHandle,
    session: TpmHandle,
    { secret, authPolicy }: { secret: Uint8Array; authPolicy: Uint8Array },
  ): SealedObject {
    const template: PublicArea = { type: 'sealed', attributes: SEALED_ATTRIBUTES, authPolicy, unique: EMPTY };
    const wire = encodeSensitiveCreate({ auth: EMPTY, data: secret });
    const sensitive = this.tss.structure('TPM2B_SENSITIVE_CREATE', wire);
    wire.fill(0);
    try {
      const [privateArea, publicArea, creation, hash, ticket] = outputs5();
      this.tss.run(
        'Esys_Create',
        parent.handle,
        session.handle,
        ESYS.none,
        ESYS.none,
        sensitive,
        this.#publicStructure(template),
        this.tss.structure('TPM2B_DATA', encodeSized(EMPTY)),
        this.tss.structure('TPML_PCR_SELECTION', encodePcrSelections([])),
        privateArea.buffer,
        publicArea.buffer,
        creation.buffer,
        hash.buffer,
        ticket.buffer,
      );
      for (const output of [creation, hash, ticket]) this.tss.discard(output);
      return {
        privateArea: decodeSized(this.tss.take('TPM2B_PRIVATE', privateArea), 'TPM2B_PRIVATE'),
        publicArea: decodeSized(this.tss.take('TPM2B_PUBLIC', publicArea), 'TPM2B_PUBLIC'),
      };
    } finally {
      sensitive.fill(0);
    }
  }

  /**
   * Loads a sealed object below a parent with an empty authorization value. Nothing that is sent is secret: the private
   * area is encrypted by the parent. Throws `TpmError` with `TPM_RC.integrity` when another TPM made it.
   */
  load(parent: TpmHandle, sealed: SealedObject): TpmHandle {
    const object = new Output();
    this.tss.run(
      'Esys_Load',
      parent.handle,
      ESYS.password,
      ESYS.none,
      ESYS.none,
      this.tss.structure('TPM2B_PRIVATE', encodeSized(sealed.privateArea)),
      this.tss.structure('TPM2B_PUBLIC', encodeSized(sealed.publicArea)),
      object.buffer,
    );
    return this.transient(object.value);
  }

  /** The secret of a sealed object whose policy the session has met. Throws `TPM_RC.policyFail`. Wipe it after use. */
  unseal(object: TpmHandle, policySession: TpmHandle): Buffer {
    const data = new Output();
    this.tss.run('Esys_Unseal', object.handle, policySession.handle, ESYS.none, ESYS.none, data.buffer);
    const wire = this.tss.take('TPM2B_SENSITIVE_DATA', data);
    const secret = Buffer.from(decodeSized(wire, 'TPM2B_SENSITIVE_DATA'));
    wire.fill(0);
    return secret;
  }

  /** Loads a public key (TPMT_PUBLIC) for verification, with the name that its template gives. */
  loadExternal(publicArea: Uint8Array): TpmHandle & { readonly name: Uint8Array } {
    const object = new Output();
    const area = this.tss.structure('TPM2B_PUBLIC', encodeSized(publicArea));
    this.tss.run('Esys_LoadExternal', ...NO_SESSIONS, null, area, ESYS.ownerHierarchy, object.buffer);
    return Object.assign(this.transient(object.value), { name: objectName(publicArea) });
  }

  /** Checks an RSASSA-SHA256 signature in the TPM. Throws `TPM_RC.signature`. */
  verifySignature(key: TpmHandle, digest: Uint8Array, signature: Uint8Array): VerifiedTicket {
    const ticket = new Output();
    this.tss.run(
      'Esys_VerifySignature',
      key.handle,
      ...NO_SESSIONS,
      this.tss.structure('TPM2B_DIGEST', encodeSized(digest)),
      this.tss.structure('TPMT_SIGNATURE', encodeRsassaSha256Signature(signature)),
      ticket.buffer,
    );
    return this.tss.take('TPMT_TK_VERIFIED', ticket);
  }

  #createPrimary(hierarchy: Hierarchy, template: PublicArea, session: TpmHandle | undefined): TpmKey {
    const [object, publicArea, creation, hash, ticket] = outputs5();
    this.tss.run(
      'Esys_CreatePrimary',
      HIERARCHY_HANDLES[hierarchy],
      this.authorization(hierarchy, session),
      ESYS.none,
      ESYS.none,
      this.tss.structure('TPM2B_SENSITIVE_CREATE', encodeSensitiveCreate({ auth: EMPTY, data: EMPTY })),
      this.#publicStructure(template),
      this.tss.structure('TPM2B_DATA', encodeSized(EMPTY)),
      this.tss.structure('TPML_PCR_SELECTION', encodePcrSelections([])),
      object.buffer,
      publicArea.buffer,
      creation.buffer,
      hash.buffer,
      ticket.buffer,
    );
    for (const output of [creation, hash, ticket]) this.tss.discard(output);
    const area = decodeSized(this.tss.take('TPM2B_PUBLIC', publicArea), 'TPM2B_PUBLIC');
    return new TpmKey(object.value, () => this.flush(object.value), area);
  }

  #publicStructure(area: PublicArea): Buffer {
    return this.tss.structure('TPM2B_PUBLIC', encodeSized(encodePublic(area)));
  }
}

function outputs5(): [Output, Output, Output, Output, Output] {
  return [new Output(), new Output(), new Output(), new Output(), new Output()];
}
