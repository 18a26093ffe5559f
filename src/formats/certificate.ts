/**
 * Reads X.509 certificates (RFC 5280 §4.1) as far as a chain is judged by: names, validity, key, extensions. Own DER,
 * because certificates of TPM makers hold what node:crypto does not show (which extensions are critical, directory names)
 * or cannot read (keys that are marked as for RSAES-OAEP only). Untrusted input.
 */
import { FormatError } from './byte-reader.ts';
import { type DerElement, decodeDer, decodeDerPrefix, decodeOid, derChildren, derTag } from './der.ts';

/** A Name (RFC 5280 §4.1.2.4) is compared by its bytes: issuers copy them. */
export interface Certificate {
  /** Exactly the certificate, without what followed it. */
  readonly der: Uint8Array;
  readonly signatureAlgorithm: string;
  /** OID of the digest that is signed, where the algorithm's OID leaves it to parameters: RSASSA-PSS. */
  readonly signatureDigest?: string;
  readonly issuer: Uint8Array;
  readonly subject: Uint8Array;
  readonly notBefore: Date;
  readonly notAfter: Date;
  readonly publicKey: CertificateKey;
  readonly extensions: readonly CertificateExtension[];
}

export type CertificateKey =
  | { readonly type: 'rsa'; readonly modulus: Uint8Array; readonly exponent: Uint8Array }
  | { readonly type: 'ec'; readonly curve: string; readonly point: Uint8Array }
  | { readonly type: 'other'; readonly algorithm: string };

export interface CertificateExtension {
  readonly oid: string;
  readonly critical: boolean;
  /** What the OCTET STRING holds. */
  readonly value: Uint8Array;
}

export const extensionOid = {
  subjectDirectoryAttributes: '2.5.29.9',
  subjectKeyId: '2.5.29.14',
  keyUsage: '2.5.29.15',
  subjectAltName: '2.5.29.17',
  issuerAltName: '2.5.29.18',
  basicConstraints: '2.5.29.19',
  crlDistributionPoints: '2.5.29.31',
  certificatePolicies: '2.5.29.32',
  authorityKeyId: '2.5.29.35',
  extendedKeyUsage: '2.5.29.37',
  freshestCrl: '2.5.29.46',
  authorityInfoAccess: '1.3.6.1.5.5.7.1.1',
} as const;

const keyOid = {
  rsa: '1.2.840.113549.1.1.1',
  /** RSAES-OAEP (RFC 4055): how some makers mark a key that only decrypts. */
  rsaOaep: '1.2.840.113549.1.1.7',
  ec: '1.2.840.10045.2.1',
} as const;
const curveByOid: Partial<Record<string, string>> = {
  '1.2.840.10045.3.1.7': 'P-256',
  '1.3.132.0.34': 'P-384',
  '1.3.132.0.35': 'P-521',
};

export const rsassaPssOid = '1.2.840.113549.1.1.10';
const sha1Oid = '1.3.14.3.2.26';

const format = 'X.509 certificate';
const maxCertificateBytes = 16 * 1024;
const maxExtensions = 64;

/**
 * @param bytes begins with the certificate. What follows is not looked at: TPMs keep certificates in NV memory of a fixed
 *   size, padded with whatever.
 * @throws FormatError
 */
export function decodeCertificate(bytes: Uint8Array): Certificate {
  const whole = decodeDerPrefix(bytes, format);
  if (whole.whole.length > maxCertificateBytes)
    throw refusal('certificate', `${whole.whole.length} bytes are over the limit of ${maxCertificateBytes}`);
  const [tbs, algorithm] = members(whole, 'certificate', derTag.sequence);
  const fields = members(tbs, 'tbsCertificate', derTag.sequence);
  // version [0] is optional in the schema, and absent means v1
  const [, signature, issuer, validity, subject, key, ...rest] = fields[0]?.tag === 0xa0 ? fields.slice(1) : fields;
  const signatureAlgorithm = algorithmOid(algorithm, 'signatureAlgorithm');
  if (Buffer.compare(present(signature, 'signature').whole, present(algorithm, 'signatureAlgorithm').whole) !== 0)
    throw refusal('signature', 'the algorithm differs inside and outside of what is signed');
  const [notBefore, notAfter] = members(validity, 'validity', derTag.sequence);
  return {
    der: whole.whole,
    signatureAlgorithm,
    ...(signatureAlgorithm === rsassaPssOid && { signatureDigest: pssDigest(algorithm) }),
    issuer: present(issuer, 'issuer').whole,
    subject: present(subject, 'subject').whole,
    notBefore: timeOf(notBefore, 'notBefore'),
    notAfter: timeOf(notAfter, 'notAfter'),
    publicKey: keyOf(key),
    extensions: extensionsOf(rest.find(({ tag }) => tag === 0xa3)),
  };
}

