/**
 * What a TPM signs and with which key, in wire format (TCG TPM 2.0 Library, Part 2; big-endian): TPMS_ATTEST of a quote,
 * TPMT_SIGNATURE, and TPMT_PUBLIC of attestation and endorsement keys. Untrusted: each decoder takes exactly its structure,
 * refuses trailing bytes, and fails with the field's name.
 */
import { constants, createPublicKey, type KeyObject, verify } from 'node:crypto';
import {
  encodePcrSelections,
  encodeSized,
  type PcrSelection,
  readPcrSelections,
  TPM_ALG,
  TpmReader,
  u8,
  u16,
  u32,
} from './tpm-structures.ts';

/** TPM_GENERATED_VALUE (Part 2, 6.2): "\xffTCG". A restricted key signs nothing from outside that begins so. */
export const TPM_GENERATED = 0xff544347;
/** TPM_ST_ATTEST_QUOTE (Part 2, 6.9). */
export const ATTEST_QUOTE = 0x8018;

/** No structure of a quote is larger; TPM2B_PUBLIC and TPM2B_ATTEST stay far below. */
const maxStructureBytes = 4096;

export type KeyHash = 'sha1' | 'sha256' | 'sha384' | 'sha512';
const hashById = new Map<number, KeyHash>([
  [TPM_ALG.sha1, 'sha1'],
  [TPM_ALG.sha256, 'sha256'],
  [TPM_ALG.sha384, 'sha384'],
  [TPM_ALG.sha512, 'sha512'],
]);
const idOfHash = new Map([...hashById].map(([id, name]) => [name, id]));

export type KeyCurve = 'P-256' | 'P-384' | 'P-521';
const curveById = new Map<number, { name: KeyCurve; bytes: number }>([
  [0x0003, { name: 'P-256', bytes: 32 }],
  [0x0004, { name: 'P-384', bytes: 48 }],
  [0x0005, { name: 'P-521', bytes: 66 }],
]);

/** TPMS_CLOCK_INFO (Part 2, 10.11.1). */
export interface ClockInfo {
  /** Milliseconds that this TPM has been powered in its life. */
  readonly clockMs: bigint;
  /** Power-ons and resets. */
  readonly resetCount: number;
  /** Resumes and restarts since the last reset. */
  readonly restartCount: number;
  /** False after a power cut, until the clock is certain not to repeat an earlier value. */
  readonly safe: boolean;
}

/** TPMS_ATTEST (Part 2, 10.12.12). Magic and type are not judged here. */
export interface Attest {
  readonly magic: number;
  readonly type: number;
  /** Qualified name of the key that signs. */
  readonly qualifiedSigner: Uint8Array;
  /** `qualifyingData` of the command: the verifier's part. */
  readonly extraData: Uint8Array;
  readonly clock: ClockInfo;
  readonly firmwareVersion: bigint;
  /** TPMS_QUOTE_INFO (Part 2, 10.12.4); absent when the type is another. */
  readonly quote?: { readonly selections: readonly PcrSelection[]; readonly pcrDigest: Uint8Array };
}

export function decodeAttest(bytes: Uint8Array): Attest {
  const reader = readerOf(bytes, 'TPMS_ATTEST');
  const head = {
    magic: reader.u32('magic'),
    type: reader.u16('type'),
    qualifiedSigner: reader.sized('qualifiedSigner'),
    extraData: reader.sized('extraData'),
    clock: {
      clockMs: u64(reader, 'clock'),
      resetCount: reader.u32('resetCount'),
      restartCount: reader.u32('restartCount'),
      safe: yesNo(reader, 'safe'),
    },
    firmwareVersion: u64(reader, 'firmwareVersion'),
  };
  // Of other types we know no layout: what follows is theirs.
  if (head.type !== ATTEST_QUOTE) return head;
  const quote = { selections: readPcrSelections(reader), pcrDigest: reader.sized('pcrDigest') };
  reader.end();
  return { ...head, quote };
}

/** The inverse of {@link decodeAttest}, for a quote. */
export function encodeAttest(attest: Attest & Required<Pick<Attest, 'quote'>>): Uint8Array {
  return Buffer.concat([
    u32(attest.magic),
    u16(attest.type),
    encodeSized(attest.qualifiedSigner),
    encodeSized(attest.extraData),
    encodeU64(attest.clock.clockMs),
    u32(attest.clock.resetCount),
    u32(attest.clock.restartCount),
    u8(attest.clock.safe ? 1 : 0),
    encodeU64(attest.firmwareVersion),
    encodePcrSelections(attest.quote.selections),
    encodeSized(attest.quote.pcrDigest),
  ]);
}

/** TPMT_SIGNATURE (Part 2, 11.3.4) of the schemes that attestation keys have. */
export type TpmSignature =
  | { readonly scheme: 'rsassa' | 'rsapss'; readonly hash: KeyHash; readonly signature: Uint8Array }
  | { readonly scheme: 'ecdsa'; readonly hash: KeyHash; readonly r: Uint8Array; readonly s: Uint8Array };

