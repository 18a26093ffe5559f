/**
 * Taking a TPM into use, and knowing it again.
 *
 *   first format   no owner yet ─▶ storage root key derived, kept at 0x81000001 ─▶ anchor, volume … ─▶ owner's value, last
 *   later boots    the key at 0x81000001, by its name; deriving it afresh would need the owner's value, which is still
 *                  locked away
 *
 * The owner's authorization value is set when the partition is already marked as initialised: a first boot that is cut
 * before finds a TPM without owner and begins again, one that is cut after finishes at the next boot.
 */
import { timingSafeEqual } from 'node:crypto';
import { SealingError, shortName } from './sealing.ts';
import { STORAGE_ROOT_KEY_HANDLE, type StorageRootKey, type Tpm } from './tpm.ts';
import { isTpmError, TPM_RC } from './tpm-error.ts';

const WAY_OUT =
  'clear the TPM in the firmware settings (what was sealed to it, by another system too, is lost then), and restart';

/** Somebody has this TPM in use already. */
export class TpmInUseError extends Error {
  override readonly name = 'TpmInUseError';
}

/**
 * The storage root key of a TPM that is taken into use, derived afresh. The connection knows the owner's value if it is
 * ours already (recovery). Throws `TpmInUseError`.
 */
export function provisionStorageRootKey(tpm: Tpm): StorageRootKey {
  try {
    const existing = tpm.persistentStorageRootKey();
    // We own no TPM without the key: it is made before and goes with the owner only.
    if (existing === undefined) requireUnowned(tpm);
    using session = existing && tpm.encryptedSession(existing);
    using derived = tpm.createStorageRootKey('ecc-p256', session);
    if (existing !== undefined) {
      if (Buffer.compare(existing.publicArea, derived.publicArea) === 0) return existing;
      throw new TpmInUseError(
        `the TPM keeps another key than the standard storage root key at 0x${STORAGE_ROOT_KEY_HANDLE.toString(16)}, left ` +
          `by another system; ${WAY_OUT}`,
      );
    }
    using fresh = tpm.encryptedSession(derived);
    tpm.evictControl(derived, STORAGE_ROOT_KEY_HANDLE, fresh);
  } catch (error) {
    throw explainOwner(error);
  }
  const made = tpm.persistentStorageRootKey();
  if (made === undefined) throw new Error('cannot keep the storage root key in the TPM: it is not there afterwards');
  return made;
}

/** Refuses a TPM whose owner hierarchy has an authorization value that is not ours to know. */
export function requireUnowned(tpm: Tpm): void {
  if (!tpm.ownership().ownerAuthSet) return;
  throw new TpmInUseError(
    `the TPM has an owner already (its owner hierarchy has an authorization value), an earlier node or another system; ${WAY_OUT}`,
  );
}

/** The storage root key of a TPM that is in use. Throws `SealingError` (`another-tpm`) when it is not the expected one. */
export function knownStorageRootKey(tpm: Tpm, names: readonly Uint8Array[]): StorageRootKey {
  const existing = tpm.persistentStorageRootKey();
  if (existing === undefined) {
    throw new SealingError(
      'another-tpm',
      'this TPM has no storage root key: the disk was moved, the TPM was replaced, or it was cleared',
    );
  }
  const isKnown = names.some((name) => name.length === existing.name.length && timingSafeEqual(name, existing.name));
  if (isKnown) return existing;
  throw new SealingError(
    'another-tpm',
    `the data was sealed below storage root key ${names.map(shortName).join(' or ')}, this TPM has ` +
      `${shortName(existing.name)}: the disk was moved, the TPM was replaced, or it was cleared`,
  );
}

/**
 * Sets the owner's authorization value, when there is none.
 *
 * @returns true when it was set now
 */
export function takeOwnership(tpm: Tpm, rootKey: StorageRootKey, auth: Uint8Array): boolean {
  if (tpm.ownership().ownerAuthSet) return false;
  using session = tpm.encryptedSession(rootKey);
  tpm.hierarchyChangeAuth('owner', auth, session);
  return true;
}

/** An owner's value that the TPM does not accept is another owner's. */
export function explainOwner(error: unknown): unknown {
  if (!isTpmError(error, TPM_RC.badAuth, TPM_RC.authFail)) return error;
  return new TpmInUseError(`the TPM does not accept the owner's authorization value of this node's data; ${WAY_OUT}`, {
    cause: error,
  });
}
