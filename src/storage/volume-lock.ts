/**
 * How the volume is locked on this machine, as the flow of `data-partition.ts` sees it.
 *
 *   with a TPM      `sealed-volume.ts`    generations, anchors, header MACs
 *   without a TPM   `unsealed-volume.ts`  the key in the clear in a token, only where the node parameters allow it
 */
import type { DataDevice } from './data-device.ts';
import type { DataHeader } from './header-mac.ts';
import type { RecoveryToken } from './luks-tokens.ts';
import type { SealingTarget } from './sealing-plan.ts';

export interface VolumeLock {
  readonly warnings: readonly string[];
  /** Checks whatever can refuse a new volume, and makes its keys, before the disk is touched. `uuid` is the partition's. */
  prepare(uuid: string): PreparedVolume;
  /** The key of a checked header's slot. Throws `SealingError`, `LuksHeaderError`, `NoNodeKeyError`. */
  unlock(device: DataDevice, header: DataHeader): UnlockedVolume;
}

/** Wiped at the end of its scope. */
export interface PreparedVolume extends Disposable {
  /** Makes the new volume; what the partition holds is lost. */
  create(device: DataDevice, recovery: { readonly key: Uint8Array; readonly token: RecoveryToken }): void;
}

/** Wiped at the end of its scope. */
export interface UnlockedVolume extends Disposable {
  readonly slot: number;
  readonly slotKey: Uint8Array;
  /**
   * Once the slot has opened, and before PCR 15 moves: finishes what an earlier boot has begun, and reseals when that was
   * asked for. Never throws for what keeps the node from neither opening now nor opening at the next boot.
   */
  settle(volumeKey: Uint8Array): SettledVolume;
  /**
   * Once the partition is marked as initialised: takes the machine into ownership, the last step of the first boot. Does
   * nothing when it is done.
   */
  takeOwnership(): void;
}

export interface SettledVolume {
  /** As it is on the disk now. */
  readonly header: DataHeader;
  readonly warnings: readonly string[];
  /** Undefined on a machine without TPM. */
  readonly sealing: SealingReport | undefined;
  /** With it the running node asks for resealing; wipe it after use. Undefined on a machine without TPM. */
  readonly requestKey: Buffer | undefined;
}

/** What the data is sealed to. Nothing in it is secret. */
export interface SealingReport {
  /** `ashlar-epoch-1`. */
  readonly policyRef: string;
  /** SHA-256 of the policy key's PKCS #1 DER, lower-case hex, as `pkfp` in `.pcrsig`. */
  readonly policyKeyFingerprint: string;
  /** That key, SPKI. */
  readonly policyKeyPem: string;
  /** Lower-case hex. */
  readonly pcr7: string;
  /** Counts sealings, from 1. */
  readonly generation: number;
  /** Sealed to a state that is yet to come: it opens the volume too, from the first boot in that state on. */
  readonly waiting?: SealingTarget & { readonly generation: number };
  /** The TPM's anchor knows this header. */
  readonly anchor: 'ok';
  /** What this boot has resealed, and why. */
  readonly resealed?: string;
}

/** Tokens that keep no key this machine may use. */
export class NoNodeKeyError extends Error {
  override readonly name = 'NoNodeKeyError';
}
