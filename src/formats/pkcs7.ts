/** PKCS #7 SignedData v1 (RFC 2315) with one RSA SHA-256 signer: the shape UEFI wants for images and for variables. */
import { derContext, derElement, derInteger, derNull, derOctetString, derOid, derSequence, derSetOf } from './der.ts';
import { issuerAndSerial } from './x509.ts';

export const pkcs7Oid = {
  data: '1.2.840.113549.1.7.1',
  signedData: '1.2.840.113549.1.7.2',
  contentType: '1.2.840.113549.1.9.3',
  messageDigest: '1.2.840.113549.1.9.4',
  rsaEncryption: '1.2.840.113549.1.1.1',
  rsaSha256: '1.2.840.113549.1.1.11',
  sha256: '2.16.840.1.101.3.4.2.1',
} as const;

export const sha256AlgorithmIdentifier = (): Uint8Array => derSequence(derOid(pkcs7Oid.sha256), derNull());

/** @returns the SignedData SEQUENCE itself, without the ContentInfo around it (UEFI variables carry it bare). */
export function encodeSignedData(options: {
  contentType: string;
  /** DER of the content; absent when the signature is detached. */
  content?: Uint8Array;
  certificateDer: Uint8Array;
  /** Members of the SET of signed attributes, in DER order; absent when the signature is over the content itself. */
  signedAttributes?: Uint8Array;
  signature: Uint8Array;
}): Uint8Array {
  const { issuer, serialNumber } = issuerAndSerial(options.certificateDer);
  const signerInfo = derSequence(
    derInteger(1),
    derSequence(issuer, serialNumber),
    sha256AlgorithmIdentifier(),
    ...(options.signedAttributes === undefined ? [] : [derContext(0, options.signedAttributes)]),
    derSequence(derOid(pkcs7Oid.rsaEncryption), derNull()),
    derOctetString(options.signature),
  );
  const content = options.content === undefined ? [] : [derContext(0, options.content)];
  return derSequence(
    derInteger(1),
    derSetOf(sha256AlgorithmIdentifier()),
    derSequence(derOid(options.contentType), ...content),
    derContext(0, options.certificateDer),
    derSetOf(signerInfo),
  );
}

/** Wraps SignedData as a ContentInfo. */
export function encodeContentInfo(signedData: Uint8Array): Uint8Array {
  return derSequence(derOid(pkcs7Oid.signedData), derContext(0, signedData));
}

/** What is signed when there are signed attributes: they are sent as `[0]` but signed as SET (RFC 2315 §9.3). */
export function signedAttributesInput(signedAttributes: Uint8Array): Uint8Array {
  return derElement(0x31, signedAttributes);
}
