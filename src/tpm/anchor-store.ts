/** The anchors in a TPM's non-volatile memory (`anchor.ts` says what they are). */
import { NV } from '../formats/tpm-nv-public.ts';
import { ANCHOR_BYTES, ANCHOR_INDICES, type Anchor, decodeAnchor, encodeAnchor } from './anchor.ts';
import type { NvIndex, Tpm, TpmHandle } from './tpm.ts';
import { isTpmError, TPM_RC } from './tpm-error.ts';

/** Neither the owner nor a policy reads or writes, and wrong values neither lock the TPM nor fail in a lockout. */
const ATTRIBUTES = NV.authRead + NV.authWrite + NV.noDictionaryAttackProtection;

/** The TPM has no anchor for a sealed key, or one that this key does not open. */
export class AnchorError extends Error {
  override readonly name = 'AnchorError';
}

/** The anchors that there are, by index. One command. */
export function definedAnchors(tpm: Tpm): number[] {
  const found = new Set(tpm.handles(ANCHOR_INDICES[0]));
  return ANCHOR_INDICES.filter((index) => found.has(index));
}

/** Makes an anchor, with nothing in it yet. The connection knows the owner's authorization value. */
export function defineAnchor(tpm: Tpm, saltKey: TpmHandle, index: number, auth: Uint8Array): void {
  using session = tpm.encryptedSession(saltKey);
  const definition = { index, attributes: ATTRIBUTES, authPolicy: new Uint8Array(), sizeBytes: ANCHOR_BYTES, auth };
  try {
    tpm.nvDefine(definition, session);
  } catch (error) {
    if (!isTpmError(error, TPM_RC.nvSpace)) throw error;
    throw new Error(
      `cannot keep ${ANCHOR_BYTES} bytes in the TPM: its memory is full; clear the TPM in the firmware settings`,
      { cause: error },
    );
  }
}

/** Removes an anchor. The connection knows the owner's authorization value. */
export function undefineAnchor(tpm: Tpm, saltKey: TpmHandle, index: number): void {
  const nv = tpm.nvOpen(index);
  if (nv === undefined) return;
  using session = tpm.encryptedSession(saltKey);
  tpm.nvUndefine(nv, session);
}

/** Reads an anchor: three commands, and the session's flush. Throws `AnchorError`. */
export function readAnchor(tpm: Tpm, saltKey: TpmHandle, index: number, auth: Uint8Array): Anchor {
  const nv = openAnchor(tpm, index, auth);
  using session = tpm.encryptedSession(saltKey);
  try {
    const bytes = tpm.nvRead(nv, ANCHOR_BYTES, { by: 'index', session });
    const anchor = decodeAnchor(bytes);
    return anchor;
  } catch (error) {
    throw explain(error, nv);
  }
}

export function writeAnchor(tpm: Tpm, saltKey: TpmHandle, index: number, auth: Uint8Array, anchor: Anchor): void {
  const nv = openAnchor(tpm, index, auth);
  using session = tpm.encryptedSession(saltKey);
  const bytes = encodeAnchor(anchor);
  try {
    // One command: all or nothing, whatever happens to the power.
    tpm.nvWrite(nv, bytes, { by: 'index', session });
  } catch (error) {
    throw explain(error, nv);
  } finally {
    bytes.fill(0);
  }
}

function openAnchor(tpm: Tpm, index: number, auth: Uint8Array): NvIndex {
  const nv = tpm.nvOpen(index);
  if (nv === undefined) {
    throw new AnchorError(
      `the TPM keeps no anchor 0x${index.toString(16).padStart(8, '0')} for this key: it was retired, and an older copy of ` +
        'the disk was put back, or somebody removed it',
    );
  }
  const { attributes, sizeBytes } = nv.publicArea;
  if ((attributes & ~NV.written) >>> 0 !== ATTRIBUTES || sizeBytes !== ANCHOR_BYTES) {
    throw new AnchorError(
      `NV index ${nv.label} of the TPM is no anchor of ours: 0x${attributes.toString(16)}, ${sizeBytes} bytes`,
    );
  }
  tpm.useAuth(nv, auth);
  return nv;
}

function explain(error: unknown, nv: NvIndex): unknown {
  if (isTpmError(error, TPM_RC.badAuth, TPM_RC.authFail)) {
    return new AnchorError(
      `anchor ${nv.label} of the TPM is not this key's: the sealed key is an older one, or was made by somebody else`,
      { cause: error },
    );
  }
  if (isTpmError(error, TPM_RC.nvUninitialized)) {
    return new AnchorError(`anchor ${nv.label} of the TPM was never written: the power went while it was made`, {
      cause: error,
    });
  }
  if (error instanceof RangeError) return new AnchorError(error.message, { cause: error });
  return error;
}