export function decodeTpmSignature(bytes: Uint8Array): TpmSignature {
  const reader = readerOf(bytes, 'TPMT_SIGNATURE');
  const scheme = schemeName(reader, reader.u16('sigAlg'));
  const hash = hashOf(reader, 'hash');
  const signature: TpmSignature =
    scheme === 'ecdsa'
      ? { scheme, hash, r: reader.sized('signatureR'), s: reader.sized('signatureS') }
      : { scheme, hash, signature: reader.sized('sig') };
  reader.end();
  return signature;
}

export function encodeTpmSignature(value: TpmSignature): Uint8Array {
  const head = [u16(TPM_ALG[value.scheme]), u16(idOfHash.get(value.hash) ?? 0)];
  return value.scheme === 'ecdsa'
    ? Buffer.concat([...head, encodeSized(value.r), encodeSized(value.s)])
    : Buffer.concat([...head, encodeSized(value.signature)]);
}

interface KeyCommon {
  readonly nameHash: KeyHash;
  /** TPMA_OBJECT (Part 2, 8.3), as `OBJECT` in tpm-public-area.ts names its bits. */
  readonly attributes: number;
  readonly authPolicy: Uint8Array;
  /** AES-CFB key size of a storage key; absent for others. */
  readonly symmetricBits?: number;
  /** The only scheme that the key may sign with; absent when it may choose. */
  readonly scheme?: { readonly name: TpmSignature['scheme']; readonly hash: KeyHash };
}

/** TPMT_PUBLIC (Part 2, 12.2.4) of an asymmetric key. */
export type TpmPublicKey =
  | (KeyCommon & { readonly type: 'rsa'; readonly exponent: number; readonly modulus: Uint8Array })
  | (KeyCommon & { readonly type: 'ecc'; readonly curve: KeyCurve; readonly x: Uint8Array; readonly y: Uint8Array });

export function decodeTpmPublicKey(bytes: Uint8Array): TpmPublicKey {
  const reader = readerOf(bytes, 'TPMT_PUBLIC');
  const type = reader.u16('type');
  if (type !== TPM_ALG.rsa && type !== TPM_ALG.ecc) {
    reader.fail('type', `0x${type.toString(16)} is neither RSA nor ECC`);
  }
  const nameHash = hashOf(reader, 'nameAlg');
  const attributes = reader.u32('objectAttributes');
  const authPolicy = reader.sized('authPolicy');
  const symmetricBits = readSymmetric(reader);
  const scheme = readScheme(reader);
  const common = {
    nameHash,
    attributes,
    authPolicy,
    ...(symmetricBits !== undefined && { symmetricBits }),
    ...(scheme !== undefined && { scheme }),
  };
  const key: TpmPublicKey = type === TPM_ALG.rsa ? readRsa(reader, common) : readEcc(reader, common);
  reader.end();
  return key;
}

export function encodeTpmPublicKey(key: TpmPublicKey): Uint8Array {
  const head = [
    u16(TPM_ALG[key.type]),
    u16(idOfHash.get(key.nameHash) ?? 0),
    u32(key.attributes),
    encodeSized(key.authPolicy),
    ...(key.symmetricBits === undefined
      ? [u16(TPM_ALG.null)]
      : [u16(TPM_ALG.aes), u16(key.symmetricBits), u16(TPM_ALG.cfb)]),
    ...(key.scheme === undefined
      ? [u16(TPM_ALG.null)]
      : [u16(TPM_ALG[key.scheme.name]), u16(idOfHash.get(key.scheme.hash) ?? 0)]),
  ];
  if (key.type === 'rsa') {
    // 0 stands for 65537, and is what the TCG's templates say.
    const exponent = key.exponent === 65537 ? 0 : key.exponent;
    return Buffer.concat([...head, u16(key.modulus.length * 8), u32(exponent), encodeSized(key.modulus)]);
  }
  const curve = [...curveById].find(([, { name }]) => name === key.curve)?.[0] ?? 0;
  return Buffer.concat([...head, u16(curve), u16(TPM_ALG.null), encodeSized(key.x), encodeSized(key.y)]);
}

/** @throws Error when the numbers are no key: a point that is not on the curve, say. */
export function keyObjectOf(key: TpmPublicKey): KeyObject {
  const text = (value: Uint8Array): string => Buffer.from(value).toString('base64url');
  if (key.type === 'rsa') {
    const exponent = text(u32(key.exponent).subarray(key.exponent > 0xffffff ? 0 : 1));
    return createPublicKey({ format: 'jwk', key: { kty: 'RSA', n: text(key.modulus), e: exponent } });
  }
  return createPublicKey({ format: 'jwk', key: { kty: 'EC', crv: key.curve, x: text(key.x), y: text(key.y) } });
}

