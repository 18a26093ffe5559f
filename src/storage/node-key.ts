/**
 * The node unlock key: how it is made, kept and got back.
 *
 *   with a TPM      32 bytes of TPM xor kernel, sealed (`src/tpm/sealing.ts`), two copies in LUKS2 tokens
 *   without a TPM   32 random bytes in the clear in a token, only where the node parameters allow it
 */
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { sealedPcrs } from '../measure/policy.ts';
import {
  requireZeroPcrs,
  SealingError,
  type SealingPolicy,
  sealSecret,
  selectPcrSignatures,
  unsealSecret,
} from '../tpm/sealing.ts';
import { readSecureBootState } from '../tpm/secure-boot.ts';
import type { StorageRootKey, Tpm } from '../tpm/tpm.ts';
import { UNLOCK_KEY_BYTES, xorBytes } from './data-key.ts';
import { type DataToken, encodeTpm2Token, sealedSecretOf } from './luks-tokens.ts';

/** A new key and the tokens that keep it. */
export interface NewNodeKey {
  /** Wipe it after use. */
  readonly key: Buffer;
  readonly tokens: readonly DataToken[];
}

/** Where node unlock keys are kept on this machine. */
export interface NodeKeyKeeper {
  /** Makes a key, after everything that would stop it from being got back was checked. */
  create(): NewNodeKey;
  /** The key that the tokens keep. Wipe it after use. Throws `SealingError`. */
  recall(tokens: readonly DataToken[]): Buffer;
  readonly warnings: readonly string[];
}

/** Secure Boot is off, so PCR 7 would vouch for nothing. */
export class SecureBootOffError extends Error {
  override readonly name = 'SecureBootOffError';
}

/** Tokens that keep no key this machine may use. */
export class NoNodeKeyError extends Error {
  override readonly name = 'NoNodeKeyError';
}

/** Keeps keys in the TPM. `pcrSignaturePath`: the image's `.pcrsig`; `efivars`: where efivarfs is mounted. */
export function tpmKeeper(
  tpm: Tpm,
  rootKey: StorageRootKey,
  machine: { readonly policy: SealingPolicy; readonly pcrSignaturePath: string; readonly efivars: string },
): NodeKeyKeeper {
  const { policy, pcrSignaturePath, efivars } = machine;
  const signatures = () => selectPcrSignatures(readFileSync(pcrSignaturePath), policy);
  const lockout = tpm.lockout();
  const warnings = rootKey.warning === undefined ? [] : [rootKey.warning];
  if (lockout.active) {
    warnings.push(
      `the TPM is in dictionary attack lockout after ${lockout.counter} failed authorisations; the data partition's key ` +
        'is not subject to it, but somebody has been trying passwords',
    );
  }
  return {
    warnings,
    create() {
      requireZeroPcrs(tpm.readPcrs(sealedPcrs));
      requireSecureBoot(efivars);
      using session = tpm.encryptedSession(rootKey);
      const random = tpm.random(UNLOCK_KEY_BYTES, session);
      const key = xorBytes(random, randomBytes(UNLOCK_KEY_BYTES));
      const sealed = sealSecret(tpm, rootKey, key, policy);
      // A key that cannot be got back would lose the data at the next boot: better to hear of it before there are any.
      unsealSecret(tpm, rootKey, sealed, policy, signatures()).fill(0);
      const token = encodeTpm2Token(sealed, policy.policyRef);
      return { key, tokens: [token, token] };
    },
    recall(tokens) {
      if (tokens.some(({ type }) => type === 'ashlar-unsealed')) {
        throw new NoNodeKeyError(
          'the data partition keeps its key unsealed, though this machine has a TPM: it was made without one, or put ' +
            'there by somebody',
        );
      }
      const sealed = sealedSecretOf(tokens);
      if (sealed === undefined) throw new NoNodeKeyError('both copies of the sealed key are damaged');
      if (sealed.policyRef !== policy.policyRef) {
        throw new SealingError(
          'image-not-allowed',
          `the key is sealed for images of "${sealed.policyRef}", this image is of "${policy.policyRef}"`,
        );
      }
      return unsealSecret(tpm, rootKey, sealed, policy, signatures());
    },
  };
}

/** Keeps keys in the clear. */
export function unsealedKeeper(): NodeKeyKeeper {
  return {
    warnings: [
      'this machine has no TPM: the key of the data partition lies unsealed beside it, whoever has the disk has the data',
    ],
    create() {
      const key = randomBytes(UNLOCK_KEY_BYTES);
      const nodeUnlockKey = key.toString('base64');
      return { key, tokens: [{ type: 'ashlar-unsealed', keyslots: ['0'], version: 1, nodeUnlockKey }] };
    },
    recall(tokens) {
      for (const token of tokens) {
        if (token.type === 'ashlar-unsealed') return Buffer.from(token.nodeUnlockKey, 'base64');
      }
      throw new NoNodeKeyError('the key of the data partition is sealed to a TPM, and this machine has none');
    },
  };
}

function requireSecureBoot(efivars: string): void {
  const { isEnforced, isSetupMode } = readSecureBootState(efivars);
  if (isEnforced && !isSetupMode) return;
  const state = isSetupMode ? 'the firmware is in Setup Mode: anybody may enrol keys' : 'Secure Boot is off';
  throw new SecureBootOffError(
    `${state}, so PCR 7 vouches for nothing and no key is sealed to it; enrol the Secure Boot keys of this image ` +
      'and switch Secure Boot on in the firmware settings',
  );
}
