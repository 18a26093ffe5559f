/**
 * Authenticated writes of Secure Boot variables: EFI_VARIABLE_AUTHENTICATION_2 followed by the new content (UEFI
 * specification §8.2.2). It is what a `.auth` file holds, and what is written through efivarfs after the four attribute
 * bytes `27 00 00 00`, all in one write().
 *
 * ```
 * EFI_TIME (16) | u32 length, u16 0x0200, u16 0x0ef1, GUID PKCS7 | SignedData, bare | EFI signature lists
 * ```
 *
 * The signature is over name (UTF-16LE, no NUL) ‖ vendor GUID ‖ attributes ‖ EFI_TIME ‖ content, without signed attributes:
 * there are firmwares that refuse them. RSA PKCS #1 v1.5 with SHA-256.
 */
import { constants, type KeyObject, sign, verify, X509Certificate } from 'node:crypto';
import { ByteReader, equalBytes } from './byte-reader.ts';
import { type DerElement, decodeDer, decodeOid, derChildren, derTag } from './der.ts';
import {
  decodeSignatureLists,
  efiGlobalVariable,
  efiImageSecurityDatabase,
  type SignatureList,
} from './efi-signature-list.ts';
import { decodeGuid, encodeGuid } from './guid.ts';
import { encodeSignedData, pkcs7Oid } from './pkcs7.ts';
import { decodePem, issuerAndSerial } from './x509.ts';

const format = 'authenticated variable';
const pkcs7Type = '4aafd29d-68df-49ee-8aa9-347d375665a7';
const winCertificateRevision = 0x0200;
const winCertificateGuid = 0x0ef1;
/** WIN_CERTIFICATE_UEFI_GUID without its data. */
const winCertificateHeaderSize = 24;
const maxBytes = 64 * 1024;

/** Non-volatile, boot service and runtime access, time-based authenticated: how the four variables are written. */
export const authenticatedAttributes = 0x27;

/** The variables that an enrolment writes, in this order: with PK the machine leaves Setup Mode. */
export const enrolledVariables = [
  { name: 'db', vendorGuid: efiImageSecurityDatabase },
  { name: 'KEK', vendorGuid: efiGlobalVariable },
  { name: 'PK', vendorGuid: efiGlobalVariable },
] as const;

export type EnrolledVariable = (typeof enrolledVariables)[number]['name'];

/** EFI_TIME with only date and time of day: the pads, nanoseconds, zone and daylight must be zero (UEFI §8.2.2). */
export function encodeEfiTime(time: Date): Uint8Array {
  const bytes = Buffer.alloc(16);
  bytes.writeUInt16LE(time.getUTCFullYear(), 0);
  bytes.set(
    [time.getUTCMonth() + 1, time.getUTCDate(), time.getUTCHours(), time.getUTCMinutes(), time.getUTCSeconds()],
    2,
  );
  return bytes;
}

export interface VariableWrite {
  readonly name: string;
  readonly vendorGuid: string;
  /** EFI_TIME. Firmware refuses one that is not later than that of the last write. */
  readonly timestamp: Uint8Array;
  /** EFI signature lists. */
  readonly content: Uint8Array;
}

/** The bytes over which a signer makes an RSASSA-PKCS1-v1_5 SHA-256 signature. */
export function authenticatedWriteInput({ name, vendorGuid, timestamp, content }: VariableWrite): Uint8Array {
  const attributes = Buffer.alloc(4);
  attributes.writeUInt32LE(authenticatedAttributes);
  return Buffer.concat([Buffer.from(name, 'utf16le'), encodeGuid(vendorGuid), attributes, timestamp, content]);
}

/** @param options.signature over {@link authenticatedWriteInput}, by the key of `certificatePem` */
export function encodeAuthenticatedWrite(
  write: Pick<VariableWrite, 'timestamp' | 'content'>,
  options: { certificatePem: string; signature: Uint8Array },
): Uint8Array {
  const certificateDer = decodePem('CERTIFICATE', options.certificatePem);
  const { signature } = options;
  const signedData = encodeSignedData({ contentType: pkcs7Oid.data, certificateDer, signature });
  const header = Buffer.alloc(8);
  header.writeUInt32LE(winCertificateHeaderSize + signedData.length, 0);
  header.writeUInt16LE(winCertificateRevision, 4);
  header.writeUInt16LE(winCertificateGuid, 6);
  return Buffer.concat([write.timestamp, header, encodeGuid(pkcs7Type), signedData, write.content]);
}

/**
 * The same, signed with a key at hand.
 *
 * @param key RSA private key of `certificatePem`: PK's own for PK, PK's for KEK, KEK's for db and dbx.
 */
export function signAuthenticatedWrite(
  write: VariableWrite,
  { certificatePem, key }: { certificatePem: string; key: KeyObject },
): Uint8Array {
  const signature = sign('sha256', authenticatedWriteInput(write), { key, padding: constants.RSA_PKCS1_PADDING });
  return encodeAuthenticatedWrite(write, { certificatePem, signature });
}

export interface DecodedAuthenticatedWrite {
  readonly timestamp: Uint8Array;
  readonly content: Uint8Array;
  readonly lists: readonly SignatureList[];
  /** Certificates of the signature; the signer's is among them. */
  readonly certificates: readonly X509Certificate[];
  /** The certificate whose key made the signature; undefined when it is not among them. */
  readonly signer: X509Certificate | undefined;
  readonly signature: Uint8Array;
}

/**
 * Reads a `.auth` file.
 *
 * @throws FormatError when it is malformed, or has what firmware of the field refuses: signed attributes, another digest.
 */
