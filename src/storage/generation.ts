/**
 * A generation of the node's key, made or opened by the TPM: all that opens the volume at one sealing.
 *
 *   sealed key ── unseal ──▶ node unlock key ──▶ authorization ── read ──▶ anchor: share, header MACs
 *                                   └────────── share ─────────┴──▶ slot key, MAC key
 */
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { epochOfPolicyRef, sealedPcrs } from '../measure/policy.ts';
import { type Anchor, SHARE_BYTES } from '../tpm/anchor.ts';
import { defineAnchor, readAnchor, undefineAnchor, writeAnchor } from '../tpm/anchor-store.ts';
import { type ImagePolicy, SealingError, sealSecret, selectPcrSignatures, unsealSecret } from '../tpm/sealing.ts';
import type { StorageRootKey, Tpm } from '../tpm/tpm.ts';
import { deriveAnchorAuth, deriveSlotKey, UNLOCK_KEY_BYTES, xorBytes } from './data-key.ts';
import type { GenerationSlot } from './header-edit.ts';
import { type DataHeader, deriveHeaderMacKey, headerMac, matchHeader } from './header-mac.ts';
import { encodeTpm2Token, GENERATION, type Place, type RecoveryToken, type SealedGeneration } from './luks-tokens.ts';
import { sealedPolicyKey } from './sealed-policy-key.ts';

const NO_CLUSTER_KEY = new Uint8Array();

/** A machine that seals. */
export interface SealingMachine {
  readonly tpm: Tpm;
  /** The image's: the policy key and the epoch that are sealed to, and the former keys. */
  readonly policy: ImagePolicy;
  /** The image's `.pcrsig`. */
  readonly pcrSignaturePath: string;
  /** Where efivarfs is mounted. */
  readonly efivars: string;
}

/** The secrets of one generation, wiped at the end of the scope, and its anchor. */
export class Generation implements Disposable {
  readonly facts: SealedGeneration;
  readonly #machine: SealingMachine;
  readonly #rootKey: StorageRootKey;
  readonly #uuid: string;
  readonly #nodeUnlockKey: Buffer;
  readonly #anchorAuth: Buffer;
  #anchor: Anchor;

  private constructor(
    where: { readonly machine: SealingMachine; readonly rootKey: StorageRootKey; readonly uuid: string },
    facts: SealedGeneration,
    secrets: { readonly nodeUnlockKey: Buffer; readonly anchor?: Anchor },
  ) {
    this.#machine = where.machine;
    this.#rootKey = where.rootKey;
    this.#uuid = where.uuid;
    this.facts = facts;
    this.#nodeUnlockKey = secrets.nodeUnlockKey;
    this.#anchorAuth = deriveAnchorAuth(secrets.nodeUnlockKey, where.uuid);
    this.#anchor = secrets.anchor ?? { share: randomBytes(SHARE_BYTES), current: Buffer.alloc(32), next: undefined };
  }

  /**
   * Makes a generation: a new key, sealed, and a new share. Nothing is written yet, to the TPM's memory or to the disk.
   *
   * @param target.pcr7 for a state other than the present one
   */
  static make(
    where: { readonly machine: SealingMachine; readonly rootKey: StorageRootKey; readonly uuid: string },
    target: { readonly place: Place; readonly number: number; readonly pcr7?: Uint8Array | undefined },
  ): Generation {
    const { machine, rootKey } = where;
    const { tpm, policy } = machine;
    using session = tpm.encryptedSession(rootKey);
    const random = tpm.random(UNLOCK_KEY_BYTES, session);
    const nodeUnlockKey = xorBytes(random, randomBytes(UNLOCK_KEY_BYTES));
    const sealed = sealSecret(tpm, rootKey, nodeUnlockKey, policy, target.pcr7);
    const facts = { place: target.place, number: target.number, policyRef: policy.policyRef, sealed };
    return new Generation(where, facts, { nodeUnlockKey });
  }

  /**
   * Opens a generation: the TPM unseals its key and gives its anchor. Whether the anchor knows the header is for the
   * caller to ask ({@link matches}). Throws `SealingError` or `AnchorError`.
   */
  static open(
    where: { readonly machine: SealingMachine; readonly rootKey: StorageRootKey; readonly uuid: string },
    facts: SealedGeneration,
  ): Generation {
    const { machine, rootKey, uuid } = where;
    using scope = new DisposableStack();
    const nodeUnlockKey = unsealGeneration(machine, rootKey, facts, scope);
    const auth = deriveAnchorAuth(nodeUnlockKey, uuid);
    try {
      const anchor = readAnchor(machine.tpm, rootKey, GENERATION[facts.place].anchorIndex, auth);
      return new Generation(where, facts, { nodeUnlockKey, anchor });
    } catch (error) {
      nodeUnlockKey.fill(0);
      throw error;
    } finally {
      auth.fill(0);
    }
  }

  get place(): Place {
    return this.facts.place;
  }

