/** One connection to a TPM: starting it, the authorization values this connection knows, and what its objects are. */
import { type Capability, decodeCapability, encodeSized, TpmReader } from '../formats/tpm-structures.ts';
import { isTpmError, TPM_RC } from './tpm-error.ts';
import { HIERARCHY_HANDLES, type Hierarchy, stayPersistent, TpmHandle } from './tpm-handle.ts';
import { ESYS, Output, TssContext } from './tss.ts';

const TPM_SU_CLEAR = 0;

/** An unused session argument of a command; every command takes three. */
export const NO_SESSIONS = [ESYS.none, ESYS.none, ESYS.none] as const;

export class TpmConnection implements Disposable {
  protected readonly tss: TssContext;
  /** ESYS_TR of what has an authorization value that must not cross the bus. */
  readonly #secretlyAuthorized = new Set<number>();

  /** @param tcti `device:/dev/tpmrm0`, or `swtpm:path=SOCKET`. Throws `TpmError`. */
  constructor(tcti: string) {
    this.tss = new TssContext(tcti);
  }

  [Symbol.dispose](): void {
    this.tss[Symbol.dispose]();
  }

  /** Starts the TPM if firmware has not (Part 3, 9.3). */
  startup(): void {
    try {
      this.tss.run('Esys_Startup', TPM_SU_CLEAR);
    } catch (error) {
      // TPM_RC_INITIALIZE: it is started already, which is the rule.
      if (!isTpmError(error, TPM_RC.initialize)) throw error;
    }
  }

  /**
   * Tells this connection the authorization value (at most 32 bytes) of a hierarchy or an NV index. Commands that it
   * authorizes then need an encrypted session, in which the value only keys an HMAC and does not cross the bus.
   */
  useAuth(entity: Hierarchy | TpmHandle, auth: Uint8Array): void {
    const handle = entityHandle(entity);
    const structure = this.tss.structure('TPM2B_DIGEST', encodeSized(auth));
    try {
      this.tss.run('Esys_TR_SetAuth', handle, structure);
    } finally {
      structure.fill(0);
    }
    this.noteAuth(handle, auth);
  }

  protected noteAuth(handle: number, auth: Uint8Array): void {
    if (auth.length > 0) this.#secretlyAuthorized.add(handle);
    else this.#secretlyAuthorized.delete(handle);
  }

  /** The session argument that authorizes: the given session, or the empty password where there is nothing to hide. */
  protected authorization(entity: Hierarchy | TpmHandle, session: TpmHandle | undefined): number {
    if (session !== undefined) return session.handle;
    if (this.#secretlyAuthorized.has(entityHandle(entity))) {
      const what = typeof entity === 'string' ? `the ${entity} hierarchy` : 'this object';
      throw new TypeError(
        `cannot authorize with the value of ${what}: without a session it would cross the bus in clear; pass one from encryptedSession()`,
      );
    }
    return ESYS.password;
  }

  protected transient(handle: number): TpmHandle {
    return new TpmHandle(handle, () => this.flush(handle));
  }

  protected permanent(handle: number): TpmHandle {
    return new TpmHandle(handle, stayPersistent);
  }

  /** On a broken connection nothing can be flushed: closing it makes the resource manager do so. */
  protected flush(handle: number): void {
    if (!this.tss.isBroken) this.tss.run('Esys_FlushContext', handle);
  }

  /**
   * Opens a persistent object or NV index (one command). Undefined when there is none.
   *
   * @returns ESYS_TR, and the public area that the stack will use from now on: what is compared is what is used
   */
  protected openPersistent(handle: number): { handle: number; publicArea: Buffer } | undefined {
    const object = new Output();
    try {
      this.tss.run('Esys_TR_FromTPMPublic', handle, ...NO_SESSIONS, object.buffer);
    } catch (error) {
      if (isTpmError(error, TPM_RC.handle)) return undefined;
      throw error;
    }
    return { handle: object.value, publicArea: this.publicAreaOf(object.value) };
  }

  /** TPMT_PUBLIC of an object or TPMS_NV_PUBLIC of an index, from the stack's memory. */
  protected publicAreaOf(object: number): Buffer {
    const reader = new TpmReader(this.tss.describe(object), 'ESYS_TR');
    reader.u32('handle');
    reader.sized('name');
    reader.u32('kind');
    const publicArea = Buffer.from(reader.sized('public area'));
    reader.end();
    return publicArea;
  }

  protected capability(kind: number, property: number, count: number): Capability {
    const [more, data] = [new Output(), new Output()];
    this.tss.run('Esys_GetCapability', ...NO_SESSIONS, kind, property, count, more.buffer, data.buffer);
    return decodeCapability(this.tss.take('TPMS_CAPABILITY_DATA', data));
  }
}

export function entityHandle(entity: Hierarchy | TpmHandle): number {
  return typeof entity === 'string' ? HIERARCHY_HANDLES[entity] : entity.handle;
}
