/**
 * Secure Boot's databases: EFI signature lists (UEFI specification §32.4.1). The authenticated writes that carry them are
 * in `authenticated-variable.ts`.
 */
import { createHash } from 'node:crypto';
import { ByteReader } from './byte-reader.ts';
import { decodeGuid, encodeGuid } from './guid.ts';
import { decodePem } from './x509.ts';

/** Vendor GUIDs of variables. */
export const efiGlobalVariable = '8be4df61-93ca-11d2-aa0d-00e098032b8c';
export const efiImageSecurityDatabase = 'd719b2cb-3d3a-4596-a3bc-dad00e67656f';

const certificateType = 'a5c059a1-94e4-4aa7-87b5-ab155c2bf072';
const sha256Type = 'c1c41626-504c-4092-aca9-41f936934328';
/** Owner that OVMF's own enrolment tools give to what they add. */
const ovmfEnrollOwner = 'a0baa8a3-041d-48a8-bc87-c36d121b5e3d';

const format = 'EFI signature list';
const listHeaderSize = 28;
const maxLists = 4096;

export interface SignatureList {
  readonly type: 'x509' | 'sha256' | 'other';
  readonly typeGuid: string;
  readonly signatures: readonly { readonly ownerGuid: string; readonly data: Uint8Array }[];
}

/** What a machine's four Secure Boot variables hold: EFI signature lists. An empty `dbx` means that there is none. */
export interface SecureBootVariables {
  readonly pk: Uint8Array;
  readonly kek: Uint8Array;
  readonly db: Uint8Array;
  readonly dbx: Uint8Array;
}

/**
 * The variables for a machine that trusts exactly these certificates.
 *
 * @param options.dbx `dummy` is one hash of nothing, which virt-fw-vars enrols because some firmware wants the variable
 *   to exist. It changes PCR 7. @default 'empty'
 */
export function secureBootVariables(options: {
  ownerGuid: string;
  pkCertificatePem: string;
  kekCertificatePem: string;
  dbCertificatePem: string;
  dbx?: 'empty' | 'dummy' | Uint8Array;
}): SecureBootVariables {
  const dbx = options.dbx ?? 'empty';
  return {
    pk: encodeCertificateList(options.ownerGuid, options.pkCertificatePem),
    kek: encodeCertificateList(options.ownerGuid, options.kekCertificatePem),
    db: encodeCertificateList(options.ownerGuid, options.dbCertificatePem),
    dbx: dbx === 'empty' ? new Uint8Array(0) : dbx === 'dummy' ? dummyDbx() : dbx,
  };
}

/** A list with one certificate. */
export function encodeCertificateList(ownerGuid: string, certificatePem: string): Uint8Array {
  return encodeList(certificateType, ownerGuid, [decodePem('CERTIFICATE', certificatePem)]);
}

/** A list of SHA-256 Authenticode digests, as dbx holds them. */
export function encodeHashList(ownerGuid: string, digests: readonly Uint8Array[]): Uint8Array {
  if (digests.length === 0 || digests.some((digest) => digest.length !== 32)) {
    throw new RangeError('cannot encode EFI signature list: it wants one or more digests of 32 bytes');
  }
  return encodeList(sha256Type, ownerGuid, digests);
}

/** The list that virt-fw-vars puts into dbx: the hash of nothing. */
export function dummyDbx(): Uint8Array {
  return encodeHashList(ovmfEnrollOwner, [createHash('sha256').digest()]);
}

function encodeList(typeGuid: string, ownerGuid: string, data: readonly Uint8Array[]): Uint8Array {
  const signatureSize = 16 + (data[0]?.length ?? 0);
  const sizes = Buffer.alloc(12);
  sizes.writeUInt32LE(listHeaderSize + data.length * signatureSize, 0);
  sizes.writeUInt32LE(signatureSize, 8);
  const owner = encodeGuid(ownerGuid);
  return Buffer.concat([encodeGuid(typeGuid), sizes, ...data.flatMap((item) => [owner, item])]);
}

/** Reads the lists that fill a variable. @throws FormatError when malformed. */
export function decodeSignatureLists(bytes: Uint8Array): SignatureList[] {
  const reader = new ByteReader(bytes, format);
  const lists: SignatureList[] = [];
  while (reader.remaining > 0) {
    const start = reader.offset;
    if (lists.length === maxLists) reader.fail('lists', `over ${maxLists}`);
    const typeGuid = decodeGuid(reader.take(16, 'SignatureType'));
    const listSize = reader.u32('SignatureListSize');
    const headerSize = reader.u32('SignatureHeaderSize');
    const signatureSize = reader.u32('SignatureSize');
    const bodySize = listSize - listHeaderSize - headerSize;
    if (signatureSize <= 16 || bodySize <= 0 || bodySize % signatureSize !== 0) {
      reader.fail('SignatureSize', `${signatureSize} does not divide the ${bodySize} bytes of the list`, start + 24);
    }
    reader.take(headerSize, 'SignatureHeader');
    const body = new ByteReader(reader.take(bodySize, 'Signatures'), format, reader.offset);
    const signatures = Array.from({ length: bodySize / signatureSize }, () => ({
      ownerGuid: decodeGuid(body.take(16, 'SignatureOwner')),
      data: body.take(signatureSize - 16, 'SignatureData'),
    }));
    const type = typeGuid === certificateType ? 'x509' : typeGuid === sha256Type ? 'sha256' : 'other';
    lists.push({ type, typeGuid, signatures });
  }
  return lists;
}
