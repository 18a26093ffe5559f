/**
 * What Ashlar keeps in the LUKS2 header beside the key slots (specification, 3.6: tokens). Pure.
 *
 *   0, 1  ashlar-tpm2      the node unlock key, sealed to the TPM; two copies, each with a checksum of its own
 *   0     ashlar-unsealed  instead, on a machine without TPM: the key in the clear
 *   2     ashlar-recovery  the recovery slot's key, encrypted to the operator's public key
 *
 * None is secret except `ashlar-unsealed`, whose volume therefore is as open as the disk.
 */
import { createHash } from 'node:crypto';
import { type Check, type Checked, exactly, list, object, oneOf, ShapeError, text } from '../formats/json-shape.ts';
import type { SealedSecret } from '../tpm/sealing.ts';

const hex32 = text({ min: 64, max: 64, pattern: /^[0-9a-f]{64}$/ });
const base64 = text({ min: 4, max: 2048, pattern: /^[A-Za-z0-9+/]+={0,2}$/ });
const slots = (slot: '0' | '1') => {
  const check: Check<readonly string[]> = (value, path) => {
    const names = list(oneOf(slot), { max: 1 })(value, path);
    if (names.length !== 1) throw new ShapeError(path, `must be ["${slot}"]`);
    return names;
  };
  return check;
};

const tpm2Token = object({
  type: oneOf('ashlar-tpm2'),
  keyslots: slots('0'),
  version: exactly(1),
  policyRef: text({ min: 1, max: 64, pattern: /^[a-z0-9.-]+$/ }),
  storageRootKeyName: text({ min: 68, max: 68, pattern: /^000b[0-9a-f]{64}$/ }),
  pcr7: hex32,
  publicArea: base64,
  privateArea: base64,
  sha256: hex32,
});

const recoveryToken = object({
  type: oneOf('ashlar-recovery'),
  keyslots: slots('1'),
  version: exactly(1),
  algorithm: oneOf('RSA-OAEP-SHA256'),
  publicKeySha256: hex32,
  encryptedKey: base64,
});

const unsealedToken = object({
  type: oneOf('ashlar-unsealed'),
  keyslots: slots('0'),
  version: exactly(1),
  nodeUnlockKey: base64,
});

export type Tpm2Token = Checked<typeof tpm2Token>;
export type RecoveryToken = Checked<typeof recoveryToken>;
export type UnsealedToken = Checked<typeof unsealedToken>;
export type DataToken = Tpm2Token | RecoveryToken | UnsealedToken;

/** Token numbers. */
export const TOKEN_ID = { node: [0, 1], recovery: 2 } as const;

/** Reads one token. Throws `ShapeError` with `path` for anything that is none of ours. */
export function decodeToken(value: unknown, path: string): DataToken {
  const type = typeof value === 'object' && value !== null && 'type' in value ? value.type : undefined;
  switch (type) {
    case 'ashlar-tpm2':
      return tpm2Token(value, path);
    case 'ashlar-recovery':
      return recoveryToken(value, path);
    case 'ashlar-unsealed':
      return unsealedToken(value, path);
    default:
      throw new ShapeError(path, `is of type ${JSON.stringify(type)?.slice(0, 60)}, which is none of ours`);
  }
}

export function encodeTpm2Token(sealed: SealedSecret, policyRef: string): Tpm2Token {
  const token = {
    type: 'ashlar-tpm2' as const,
    keyslots: ['0'] as const,
    version: 1 as const,
    policyRef,
    storageRootKeyName: Buffer.from(sealed.storageRootKeyName).toString('hex'),
    pcr7: Buffer.from(sealed.pcr7).toString('hex'),
    publicArea: Buffer.from(sealed.publicArea).toString('base64'),
    privateArea: Buffer.from(sealed.privateArea).toString('base64'),
  };
  return { ...token, sha256: tpm2TokenChecksum(token) };
}

/** The sealed key of the first copy whose checksum holds; undefined when none does. */
export function sealedSecretOf(tokens: readonly DataToken[]): (SealedSecret & { policyRef: string }) | undefined {
  for (const token of tokens) {
    if (token.type !== 'ashlar-tpm2' || token.sha256 !== tpm2TokenChecksum(token)) continue;
    return {
      policyRef: token.policyRef,
      storageRootKeyName: Buffer.from(token.storageRootKeyName, 'hex'),
      pcr7: Buffer.from(token.pcr7, 'hex'),
      publicArea: Buffer.from(token.publicArea, 'base64'),
      privateArea: Buffer.from(token.privateArea, 'base64'),
    };
  }
  return undefined;
}

/** The recovery token of an accepted header, which has exactly one. */
export function recoveryTokenOf(tokens: readonly DataToken[]): RecoveryToken {
  const token = tokens.find(({ type }) => type === 'ashlar-recovery');
  if (token?.type !== 'ashlar-recovery') throw new Error('cannot name the recovery key: the header has no token of it');
  return token;
}

/** The recovery key as the console and ashlarctl name keys: `SHA256:` and base64url of the SHA-256 of its SPKI. */
export function recoveryKeyFingerprint({ publicKeySha256 }: Pick<RecoveryToken, 'publicKeySha256'>): string {
  return `SHA256:${Buffer.from(publicKeySha256, 'hex').toString('base64url')}`;
}

function tpm2TokenChecksum(token: Omit<Tpm2Token, 'sha256'>): string {
  const { policyRef, storageRootKeyName, pcr7, publicArea, privateArea } = token;
  const fields = JSON.stringify([policyRef, storageRootKeyName, pcr7, publicArea, privateArea]);
  return createHash('sha256').update(fields).digest('hex');
}
