/**
 * Authenticode signatures on PE images ("Windows Authenticode Portable Executable Signature Format"; PKCS #7 v1.5,
 * RFC 2315), as UEFI Secure Boot checks them (UEFI specification §32.2).
 *
 * The signature has no signing time, so signing twice gives the same bytes: RSA PKCS #1 v1.5 over SHA-256. Signing can
 * be split: {@link authenticodeSignatureInput} gives the bytes that a key elsewhere must sign, {@link attachSignature}
 * takes the signature back.
 */
import { constants, createHash, type KeyObject, sign, verify, X509Certificate } from 'node:crypto';
import { alignUp, ByteReader, equalBytes } from './byte-reader.ts';
import {
  type DerElement,
  decodeDer,
  decodeDerPrefix,
  decodeOid,
  derBitString,
  derChildren,
  derContext,
  derContextPrimitive,
  derOctetString,
  derOid,
  derSequence,
  derSetOf,
  derTag,
} from './der.ts';
import { decodePe, type PeImage } from './pe.ts';
import {
  encodeContentInfo,
  encodeSignedData,
  pkcs7Oid,
  sha256AlgorithmIdentifier,
  signedAttributesInput,
} from './pkcs7.ts';
import { decodePem, issuerAndSerial } from './x509.ts';

const format = 'Authenticode signature';

const spcOid = {
  indirectData: '1.3.6.1.4.1.311.2.1.4',
  peImageData: '1.3.6.1.4.1.311.2.1.15',
} as const;

/** WIN_CERTIFICATE: revision 2, type PKCS_SIGNED_DATA. */
const winCertificateRevision = 0x0200;
const winCertificatePkcs = 0x0002;
const maxSignatures = 16;
const maxCertificates = 32;

/**
 * The SHA-256 Authenticode digest: everything but the check sum, the security directory entry and the certificate
 * table, so that it is the same before and after signing (for an image padded to 8 bytes, which signing does first).
 * This is also what firmware extends into PCR 4.
 */
export function authenticodeDigest(bytes: Uint8Array): Uint8Array {
  return digestOf(bytes, decodePe(bytes));
}

function digestOf(bytes: Uint8Array, image: PeImage): Uint8Array {
  const { checkSum, securityDirectory } = image.offsets;
  const hash = createHash('sha256');
  hash.update(bytes.subarray(0, checkSum));
  hash.update(bytes.subarray(checkSum + 4, securityDirectory));
  hash.update(bytes.subarray(securityDirectory + 8, image.sizeOfHeaders));
  let hashed = image.sizeOfHeaders;
  const sections = image.sections
    .filter((section) => section.sizeOfRawData > 0)
    .toSorted((a, b) => a.pointerToRawData - b.pointerToRawData);
  for (const { pointerToRawData, sizeOfRawData } of sections) {
    hash.update(bytes.subarray(pointerToRawData, pointerToRawData + sizeOfRawData));
    hashed += sizeOfRawData;
  }
  // What follows the sections counts too, but not the certificate table at the very end.
  const end = image.certificateTable.size === 0 ? bytes.length : bytes.length - image.certificateTable.size;
  if (end > hashed) hash.update(bytes.subarray(hashed, end));
  return hash.digest();
}

/**
 * The bytes over which a signer makes an RSASSA-PKCS1-v1_5 SHA-256 signature: the DER of the signed attributes, which
 * hold the digest of the image.
 */
export function authenticodeSignatureInput(image: Uint8Array): Uint8Array {
  return authenticodeDigestSignatureInput(authenticodeDigest(padToSign(image)));
}

/** The same, for an image of which only the Authenticode digest is at hand. */
export function authenticodeDigestSignatureInput(digest: Uint8Array): Uint8Array {
  return signedAttributesInput(signedAttributes(digest));
}

/** The certificate table must begin at a multiple of 8; the padding before it is signed. */
function padToSign(image: Uint8Array): Uint8Array {
  if (image.length % 8 === 0) return image;
  const padded = new Uint8Array(alignUp(image.length, 8));
  padded.set(image);
  return padded;
}