  /** Unseals the key once more and throws it away: a key that could not be got back would lose the data at the next boot. */
  proveSealed(): void {
    unsealGeneration(this.#machine, this.#rootKey, this.facts).fill(0);
  }

  /** Which of its two MACs a header has; undefined when neither. */
  matches(header: DataHeader): 'current' | 'next' | undefined {
    return matchHeader(this.#macOf(header), this.#anchor);
  }

  /** The anchor names this header, and no other. */
  isSettledOn(header: DataHeader): boolean {
    return this.#anchor.next === undefined && this.matches(header) === 'current';
  }

  /** Wipe it after use. */
  slotKey(recoveryToken: Pick<RecoveryToken, 'publicKeySha256'>): Buffer {
    return deriveSlotKey({
      nodeUnlockKey: this.#nodeUnlockKey,
      share: this.#anchor.share,
      clusterUnlockKey: NO_CLUSTER_KEY,
      partitionUuid: this.#uuid,
      recoveryPublicKeySha256: recoveryToken.publicKeySha256,
    });
  }

  /** Its part in a header. Wipe `slotKey` after use. */
  slot(recoveryToken: Pick<RecoveryToken, 'publicKeySha256'>): GenerationSlot & { readonly slotKey: Buffer } {
    const token = encodeTpm2Token(this.facts);
    return { place: this.place, slotKey: this.slotKey(recoveryToken), tokens: [token, token] };
  }

  /** Makes its NV index. The connection knows the owner's authorization value. */
  defineAnchor(): void {
    defineAnchor(this.#machine.tpm, this.#rootKey, this.#anchorIndex, this.#anchorAuth);
  }

  /** Lets it accept `current`, and `next` when one is about to be written. */
  writeAnchor(current: DataHeader, next?: DataHeader): void {
    this.#anchor = { share: this.#anchor.share, current: this.#macOf(current), next: next && this.#macOf(next) };
    writeAnchor(this.#machine.tpm, this.#rootKey, this.#anchorIndex, this.#anchorAuth, this.#anchor);
  }

  [Symbol.dispose](): void {
    this.#nodeUnlockKey.fill(0);
    this.#anchorAuth.fill(0);
    this.#anchor.share.fill(0);
  }

  get #anchorIndex(): number {
    return GENERATION[this.place].anchorIndex;
  }

  #macOf(header: DataHeader): Buffer {
    const key = deriveHeaderMacKey(this.#nodeUnlockKey, this.#anchor.share, this.#uuid);
    const mac = headerMac(key, header);
    key.fill(0);
    return mac;
  }
}

/** Ends a generation for good: without its share no copy of its key opens anything. */
export function forgetAnchor({ tpm }: SealingMachine, rootKey: StorageRootKey, place: Place): void {
  undefineAnchor(tpm, rootKey, GENERATION[place].anchorIndex);
}

function unsealGeneration(
  machine: SealingMachine,
  rootKey: StorageRootKey,
  { policyRef, sealed }: SealedGeneration,
  scope?: DisposableStack,
): Buffer {
  const { tpm, policy, pcrSignaturePath } = machine;
  requireEpoch(policyRef, policy.policyRef);
  const policyKeyPem = sealedPolicyKey(policy, { policyRef, sealed });
  const sealedTo = { policyKeyPem: policyKeyPem ?? policy.policyKeyPem, policyRef };
  const signatures = selectPcrSignatures(readFileSync(pcrSignaturePath), sealedTo);
  let key: Buffer;
  try {
    key = unsealSecret(tpm, rootKey, sealed, sealedTo, signatures, scope);
  } catch (error) {
    const isPolicyRefused = error instanceof SealingError && error.failure === 'policy-not-met';
    throw policyKeyPem === undefined && isPolicyRefused ? unknownPolicyKey(error) : error;
  }
  if (key.length === UNLOCK_KEY_BYTES) return key;
  key.fill(0);
  throw new SealingError('policy-not-met', `the sealed key has ${key.length} bytes, not ${UNLOCK_KEY_BYTES}`);
}

/** An image opens what is sealed to its epoch or an earlier one. The TPM holds to this by the signatures; here it gets its words. */
function requireEpoch(sealedRef: string, imageRef: string): void {
  const [sealed, image] = [epochOfPolicyRef(sealedRef), epochOfPolicyRef(imageRef)];
  if (sealed !== undefined && image !== undefined && sealed <= image) return;
  throw new SealingError(
    'image-not-allowed',
    `the key is sealed for images of "${sealedRef}" and later, this image is of "${imageRef}": boot a newer image`,
  );
}

function unknownPolicyKey(cause: SealingError): SealingError {
  return new SealingError(
    'image-not-allowed',
    "the key is sealed for images of another policy key than this image's, or to another state than its token says: boot " +
      'an image that is approved with that key too (mkimage keys rotate-policy), or recover the node',
    { cause },
  );
}

/** This machine's PCR 7 now. */
export function presentPcr7({ tpm }: SealingMachine): Buffer {
  return tpm.readPcrs(sealedPcrs).get(7) ?? Buffer.alloc(32);
}
