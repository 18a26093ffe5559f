/**
 * TPM2_MakeCredential in software (TCG TPM 2.0 Library, Part 1, §24 "Credential Protection"): encrypts a secret so that
 * only one TPM can read it, and only for one key that this TPM holds.
 *
 * ```
 * seed ──────────── encrypted to the endorsement key (RSA-OAEP, or ECDH) ───────────▶ encryptedSecret
 *  ├─ KDFa "STORAGE", name of the attestation key ─▶ AES-CFB(secret)  ─┐
 *  └─ KDFa "INTEGRITY" ─▶ HMAC(that ‖ name of the attestation key)  ───┴───────────▶ credentialBlob
 * ```
 *
 * All that is random is derived from {@link credentialRandomBytes} bytes, each part by HMAC-SHA512 with its own label.
 * Whoever has made a credential can give them away afterwards: then anybody can make it again, byte for byte, and see for
 * which two keys and which secret it was.
 */
import {
  constants,
  createCipheriv,
  createECDH,
  createHash,
  createHmac,
  type ECDH,
  publicEncrypt,
  randomBytes,
} from 'node:crypto';
import { decodeTpmPublicKey, type KeyHash, keyObjectOf, type TpmPublicKey } from '../formats/tpm-attest.ts';
import { encodeSized, u32 } from '../formats/tpm-structures.ts';

export const credentialRandomBytes = 32;
/** TPM2_ActivateCredential gives back no more than a digest of the endorsement key's name algorithm. */
export const credentialSecretBytes = 32;

export interface Credential {
  /** TPMS_ID_OBJECT: what TPM2B_ID_OBJECT holds, without its own size. */
  readonly credentialBlob: Uint8Array;
  /** What TPM2B_ENCRYPTED_SECRET holds, without its own size. */
  readonly encryptedSecret: Uint8Array;
  /** What it was made from. As secret as the secret until the TPM has answered. */
  readonly random: Uint8Array;
}

/**
 * @param ekPublicArea TPMT_PUBLIC of the endorsement key: RSA 2048 or 3072, P-256 or P-384, name in SHA-256 or SHA-384.
 * @param akName name of the key that must be in the same TPM: u16 algorithm ‖ digest of its public area.
 * @param secret {@link credentialSecretBytes} bytes.
 * @param random {@link credentialRandomBytes} bytes. @default fresh ones
 * @throws FormatError or RangeError when the endorsement key is not one of a TPM, or a length is wrong.
 */
export function makeCredential(
  ekPublicArea: Uint8Array,
  akName: Uint8Array,
  secret: Uint8Array,
  random: Uint8Array = randomBytes(credentialRandomBytes),
): Credential {
  const ek = decodeTpmPublicKey(ekPublicArea);
  if (secret.length !== credentialSecretBytes)
    throw new RangeError(`cannot make credential: secret of ${secret.length} bytes, not ${credentialSecretBytes}`);
  if (random.length !== credentialRandomBytes)
    throw new RangeError(`cannot make credential: ${random.length} random bytes, not ${credentialRandomBytes}`);
  if (ek.symmetricBits === undefined)
    throw new RangeError('cannot make credential: the endorsement key has no symmetric algorithm, so it is none');
  const { seed, encryptedSecret } = ek.type === 'rsa' ? seedForRsa(ek, random) : seedForEcc(ek, random);

  const key = kdfa(ek.nameHash, seed, 'STORAGE', akName, ek.symmetricBits);
  const cipher = createCipheriv(`aes-${ek.symmetricBits}-cfb`, key, Buffer.alloc(16));
  const identity = Buffer.concat([cipher.update(encodeSized(secret)), cipher.final()]);
  const integrityKey = kdfa(ek.nameHash, seed, 'INTEGRITY', new Uint8Array(0), digestBytes(ek.nameHash) * 8);
  const integrity = createHmac(ek.nameHash, integrityKey).update(identity).update(akName).digest();
  return { credentialBlob: Buffer.concat([encodeSized(integrity), identity]), encryptedSecret, random };
}

interface SeedExchange {
  readonly seed: Uint8Array;
  readonly encryptedSecret: Uint8Array;
}

/** Part 1, B.4 and B.10.4: OAEP with the key's name algorithm and the label with its NUL. */
function seedForRsa(ek: TpmPublicKey & { type: 'rsa' }, random: Uint8Array): SeedExchange {
  const size = digestBytes(ek.nameHash);
  const seed = derive(random, 'seed').subarray(0, size);
  const oaepSeed = derive(random, 'oaep').subarray(0, size);
  const encoded = oaepEncode(ek.nameHash, seed, oaepSeed, ek.modulus.length);
  const encryptedSecret = publicEncrypt({ key: keyObjectOf(ek), padding: constants.RSA_NO_PADDING }, encoded);
  return { seed, encryptedSecret };
}

