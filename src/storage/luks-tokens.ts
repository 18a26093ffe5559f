/**
 * What Ashlar keeps in the LUKS2 header beside the key slots (specification, 3.6: tokens). Pure.
 *
 *   0, 1  ashlar-tpm2      the node unlock key of generation A, sealed to the TPM; two copies, each with a checksum
 *   3, 4  ashlar-tpm2      the same of generation B
 *   0     ashlar-unsealed  instead, on a machine without TPM: the key in the clear
 *   2     ashlar-recovery  the recovery slot's key, encrypted to the operator's public key
 *
 * A generation is all that opens the volume at one sealing: a key slot, its two tokens, and the anchor in the TPM
 * (`src/tpm/anchor.ts`). The two places are used in turn, so that the next one is complete before the last one goes.
 *
 * None is secret except `ashlar-unsealed`, whose volume therefore is as open as the disk.
 */
import { createHash } from 'node:crypto';
import {
  type Check,
  type Checked,
  exactly,
  integer,
  list,
  object,
  oneOf,
  ShapeError,
  text,
} from '../formats/json-shape.ts';
import { ANCHOR_INDICES } from '../tpm/anchor.ts';
import type { SealedSecret } from '../tpm/sealing.ts';

/** The places of generations. */
export const PLACES = ['a', 'b'] as const;
export type Place = (typeof PLACES)[number];

/** What belongs to a place: key slot, tokens, NV index of the anchor. */
export const GENERATION = {
  a: { slot: 0, tokenIds: [0, 1], anchorIndex: ANCHOR_INDICES[0] },
  b: { slot: 2, tokenIds: [3, 4], anchorIndex: ANCHOR_INDICES[1] },
} as const satisfies Record<Place, { slot: number; tokenIds: readonly [number, number]; anchorIndex: number }>;
export const RECOVERY_SLOT = 1;

export function otherPlace(place: Place): Place {
  return place === 'a' ? 'b' : 'a';
}

const hex32 = text({ min: 64, max: 64, pattern: /^[0-9a-f]{64}$/ });
const base64 = text({ min: 4, max: 2048, pattern: /^[A-Za-z0-9+/]+={0,2}$/ });
/** The one key slot that a token is for, as libcryptsetup keeps it: a list of names. */
const slots = (...choices: readonly ('0' | '1' | '2')[]) => {
  const check: Check<readonly string[]> = (value, path) => {
    const names = list(oneOf(...choices), { max: 1 })(value, path);
    if (names.length !== 1) throw new ShapeError(path, `must be ["${choices.join('"] or ["')}"]`);
    return names;
  };
  return check;
};

const tpm2Token = object({
  type: oneOf('ashlar-tpm2'),
  keyslots: slots('0', '2'),
  version: exactly(2),
  /** Counts sealings: of two generations the higher is the newer. */
  generation: integer({ min: 1, max: 2 ** 31 }),
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

/** Token numbers beside those of {@link GENERATION}. */
export const TOKEN_ID = { unsealed: 0, recovery: 2 } as const;

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

/** A generation as its tokens describe it. Nothing in it is secret. */
export interface SealedGeneration {
  readonly place: Place;
  readonly number: number;
  /** The epoch it is sealed to. */
  readonly policyRef: string;
  readonly sealed: SealedSecret;
}

export function encodeTpm2Token({ place, number, policyRef, sealed }: SealedGeneration): Tpm2Token {
  const token = {
    type: 'ashlar-tpm2' as const,
    keyslots: [`${GENERATION[place].slot}`] as const,
    version: 2 as const,
    generation: number,
    policyRef,
    storageRootKeyName: Buffer.from(sealed.storageRootKeyName).toString('hex'),
    pcr7: Buffer.from(sealed.pcr7).toString('hex'),
    publicArea: Buffer.from(sealed.publicArea).toString('base64'),
    privateArea: Buffer.from(sealed.privateArea).toString('base64'),
  };
  return { ...token, sha256: tpm2TokenChecksum(token) };
}

/** The generations there are, each from its first copy whose checksum holds. The newest comes first. */
export function sealedGenerations(tokens: readonly DataToken[]): SealedGeneration[] {
  const found: SealedGeneration[] = [];
  for (const place of PLACES) {
    const token = tokens.find(
      (candidate): candidate is Tpm2Token =>
        candidate.type === 'ashlar-tpm2' &&
        candidate.keyslots[0] === `${GENERATION[place].slot}` &&
        candidate.sha256 === tpm2TokenChecksum(candidate),
    );
    if (token === undefined) continue;
    const sealed = {
      storageRootKeyName: Buffer.from(token.storageRootKeyName, 'hex'),
      pcr7: Buffer.from(token.pcr7, 'hex'),
      publicArea: Buffer.from(token.publicArea, 'base64'),
      privateArea: Buffer.from(token.privateArea, 'base64'),
    };
    found.push({ place, number: token.generation, policyRef: token.policyRef, sealed });
  }
  return found.sort((a, b) => b.number - a.number);
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
  const { keyslots, generation, policyRef, storageRootKeyName, pcr7, publicArea, privateArea } = token;
  const fields = [keyslots[0], generation, policyRef, storageRootKeyName, pcr7, publicArea, privateArea];
  return createHash('sha256').update(JSON.stringify(fields)).digest('hex');
}