export function decodeAuthenticatedWrite(bytes: Uint8Array): DecodedAuthenticatedWrite {
  const reader = new ByteReader(bytes, format);
  if (bytes.length > maxBytes) reader.fail('file', `${bytes.length} bytes are over the limit of ${maxBytes}`);
  const timestamp = reader.take(16, 'EFI_TIME');
  if ([7, 8, 9, 10, 11, 12, 13, 14, 15].some((index) => timestamp[index] !== 0))
    reader.fail('EFI_TIME', 'has more than a date and a time of day', 0);
  const length = reader.u32('WIN_CERTIFICATE length');
  const revision = reader.u16('WIN_CERTIFICATE revision');
  const type = reader.u16('WIN_CERTIFICATE type');
  const guid = decodeGuid(reader.take(16, 'CertType'));
  if (revision !== winCertificateRevision || type !== winCertificateGuid || guid !== pkcs7Type)
    reader.fail(
      'WIN_CERTIFICATE',
      `revision 0x${revision.toString(16)} type 0x${type.toString(16)} ${guid} is not PKCS #7`,
      16,
    );
  if (length <= winCertificateHeaderSize) reader.fail('WIN_CERTIFICATE length', `${length} is too small`, 16);
  const start = reader.offset;
  const pkcs7 = reader.take(length - winCertificateHeaderSize, 'CertData');
  const content = reader.take(reader.remaining, 'content');
  return { timestamp, content, lists: decodeSignatureLists(content), ...decodeSignature(pkcs7, start) };
}

/** Undefined when `signer`'s key signed this write of this variable, otherwise why not. */
export function authenticatedWriteProblem(
  variable: Pick<VariableWrite, 'name' | 'vendorGuid'>,
  decoded: DecodedAuthenticatedWrite,
): string | undefined {
  const { signer, timestamp, content, signature } = decoded;
  if (signer === undefined) return "the signer's certificate is not in it";
  const key = signer.publicKey;
  if (key.asymmetricKeyType !== 'rsa') return "the signer's key is not RSA";
  const input = authenticatedWriteInput({ ...variable, timestamp, content });
  const isGood = verify('sha256', input, { key, padding: constants.RSA_PKCS1_PADDING }, signature);
  return isGood ? undefined : `it is not signed as a write of ${variable.name}`;
}

/** Of a write's lists: the X.509 certificates, as DER. */
export function certificatesOf(lists: readonly SignatureList[]): Uint8Array[] {
  return lists.filter(({ type }) => type === 'x509').flatMap(({ signatures }) => signatures.map(({ data }) => data));
}

function decodeSignature(
  pkcs7: Uint8Array,
  base: number,
): Pick<DecodedAuthenticatedWrite, 'certificates' | 'signer' | 'signature'> {
  const outer = decodeDer(pkcs7, format, base);
  const [first] = derChildren(outer, format);
  // Some tools wrap SignedData into a ContentInfo, which begins with an OID.
  const signedData = first?.tag === derTag.oid ? unwrapContentInfo(outer) : outer;
  const parts = derChildren(expectTag(signedData, derTag.sequence, 'SignedData'), format);
  const certificates = derChildren(expectTag(parts[3], 0xa0, 'certificates'), format).map(decodeCertificate);
  const signers = derChildren(expectTag(parts.at(-1), derTag.set, 'signerInfos'), format);
  if (signers.length !== 1) fail(parts.at(-1), 'signerInfos', `${signers.length} signers, there must be one`);
  const fields = derChildren(expectTag(signers[0], derTag.sequence, 'SignerInfo'), format);
  const [, issuerSerial, digestAlgorithm, next] = fields;
  const algorithm = decodeOid(
    expectTag(derChildren(expectTag(digestAlgorithm, derTag.sequence, 'digest'), format)[0], derTag.oid, 'digest'),
    format,
  );
  if (algorithm !== pkcs7Oid.sha256) fail(digestAlgorithm, 'digest algorithm', `${algorithm} is not SHA-256`);
  if (next?.tag === 0xa0) fail(next, 'signed attributes', 'there must be none: firmware refuses them');
  const wanted = expectTag(issuerSerial, derTag.sequence, 'issuerAndSerialNumber').content;
  const signer = certificates.find((certificate) => {
    const { issuer, serialNumber } = issuerAndSerial(certificate.raw);
    return equalBytes(Buffer.concat([issuer, serialNumber]), wanted);
  });
  return { certificates, signer, signature: expectTag(fields[4], derTag.octetString, 'signature').content };
}

function unwrapContentInfo(outer: DerElement): DerElement {
  const [type, wrapped] = derChildren(outer, format);
  const oid = decodeOid(expectTag(type, derTag.oid, 'content type'), format);
  if (oid !== pkcs7Oid.signedData) fail(type, 'content type', `${oid} is not SignedData`);
  return expectTag(derChildren(expectTag(wrapped, 0xa0, 'content'), format)[0], derTag.sequence, 'SignedData');
}

function decodeCertificate(element: DerElement): X509Certificate {
  try {
    const certificate = new X509Certificate(element.whole);
    // OpenSSL decodes a certificate's key only when asked; one that it cannot decode is malformed, too.
    void certificate.publicKey;
    return certificate;
  } catch (error) {
    return fail(element, 'certificate', error instanceof Error ? error.message : String(error));
  }
}

function fail(element: DerElement | undefined, field: string, reason: string): never {
  return new ByteReader(element?.whole ?? new Uint8Array(0), format, element?.offset ?? 0).fail(field, reason, 0);
}

function expectTag(element: DerElement | undefined, tag: number, field: string): DerElement {
  if (element === undefined) return fail(undefined, field, 'missing');
  if (element.tag !== tag)
    return fail(element, field, `tag 0x${element.tag.toString(16)}, expected 0x${tag.toString(16)}`);
  return element;
}