/** EME-OAEP (RFC 8017 §7.1.1, step 2). Node's own takes no seed, and the seed is what lets others repeat it. */
function oaepEncode(hash: KeyHash, message: Uint8Array, oaepSeed: Uint8Array, modulusBytes: number): Uint8Array {
  const labelHash = createHash(hash).update('IDENTITY\0').digest();
  const padding = Buffer.alloc(modulusBytes - message.length - 2 * labelHash.length - 2);
  const block = Buffer.concat([labelHash, padding, Uint8Array.of(1), message]);
  const maskedBlock = xor(block, mgf1(hash, oaepSeed, block.length));
  const maskedSeed = xor(oaepSeed, mgf1(hash, maskedBlock, oaepSeed.length));
  return Buffer.concat([Uint8Array.of(0), maskedSeed, maskedBlock]);
}

/** RFC 8017 B.2.1. */
function mgf1(hash: KeyHash, seed: Uint8Array, length: number): Uint8Array {
  const blocks: Uint8Array[] = [];
  for (let counter = 0; counter * digestBytes(hash) < length; counter += 1)
    blocks.push(createHash(hash).update(seed).update(u32(counter)).digest());
  return Buffer.concat(blocks).subarray(0, length);
}

/** Part 1, C.6.4: one-pass ECDH with an ephemeral key, then KDFe. */
function seedForEcc(ek: TpmPublicKey & { type: 'ecc' }, random: Uint8Array): SeedExchange {
  const curve = curves[ek.curve];
  if (curve === undefined) throw new RangeError(`cannot make credential: an endorsement key on ${ek.curve}`);
  const size = ek.x.length;
  const ephemeral = ephemeralKey(curve, random, size);
  const point = ephemeral.getPublicKey();
  const [x, y] = [point.subarray(1, 1 + size), point.subarray(1 + size)];
  const shared = ephemeral.computeSecret(Buffer.concat([Uint8Array.of(4), ek.x, ek.y]));
  const seed = kdfe(ek.nameHash, shared, x, ek.x);
  return { seed, encryptedSecret: Buffer.concat([encodeSized(x), encodeSized(y)]) };
}

interface Curve {
  readonly name: string;
  readonly order: bigint;
}

const curves: Partial<Record<string, Curve>> = {
  'P-256': { name: 'prime256v1', order: 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n },
  'P-384': {
    name: 'secp384r1',
    order: 0xffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973n,
  },
};

/** A scalar of 1 … order − 1 from many more bits than the order has (FIPS 186-5 A.2.1). */
function ephemeralKey(curve: Curve, random: Uint8Array, size: number): ECDH {
  const scalar = (BigInt(`0x${derive(random, 'ecdh').toString('hex')}`) % (curve.order - 1n)) + 1n;
  const key = createECDH(curve.name);
  key.setPrivateKey(scalar.toString(16).padStart(2 * size, '0'), 'hex');
  return key;
}

/** 64 bytes: more than any part needs. */
function derive(random: Uint8Array, label: 'seed' | 'oaep' | 'ecdh'): Buffer {
  return createHmac('sha512', random).update(label).digest();
}

/** Part 1, 11.4.10.2: counter mode with HMAC, `label` with its NUL, contextU, an empty contextV, and the length. */
function kdfa(hash: KeyHash, key: Uint8Array, label: string, context: Uint8Array, bits: number): Uint8Array {
  const blocks: Uint8Array[] = [];
  for (let counter = 1; (counter - 1) * digestBytes(hash) * 8 < bits; counter += 1)
    blocks.push(
      createHmac(hash, key).update(u32(counter)).update(`${label}\0`).update(context).update(u32(bits)).digest(),
    );
  return Buffer.concat(blocks).subarray(0, bits / 8);
}

/** Part 1, 11.4.10.3, for one digest's length: counter ‖ Z ‖ label with its NUL ‖ x of either party. */
function kdfe(hash: KeyHash, shared: Uint8Array, ephemeralX: Uint8Array, staticX: Uint8Array): Uint8Array {
  return createHash(hash)
    .update(u32(1))
    .update(shared)
    .update('IDENTITY\0')
    .update(ephemeralX)
    .update(staticX)
    .digest();
}

function digestBytes(hash: KeyHash): number {
  switch (hash) {
    case 'sha256':
      return 32;
    case 'sha384':
      return 48;
    default:
      throw new RangeError(`cannot make credential: an endorsement key with names in ${hash}`);
  }
}

function xor(a: Uint8Array, b: Uint8Array): Uint8Array {
  return Uint8Array.from(a, (octet, index) => octet ^ (b[index] ?? 0));
}
