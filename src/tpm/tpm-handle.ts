/** What a connection holds in the TPM, and who authorizes its use. */
import { type NvPublic, nvName } from '../formats/tpm-nv-public.ts';
import { objectName } from '../formats/tpm-public-area.ts';
import { ESYS } from './tss.ts';

/**
 * A key, sealed object, NV index or session of one connection. Those that take a slot of the TPM are flushed at the end of
 * the scope.
 */
export class TpmHandle implements Disposable {
  /** ESYS_TR of this connection. */
  readonly handle: number;
  readonly #release: () => void;
  #isReleased = false;

  constructor(handle: number, release: () => void) {
    this.handle = handle;
    this.#release = release;
  }

  /** Again it does nothing: a handle may be given back before its scope ends. */
  [Symbol.dispose](): void {
    if (this.#isReleased) return;
    this.#isReleased = true;
    this.#release();
  }
}

/** A key whose public area the TPM has told. */
export class TpmKey extends TpmHandle {
  /** TPMT_PUBLIC. */
  readonly publicArea: Uint8Array;
  /** nameAlg ‖ SHA-256(publicArea) (Part 1, 16). */
  readonly name: Uint8Array;

  constructor(handle: number, release: () => void, publicArea: Uint8Array) {
    super(handle, release);
    this.publicArea = publicArea;
    this.name = objectName(publicArea);
  }
}

/** The storage root key: sealed objects hang below it, and sessions are salted to it. */
export class StorageRootKey extends TpmKey {
  /** Something worth telling an operator; undefined when all is as it should be. */
  readonly warning: string | undefined;

  constructor(handle: number, release: () => void, publicArea: Uint8Array, warning?: string) {
    super(handle, release, publicArea);
    this.warning = warning;
  }
}

/** An NV index that exists. */
export class NvIndex extends TpmHandle {
  /** When it was opened: the first write sets `NV.written` and so changes the name. */
  readonly publicArea: NvPublic;
  /** The name that goes with {@link publicArea}. */
  readonly name: Uint8Array;

  constructor(handle: number, publicArea: NvPublic) {
    super(handle, stayPersistent);
    this.publicArea = publicArea;
    this.name = nvName(publicArea);
  }

  /** The index as the TCG's registry writes it. */
  get label(): string {
    return `0x${this.publicArea.index.toString(16).padStart(8, '0')}`;
  }
}

/** Persistent objects and NV indices take no slot; the stack forgets its handle with the connection. */
export function stayPersistent(): void {}

/** Whose authorization value allows something: the machine's owner, the privacy administrator, or who ends a lockout. */
export type Hierarchy = 'owner' | 'endorsement' | 'lockout';

export const HIERARCHY_HANDLES: Record<Hierarchy, number> = {
  owner: ESYS.ownerHierarchy,
  endorsement: ESYS.endorsementHierarchy,
  lockout: ESYS.lockoutHierarchy,
};