/** Puts a signature made over {@link authenticodeSignatureInput} into the image. The image must be unsigned. */
export function attachSignature(
  image: Uint8Array,
  options: { certificatePem: string; signature: Uint8Array },
): Uint8Array {
  const { offsets, certificateTable } = decodePe(image);
  if (certificateTable.size !== 0) throw new RangeError('cannot sign PE image: it is signed already');
  const certificateDer = decodePem('CERTIFICATE', options.certificatePem);
  const digest = authenticodeDigest(padToSign(image));
  const signedData = encodeSignedData({
    contentType: spcOid.indirectData,
    content: spcIndirectData(digest),
    certificateDer,
    signedAttributes: signedAttributes(digest),
    signature: options.signature,
  });
  const pkcs7 = encodeContentInfo(signedData);
  const start = alignUp(image.length, 8);
  const size = alignUp(8 + pkcs7.length, 8);
  const output = new Uint8Array(start + size);
  output.set(image);
  const view = new DataView(output.buffer);
  view.setUint32(start, size, true);
  view.setUint16(start + 4, winCertificateRevision, true);
  view.setUint16(start + 6, winCertificatePkcs, true);
  output.set(pkcs7, start + 8);
  view.setUint32(offsets.securityDirectory, start, true);
  view.setUint32(offsets.securityDirectory + 4, size, true);
  return output;
}

/** Signs an unsigned PE image. The key must be the RSA private key of the certificate. */
export function signAuthenticode(image: Uint8Array, options: { certificatePem: string; key: KeyObject }): Uint8Array {
  const { certificatePem, key } = options;
  if (key.asymmetricKeyType !== 'rsa') {
    throw new RangeError(`cannot sign PE image: key is ${key.asymmetricKeyType}; firmware takes RSA`);
  }
  if (!new X509Certificate(certificatePem).checkPrivateKey(key)) {
    throw new RangeError('cannot sign PE image: the key is not the one the certificate is for');
  }
  const signature = sign('sha256', authenticodeSignatureInput(image), { key, padding: constants.RSA_PKCS1_PADDING });
  return attachSignature(image, { certificatePem, signature });
}

function spcIndirectData(digest: Uint8Array): Uint8Array {
  const obsolete = Buffer.from('<<<Obsolete>>>', 'utf16le').swap16();
  const link = derContext(0, derContext(2, derContextPrimitive(0, obsolete)));
  return derSequence(
    derSequence(derOid(spcOid.peImageData), derSequence(derBitString(new Uint8Array(0)), link)),
    derSequence(sha256AlgorithmIdentifier(), derOctetString(digest)),
  );
}

/** Members of the SET of signed attributes, in DER order, without the outer tag. */
function signedAttributes(digest: Uint8Array): Uint8Array {
  const content = decodeDer(spcIndirectData(digest), format).content;
  const messageDigest = createHash('sha256').update(content).digest();
  const set = derSetOf(
    derSequence(derOid(pkcs7Oid.contentType), derSetOf(derOid(spcOid.indirectData))),
    derSequence(derOid(pkcs7Oid.messageDigest), derSetOf(derOctetString(messageDigest))),
  );
  return decodeDer(set, format).content;
}

export interface AuthenticodeSignature {
  /** The digest that the signature vouches for. */
  readonly signedDigest: Uint8Array;
  /** The certificate whose key made the signature; undefined when it does not travel with the signature. */
  readonly signer: X509Certificate | undefined;
  readonly certificates: readonly X509Certificate[];
  /** True when the signature is over this very image and the signer's key made it. Says nothing about trust. */
  readonly isValid: boolean;
  /** Why `isValid` is false. */
  readonly reason?: string;
}

export interface AuthenticodeReport {
  readonly digest: Uint8Array;
  /** Empty for an unsigned image. */
  readonly signatures: readonly AuthenticodeSignature[];
}

/**
 * Checks every signature of a PE image. Whom to trust is for the caller: compare `signer` with a db certificate.
 *
 * @throws FormatError when the image or a signature is malformed.
 */