/** Whether this key made this signature over these bytes. False, too, for a signature of another kind of key. */
export function verifyTpmSignature(key: TpmPublicKey, signature: TpmSignature, message: Uint8Array): boolean {
  if ((key.type === 'ecc') !== (signature.scheme === 'ecdsa')) return false;
  const publicKey = keyObjectOf(key);
  if (signature.scheme === 'ecdsa') {
    const size = key.type === 'ecc' ? key.x.length : 0;
    if (signature.r.length > size || signature.s.length > size) return false;
    // IEEE P1363: both numbers at the curve's size. The TPM may leave out leading zeros.
    const joined = Buffer.alloc(2 * size);
    joined.set(signature.r, size - signature.r.length);
    joined.set(signature.s, 2 * size - signature.s.length);
    return verify(signature.hash, message, { key: publicKey, dsaEncoding: 'ieee-p1363' }, joined);
  }
  const padding = signature.scheme === 'rsassa' ? constants.RSA_PKCS1_PADDING : constants.RSA_PKCS1_PSS_PADDING;
  return verify(signature.hash, message, { key: publicKey, padding }, signature.signature);
}

function readRsa(reader: TpmReader, common: KeyCommon): TpmPublicKey {
  const bits = reader.u16('keyBits');
  if (bits !== 2048 && bits !== 3072 && bits !== 4096) reader.fail('keyBits', `${bits} is not 2048, 3072 or 4096`);
  const exponent = reader.u32('exponent');
  const modulus = reader.sized('unique');
  if (modulus.length * 8 !== bits) reader.fail('unique', `has ${modulus.length} bytes, keyBits says ${bits / 8}`);
  return { type: 'rsa', ...common, exponent: exponent === 0 ? 65537 : exponent, modulus };
}

function readEcc(reader: TpmReader, common: KeyCommon): TpmPublicKey {
  const id = reader.u16('curveID');
  const curve = curveById.get(id);
  if (curve === undefined) return reader.fail('curveID', `0x${id.toString(16)} is not NIST P-256, P-384 or P-521`);
  reader.expect(2, TPM_ALG.null, 'kdf');
  const [x, y] = [coordinate(reader, 'unique.x', curve.bytes), coordinate(reader, 'unique.y', curve.bytes)];
  return { type: 'ecc', ...common, curve: curve.name, x, y };
}

/** At the curve's full size, as the TPM gives it (Part 1, C.8): the key's name is a hash of exactly these bytes. */
function coordinate(reader: TpmReader, field: string, size: number): Uint8Array {
  const value = reader.sized(field);
  if (value.length !== size) reader.fail(field, `has ${value.length} bytes, the curve has ${size}`);
  return value;
}

function readSymmetric(reader: TpmReader): number | undefined {
  const algorithm = reader.u16('symmetric algorithm');
  if (algorithm === TPM_ALG.null) return undefined;
  if (algorithm !== TPM_ALG.aes) reader.fail('symmetric algorithm', `0x${algorithm.toString(16)} is not AES`);
  const bits = reader.u16('symmetric key bits');
  if (bits !== 128 && bits !== 192 && bits !== 256) reader.fail('symmetric key bits', `${bits} is no size of AES`);
  reader.expect(2, TPM_ALG.cfb, 'symmetric mode');
  return bits;
}

function readScheme(reader: TpmReader): KeyCommon['scheme'] {
  const algorithm = reader.u16('scheme');
  if (algorithm === TPM_ALG.null) return undefined;
  return { name: schemeName(reader, algorithm), hash: hashOf(reader, 'scheme hash') };
}

function schemeName(reader: TpmReader, algorithm: number): TpmSignature['scheme'] {
  switch (algorithm) {
    case TPM_ALG.rsassa:
      return 'rsassa';
    case TPM_ALG.rsapss:
      return 'rsapss';
    case TPM_ALG.ecdsa:
      return 'ecdsa';
    default:
      return reader.fail('scheme', `0x${algorithm.toString(16)} is not RSASSA, RSAPSS or ECDSA`);
  }
}

function hashOf(reader: TpmReader, field: string): KeyHash {
  const id = reader.u16(field);
  return hashById.get(id) ?? reader.fail(field, `0x${id.toString(16)} is not SHA-1, SHA-256, SHA-384 or SHA-512`);
}

function yesNo(reader: TpmReader, field: string): boolean {
  const value = reader.u8(field);
  if (value > 1) reader.fail(field, `${value} is neither 0 nor 1`);
  return value === 1;
}

function u64(reader: TpmReader, field: string): bigint {
  return (BigInt(reader.u32(field)) << 32n) | BigInt(reader.u32(field));
}

function encodeU64(value: bigint): Uint8Array {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value);
  return bytes;
}

function readerOf(bytes: Uint8Array, structure: string): TpmReader {
  const reader = new TpmReader(bytes, structure);
  if (bytes.length > maxStructureBytes) reader.fail('structure', `${bytes.length} bytes are over ${maxStructureBytes}`);
  return reader;
}