/** Attributes of a Name by OID, in order; values as text, with what does not print replaced. */
export function decodeName(name: Uint8Array): { readonly oid: string; readonly value: string }[] {
  return derChildren(decodeDer(name, format), format).flatMap((set) =>
    members(set, 'RelativeDistinguishedName', derTag.set).map((attribute) => {
      const [oid, value] = members(attribute, 'attribute', derTag.sequence);
      return {
        oid: decodeOid(present(oid, 'attribute type'), format),
        value: textOf(present(value, 'attribute value')),
      };
    }),
  );
}

/** The directory names of a SubjectAltName's value (GeneralName [4]), as Names. */
export function directoryNames(subjectAltName: Uint8Array): Uint8Array[] {
  return derChildren(decodeDer(subjectAltName, format), format)
    .filter(({ tag }) => tag === 0xa4)
    .map((general) => present(derChildren(general, format)[0], 'directoryName').whole);
}

/** BasicConstraints' value. */
export function decodeBasicConstraints(value: Uint8Array): { isCa: boolean; pathLength?: number } {
  const fields = members(decodeDer(value, format), 'basicConstraints', derTag.sequence);
  const isCa = fields.find(({ tag }) => tag === derTag.boolean)?.content[0] === 0xff;
  const length = fields.find(({ tag }) => tag === derTag.integer)?.content;
  if (length === undefined) return { isCa };
  if (length.length !== 1 || (length[0] ?? 0) > 127) throw refusal('pathLenConstraint', 'is not a small number');
  return { isCa, pathLength: length[0] ?? 0 };
}

/** ExtendedKeyUsage's value: the purposes' OIDs. */
export function decodeExtendedKeyUsage(value: Uint8Array): string[] {
  return members(decodeDer(value, format), 'extKeyUsage', derTag.sequence).map((oid) => decodeOid(oid, format));
}

/** Whether KeyUsage's value has this bit: 5 is keyCertSign (RFC 5280 §4.2.1.3). */
export function hasKeyUsage(value: Uint8Array, bit: number): boolean {
  const { tag, content } = decodeDer(value, format);
  if (tag !== derTag.bitString) throw refusal('keyUsage', 'is not a BIT STRING');
  return ((content[1 + (bit >> 3)] ?? 0) & (0x80 >> (bit & 7))) !== 0;
}

function keyOf(element: DerElement | undefined): CertificateKey {
  const [algorithm, bits] = members(element, 'subjectPublicKeyInfo', derTag.sequence);
  const [oid, parameters] = members(algorithm, 'key algorithm', derTag.sequence);
  const name = decodeOid(present(oid, 'key algorithm'), format);
  const key = present(bits, 'subjectPublicKey').content.subarray(1);
  if (name === keyOid.rsa || name === keyOid.rsaOaep) {
    const [modulus, exponent] = members(decodeDer(key, format), 'RSAPublicKey', derTag.sequence);
    return { type: 'rsa', modulus: natural(modulus, 'modulus'), exponent: natural(exponent, 'exponent') };
  }
  if (name !== keyOid.ec) return { type: 'other', algorithm: name };
  const curve = decodeOid(present(parameters, 'named curve'), format);
  return { type: 'ec', curve: curveByOid[curve] ?? curve, point: key };
}