export function verifyAuthenticode(bytes: Uint8Array): AuthenticodeReport {
  const image = decodePe(bytes);
  const digest = digestOf(bytes, image);
  const { offset, size } = image.certificateTable;
  if (size === 0) return { digest, signatures: [] };
  if (offset + size !== bytes.length) {
    new ByteReader(bytes, format).fail(
      'certificate table',
      'does not end where the file ends',
      image.offsets.securityDirectory,
    );
  }
  const signatures: AuthenticodeSignature[] = [];
  const reader = new ByteReader(bytes.subarray(offset, offset + size), format, offset);
  while (reader.remaining >= 8) {
    const start = reader.offset;
    const length = reader.u32('WIN_CERTIFICATE length');
    const revision = reader.u16('WIN_CERTIFICATE revision');
    const type = reader.u16('WIN_CERTIFICATE type');
    if (length < 8) reader.fail('WIN_CERTIFICATE length', `${length} is less than its header`, start);
    const body = reader.take(length - 8, 'WIN_CERTIFICATE');
    if (revision !== winCertificateRevision || type !== winCertificatePkcs) {
      reader.fail('WIN_CERTIFICATE', `revision 0x${revision.toString(16)} type ${type} is not PKCS #7`, start);
    }
    if (signatures.length === maxSignatures)
      reader.fail('certificate table', `over ${maxSignatures} signatures`, start);
    signatures.push(checkSignature(body, offset + start + 8, digest));
    reader.take(Math.min(reader.remaining, alignUp(reader.offset, 8) - reader.offset), 'padding');
  }
  return { digest, signatures };
}

function fail(element: DerElement | undefined, field: string, reason: string): never {
  return new ByteReader(element?.whole ?? new Uint8Array(0), format, element?.offset ?? 0).fail(field, reason);
}

function expectTag(element: DerElement | undefined, tag: number, field: string): DerElement {
  if (element === undefined) return fail(undefined, field, 'missing');
  if (element.tag !== tag)
    return fail(element, field, `tag 0x${element.tag.toString(16)}, expected 0x${tag.toString(16)}`);
  return element;
}

function expectOid(element: DerElement | undefined, expected: string, field: string): void {
  const actual = decodeOid(expectTag(element, derTag.oid, field), format);
  if (actual !== expected) fail(element, field, `is ${actual}, expected ${expected}`);
}

const children = (element: DerElement): DerElement[] => derChildren(element, format);

function checkSignature(pkcs7: Uint8Array, base: number, digest: Uint8Array): AuthenticodeSignature {
  const [outerType, outerContent] = children(
    expectTag(decodeDerPrefix(pkcs7, format, base), derTag.sequence, 'ContentInfo'),
  );
  expectOid(outerType, pkcs7Oid.signedData, 'content type');
  const [signedData] = children(expectTag(outerContent, 0xa0, 'content'));
  const parts = children(expectTag(signedData, derTag.sequence, 'SignedData'));
  const [spcType, spcWrapped] = children(expectTag(parts[2], derTag.sequence, 'encapsulated content'));
  expectOid(spcType, spcOid.indirectData, 'encapsulated content type');
  const spc = expectTag(
    children(expectTag(spcWrapped, 0xa0, 'encapsulated content'))[0],
    derTag.sequence,
    'SpcIndirectDataContent',
  );
  const digestInfo = children(expectTag(children(spc)[1], derTag.sequence, 'DigestInfo'));
  const signedDigest = expectTag(digestInfo[1], derTag.octetString, 'digest').content;
  const certificates = decodeCertificates(parts.find((part) => part.tag === 0xa0));
  const signerInfos = children(expectTag(parts.at(-1), derTag.set, 'signerInfos'));
  if (signerInfos.length !== 1)
    fail(parts.at(-1), 'signerInfos', `${signerInfos.length} signers, Authenticode has one`);
  const signerFields = children(expectTag(signerInfos[0], derTag.sequence, 'SignerInfo'));
  const issuerSerial = expectTag(signerFields[1], derTag.sequence, 'issuerAndSerialNumber');
  const signer = certificates.find((certificate) => {
    const { issuer, serialNumber } = issuerAndSerial(certificate.raw);
    return equalBytes(Buffer.concat([issuer, serialNumber]), issuerSerial.content);
  });
  const reason = invalidReason({ digestInfo, signedDigest, digest, spc, signerFields, signer });
  return {
    signedDigest,
    signer,
    certificates,
    isValid: reason === undefined,
    ...(reason === undefined ? {} : { reason }),
  };
}

