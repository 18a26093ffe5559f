/**
 * Public areas of TPM objects (TPMT_PUBLIC, TCG TPM 2.0 Library Part 2, 12.2.4) whose name algorithm is SHA-256. Pure.
 *
 * Known are the kinds that Ashlar has a TPM make and those that the TCG gives templates for; another is refused, because
 * what cannot be read cannot be judged.
 */
import { createHash } from 'node:crypto';
import { encodeAes128Cfb, encodeSized, TPM_ALG, TpmReader, u16, u32 } from './tpm-structures.ts';

/** TPMA_OBJECT (Part 2, 8.3). */
export const OBJECT = {
  fixedTpm: 1 << 1,
  fixedParent: 1 << 4,
  sensitiveDataOrigin: 1 << 5,
  userWithAuth: 1 << 6,
  adminWithPolicy: 1 << 7,
  noDictionaryAttackProtection: 1 << 10,
  restricted: 1 << 16,
  decrypt: 1 << 17,
  sign: 1 << 18,
} as const;

const TPM_ECC_NIST_P256 = 0x0003;
const NULL_ALGORITHM = u16(TPM_ALG.null);
const ECDSA_SHA256 = Buffer.concat([u16(TPM_ALG.ecdsa), u16(TPM_ALG.sha256)]);
const AES_128_CFB = encodeAes128Cfb();

export type PublicArea = SealedPublic | EccStoragePublic | RsaStoragePublic | EccSigningPublic;

interface PublicCommon {
  /** OBJECT bits. */
  readonly attributes: number;
  /** Empty, or 32 bytes. */
  readonly authPolicy: Uint8Array;
}

/** A keyed-hash object without scheme: sealed data. */
export interface SealedPublic extends PublicCommon {
  readonly type: 'sealed';
  /** Empty in a template. */
  readonly unique: Uint8Array;
}

/** A NIST P-256 storage key with AES-128-CFB, scheme and KDF null: a storage root key or an endorsement key. */
export interface EccStoragePublic extends PublicCommon {
  readonly type: 'ecc-storage';
  readonly x: Uint8Array;
  readonly y: Uint8Array;
}

/** An RSA 2048 storage key with AES-128-CFB, scheme null, exponent 65537: a storage root key or an endorsement key. */
export interface RsaStoragePublic extends PublicCommon {
  readonly type: 'rsa-storage';
  readonly modulus: Uint8Array;
}

/** A NIST P-256 key that signs with ECDSA over SHA-256: an attestation key. */
export interface EccSigningPublic extends PublicCommon {
  readonly type: 'ecc-signing';
  readonly x: Uint8Array;
  readonly y: Uint8Array;
}

export function encodePublic(area: PublicArea): Buffer {
  const head = (type: number): Buffer[] => [
    u16(type),
    u16(TPM_ALG.sha256),
    u32(area.attributes),
    encodeSized(area.authPolicy),
  ];
  switch (area.type) {
    case 'sealed':
      return Buffer.concat([...head(TPM_ALG.keyedHash), NULL_ALGORITHM, encodeSized(area.unique)]);
    case 'ecc-storage':
      return Buffer.concat([...head(TPM_ALG.ecc), AES_128_CFB, NULL_ALGORITHM, ...encodeP256(area)]);
    case 'ecc-signing':
      return Buffer.concat([...head(TPM_ALG.ecc), NULL_ALGORITHM, ECDSA_SHA256, ...encodeP256(area)]);
    case 'rsa-storage':
      // Exponent 0 stands for 65537 (Part 2, 12.2.3.5), and is what the TCG's templates have.
      return Buffer.concat([
        ...[...head(TPM_ALG.rsa), AES_128_CFB, NULL_ALGORITHM],
        ...[u16(2048), u32(0), encodeSized(area.modulus)],
      ]);
  }
}

function encodeP256({ x, y }: { x: Uint8Array; y: Uint8Array }): Buffer[] {
  return [u16(TPM_ECC_NIST_P256), NULL_ALGORITHM, encodeSized(x), encodeSized(y)];
}

/** Throws `FormatError` with field and offset. */
export function decodePublic(bytes: Uint8Array): PublicArea {
  const reader = new TpmReader(bytes, 'TPMT_PUBLIC');
  const type = reader.u16('type');
  reader.expect(2, TPM_ALG.sha256, 'nameAlg');
  const attributes = reader.u32('objectAttributes');
  const authPolicy = reader.sized('authPolicy');
  const area = readPublicRest(reader, type, { attributes, authPolicy });
  reader.end();
  return area;
}

function readPublicRest(reader: TpmReader, type: number, common: PublicCommon): PublicArea {
  switch (type) {
    case TPM_ALG.keyedHash:
      reader.expect(2, TPM_ALG.null, 'scheme');
      return { type: 'sealed', ...common, unique: reader.sized('unique') };
    case TPM_ALG.ecc: {
      const symmetric = reader.u16('symmetric algorithm');
      if (symmetric === TPM_ALG.null) {
        reader.expect(2, TPM_ALG.ecdsa, 'scheme');
        reader.expect(2, TPM_ALG.sha256, 'hash of the scheme');
        return { type: 'ecc-signing', ...common, ...readP256(reader) };
      }
      readStorageScheme(reader, symmetric);
      return { type: 'ecc-storage', ...common, ...readP256(reader) };
    }
    case TPM_ALG.rsa:
      readStorageScheme(reader, reader.u16('symmetric algorithm'));
      reader.expect(2, 2048, 'key bits');
      reader.expect(4, 0, 'exponent');
      return { type: 'rsa-storage', ...common, modulus: reader.sized('unique') };
    default:
      return reader.fail('type', `0x${type.toString(16)} is none that Ashlar makes`);
  }
}

function readStorageScheme(reader: TpmReader, symmetric: number): void {
  if (symmetric !== TPM_ALG.aes) {
    reader.fail('symmetric algorithm', `is 0x${symmetric.toString(16)}, expected 0x${TPM_ALG.aes.toString(16)}`);
  }
  reader.expect(2, 128, 'symmetric key bits');
  reader.expect(2, TPM_ALG.cfb, 'symmetric mode');
  reader.expect(2, TPM_ALG.null, 'scheme');
}

function readP256(reader: TpmReader): { x: Uint8Array; y: Uint8Array } {
  reader.expect(2, TPM_ECC_NIST_P256, 'curve');
  reader.expect(2, TPM_ALG.null, 'kdf');
  return { x: reader.sized('unique.x'), y: reader.sized('unique.y') };
}

/** An object's name: nameAlg and the digest of its public area (Part 1, 16). */
export function objectName(publicArea: Uint8Array): Buffer {
  return Buffer.concat([u16(TPM_ALG.sha256), createHash('sha256').update(publicArea).digest()]);
}