function extensionsOf(element: DerElement | undefined): CertificateExtension[] {
  if (element === undefined) return [];
  const items = members(present(derChildren(element, format)[0], 'extensions'), 'extensions', derTag.sequence);
  if (items.length > maxExtensions)
    throw refusal('extensions', `${items.length} are over the limit of ${maxExtensions}`);
  const extensions = items.map((item) => {
    const [oid, ...rest] = members(item, 'extension', derTag.sequence);
    const value = rest.at(-1);
    if (value?.tag !== derTag.octetString) throw refusal('extension', 'has no OCTET STRING');
    const critical = rest.length > 1 && rest[0]?.tag === derTag.boolean && rest[0].content[0] !== 0;
    return { oid: decodeOid(present(oid, 'extension'), format), critical, value: value.content };
  });
  if (new Set(extensions.map(({ oid }) => oid)).size !== extensions.length)
    throw refusal('extensions', 'one is there twice');
  return extensions;
}

/**
 * RSASSA-PSS-params (RFC 4055 §3.1): SHA-1 is the default, and not written when it is meant. The mask's digest is left
 * alone: collisions of it forge nothing.
 */
function pssDigest(algorithm: DerElement | undefined): string {
  const [, parameters] = members(algorithm, 'signatureAlgorithm', derTag.sequence);
  if (parameters === undefined) return sha1Oid;
  const digest = members(parameters, 'RSASSA-PSS-params', derTag.sequence).find(({ tag }) => tag === 0xa0);
  return digest === undefined ? sha1Oid : algorithmOid(derChildren(digest, format)[0], 'hashAlgorithm');
}

function algorithmOid(element: DerElement | undefined, field: string): string {
  return decodeOid(present(members(element, field, derTag.sequence)[0], field), format);
}

/** RFC 5280 §4.1.2.5: with seconds, in UTC. */
function timeOf(element: DerElement | undefined, field: string): Date {
  const { tag, content } = present(element, field);
  const written = Buffer.from(content).toString('latin1');
  const pattern = tag === derTag.utcTime ? /^(\d\d)(\d{10})Z$/ : /^(\d{4})(\d{10})Z$/;
  const [, year = '', rest = ''] = pattern.exec(written) ?? [];
  const century = tag === derTag.utcTime ? (Number(year) < 50 ? '20' : '19') : '';
  const digits = rest.match(/\d\d/g) ?? [];
  const [month, day, hour, minute, second] = digits;
  const time = new Date(`${century}${year}-${month}-${day}T${hour}:${minute}:${second}Z`);
  if (Number.isNaN(time.getTime())) throw refusal(field, `is not a time: ${JSON.stringify(written.slice(0, 30))}`);
  return time;
}

/** An INTEGER's magnitude without leading zeros. */
function natural(element: DerElement | undefined, field: string): Uint8Array {
  const { tag, content } = present(element, field);
  if (tag !== derTag.integer || content.length === 0 || (content[0] ?? 0) > 0x7f)
    throw refusal(field, 'is not a positive INTEGER');
  const start = content.findIndex((octet) => octet !== 0);
  return content.subarray(start === -1 ? content.length - 1 : start);
}

function textOf({ tag, content }: DerElement): string {
  // BMPString is big-endian UTF-16; the other string types are at least ASCII.
  const text =
    tag === 0x1e
      ? Buffer.from(content)
          .subarray(0, content.length & ~1)
          .swap16()
          .toString('utf16le')
      : Buffer.from(content).toString('utf8');
  return text.replace(/\p{C}/gu, '�').slice(0, 200);
}

function members(element: DerElement | undefined, field: string, tag: number): DerElement[] {
  const found = present(element, field);
  if (found.tag !== tag) throw refusal(field, `tag 0x${found.tag.toString(16)}, expected 0x${tag.toString(16)}`);
  return derChildren(found, format);
}

function present(element: DerElement | undefined, field: string): DerElement {
  if (element === undefined) throw refusal(field, 'is missing');
  return element;
}

function refusal(field: string, reason: string): FormatError {
  return new FormatError(`cannot decode ${format}: ${field}: ${reason}`);
}