function decodeCertificates(element: DerElement | undefined): X509Certificate[] {
  const elements = element === undefined ? [] : children(element);
  if (elements.length > maxCertificates)
    fail(element, 'certificates', `${elements.length} are over the limit of ${maxCertificates}`);
  return elements.map((certificate) => {
    try {
      return new X509Certificate(certificate.whole);
    } catch (error) {
      return fail(certificate, 'certificate', error instanceof Error ? error.message : String(error));
    }
  });
}

function invalidReason(parts: {
  digestInfo: DerElement[];
  signedDigest: Uint8Array;
  digest: Uint8Array;
  spc: DerElement;
  signerFields: DerElement[];
  signer: X509Certificate | undefined;
}): string | undefined {
  const [, , digestAlgorithm, attributes, signatureAlgorithm, signature] = parts.signerFields;
  const algorithmOf = (element: DerElement | undefined): string =>
    decodeOid(
      expectTag(children(expectTag(element, derTag.sequence, 'AlgorithmIdentifier'))[0], derTag.oid, 'algorithm'),
      format,
    );
  const contentAlgorithm = algorithmOf(parts.digestInfo[0]);
  if (contentAlgorithm !== pkcs7Oid.sha256 || algorithmOf(digestAlgorithm) !== pkcs7Oid.sha256)
    return `digest algorithm ${contentAlgorithm} is not SHA-256`;
  if (!equalBytes(parts.signedDigest, parts.digest)) return 'the image was changed after it was signed';
  if (parts.signer === undefined) return "the signer's certificate is not in the signature";
  const messageDigest = findMessageDigest(expectTag(attributes, 0xa0, 'signed attributes'));
  if (!equalBytes(messageDigest, createHash('sha256').update(parts.spc.content).digest())) {
    return 'the signed attributes are not over this content';
  }
  const algorithm = algorithmOf(signatureAlgorithm);
  if (algorithm !== pkcs7Oid.rsaEncryption && algorithm !== pkcs7Oid.rsaSha256)
    return `signature algorithm ${algorithm} is not RSA`;
  const signed = signedAttributesInput(expectTag(attributes, 0xa0, 'signed attributes').content);
  const key = publicKeyOf(parts.signer);
  if (key?.asymmetricKeyType !== 'rsa') return "the signer's key is not RSA";
  const signatureBytes = expectTag(signature, derTag.octetString, 'signature').content;
  const isGood = verify('sha256', signed, { key, padding: constants.RSA_PKCS1_PADDING }, signatureBytes);
  return isGood ? undefined : "the signature was not made by the signer's key";
}

/** Undefined for a key that OpenSSL cannot decode: it reads a certificate's key only when asked. */
function publicKeyOf(certificate: X509Certificate): KeyObject | undefined {
  try {
    return certificate.publicKey;
  } catch {
    return undefined;
  }
}

function findMessageDigest(attributes: DerElement): Uint8Array {
  for (const attribute of children(attributes)) {
    const [type, values] = children(expectTag(attribute, derTag.sequence, 'attribute'));
    if (decodeOid(expectTag(type, derTag.oid, 'attribute type'), format) !== pkcs7Oid.messageDigest) continue;
    const value = children(expectTag(values, derTag.set, 'attribute values'))[0];
    return expectTag(value, derTag.octetString, 'messageDigest').content;
  }
  return fail(attributes, 'signed attributes', 'no messageDigest');
}
