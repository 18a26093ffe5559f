/**
 * X.509 v3 certificates (RFC 5280): written by a small DER writer over node:crypto's signatures, because Node can
 * parse certificates but not issue them. Signatures: RSA PKCS #1 v1.5 with SHA-256 and ECDSA P-256 with SHA-256.
 */
import { createHash, createPublicKey, type KeyObject, sign } from 'node:crypto';
import { isIP } from 'node:net';
import {
  decodeDer,
  derBitString,
  derBoolean,
  derChildren,
  derContext,
  derContextPrimitive,
  derInteger,
  derNamedBits,
  derNull,
  derOctetString,
  derOid,
  derSequence,
  derSetOf,
  derTime,
  derUtf8String,
} from './der.ts';

export interface CertificateName {
  organization?: string;
  commonName: string;
}

export type CertificateUsage = 'serverAuth' | 'clientAuth' | 'codeSigning';

export interface CertificateOptions {
  subject: CertificateName;
  /** The key that is certified: RSA or EC. */
  publicKey: KeyObject;
  /** Who signs: for a self-signed certificate the subject's own name and private key. */
  issuer: { name: CertificateName; key: KeyObject };
  /** 1 to 20 bytes, big-endian, positive. Unique for each issuer. */
  serialNumber: Uint8Array;
  notBefore: Date;
  notAfter: Date;
  isCa: boolean;
  dnsNames?: readonly string[];
  /** Textual IPv4 or IPv6 addresses. */
  ipAddresses?: readonly string[];
  usages: readonly CertificateUsage[];
}

const oid = {
  organization: '2.5.4.10',
  commonName: '2.5.4.3',
  subjectKeyId: '2.5.29.14',
  keyUsage: '2.5.29.15',
  subjectAltName: '2.5.29.17',
  basicConstraints: '2.5.29.19',
  authorityKeyId: '2.5.29.35',
  extendedKeyUsage: '2.5.29.37',
  rsaSha256: '1.2.840.113549.1.1.11',
  ecdsaSha256: '1.2.840.10045.4.3.2',
} as const;

const usageOid: Record<CertificateUsage, string> = {
  serverAuth: '1.3.6.1.5.5.7.3.1',
  clientAuth: '1.3.6.1.5.5.7.3.2',
  codeSigning: '1.3.6.1.5.5.7.3.3',
};

/** Bits of KeyUsage (RFC 5280 §4.2.1.3). */
const keyUsageBit = { digitalSignature: 0, keyEncipherment: 2, keyCertSign: 5, cRLSign: 6 } as const;

/**
 * Issues a certificate and returns it as PEM. The same input gives the same bytes when the issuer's key is RSA; ECDSA
 * signatures are random.
 *
 * @throws RangeError when an option cannot be put into a certificate.
 */
export function createCertificate(options: CertificateOptions): string {
  const { serialNumber, issuer, publicKey } = options;
  if (serialNumber.length < 1 || serialNumber.length > 20 || serialNumber.every((octet) => octet === 0)) {
    throw new RangeError(
      `cannot create certificate: serial number of ${serialNumber.length} bytes; give 1 to 20, not all zero`,
    );
  }
  if (!(options.notAfter > options.notBefore)) {
    throw new RangeError(
      `cannot create certificate: it would end (${options.notAfter.toISOString()}) before it begins (${options.notBefore.toISOString()})`,
    );
  }
  if (issuer.key.type !== 'private')
    throw new TypeError(`cannot create certificate: issuer key is ${issuer.key.type}, not private`);
  const algorithm = signatureAlgorithm(issuer.key);
  const spki = spkiDer(publicKey);
  const toBeSigned = derSequence(
    derContext(0, derInteger(2)),
    derInteger(serialNumber),
    algorithm,
    encodeName(issuer.name),
    derSequence(derTime(options.notBefore), derTime(options.notAfter)),
    encodeName(options.subject),
    spki,
    derContext(3, derSequence(...extensions(options, spki))),
  );
  const signature = sign('sha256', toBeSigned, issuer.key);
  return encodePem('CERTIFICATE', derSequence(toBeSigned, algorithm, derBitString(signature)));
}

/** How the console and ashlarctl name a key: `SHA256:` and base64url (no padding) of the SHA-256 of its SPKI DER. */
export function spkiFingerprint(publicKey: KeyObject): string {
  return `SHA256:${createHash('sha256').update(spkiDer(publicKey)).digest('base64url')}`;
}

export function encodePem(label: string, der: Uint8Array): string {
  const lines =
    Buffer.from(der)
      .toString('base64')
      .match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`;
}

/** The first block with this label. */
export function decodePem(label: string, pem: string): Uint8Array {
  const match = new RegExp(`-----BEGIN ${label}-----([A-Za-z0-9+/=\\s]+)-----END ${label}-----`).exec(pem);
  if (match?.[1] === undefined) throw new RangeError(`cannot decode PEM: there is no ${label} block in it`);
  return Buffer.from(match[1].replace(/\s/g, ''), 'base64');
}

export interface IssuerAndSerial {
  /** DER of the issuer's Name, exactly as in the certificate. */
  readonly issuer: Uint8Array;
  /** DER of the serial number, with tag and length. */
  readonly serialNumber: Uint8Array;
}

/** What PKCS #7 uses to point at a signer's certificate. */
export function issuerAndSerial(certificateDer: Uint8Array): IssuerAndSerial {
  const format = 'X.509 certificate';
  const certificate = decodeDer(certificateDer, format);
  const tbs = derChildren(certificate, format)[0];
  const fields = tbs === undefined ? [] : derChildren(tbs, format);
  // version [0] is optional in the schema, and absent means v1
  const start = fields[0]?.tag === 0xa0 ? 1 : 0;
  const serialNumber = fields[start];
  const issuer = fields[start + 2];
  if (serialNumber?.tag !== 0x02 || issuer?.tag !== 0x30) {
    throw new RangeError('cannot decode X.509 certificate: no serial number or issuer in it');
  }
  return { issuer: issuer.whole, serialNumber: serialNumber.whole };
}

function spkiDer(key: KeyObject): Uint8Array {
  const publicKey = key.type === 'private' ? createPublicKey(key) : key;
  return publicKey.export({ type: 'spki', format: 'der' });
}

function signatureAlgorithm(key: KeyObject): Uint8Array {
  if (key.asymmetricKeyType === 'rsa') return derSequence(derOid(oid.rsaSha256), derNull());
  if (key.asymmetricKeyType === 'ec' && key.asymmetricKeyDetails?.namedCurve === 'prime256v1') {
    return derSequence(derOid(oid.ecdsaSha256));
  }
  throw new RangeError(`cannot create certificate: issuer key is ${key.asymmetricKeyType}; use RSA or EC P-256`);
}

function encodeName(name: CertificateName): Uint8Array {
  if (name.commonName === '') throw new RangeError('cannot create certificate: the common name is empty');
  const attribute = (type: string, value: string) => derSetOf(derSequence(derOid(type), derUtf8String(value)));
  return derSequence(
    ...(name.organization === undefined ? [] : [attribute(oid.organization, name.organization)]),
    attribute(oid.commonName, name.commonName),
  );
}

function extensions(options: CertificateOptions, spki: Uint8Array): Uint8Array[] {
  const extension = (id: string, isCritical: boolean, value: Uint8Array) =>
    derSequence(derOid(id), ...(isCritical ? [derBoolean(true)] : []), derOctetString(value));
  const keyUsage: number[] = [];
  if (options.isCa) keyUsage.push(keyUsageBit.keyCertSign, keyUsageBit.cRLSign);
  if (!options.isCa || options.usages.length > 0) keyUsage.push(keyUsageBit.digitalSignature);
  if (options.publicKey.asymmetricKeyType === 'rsa' && options.usages.includes('serverAuth')) {
    keyUsage.push(keyUsageBit.keyEncipherment);
  }
  const names = [
    ...(options.dnsNames ?? []).map((name) => derContextPrimitive(2, Buffer.from(asciiName(name), 'ascii'))),
    ...(options.ipAddresses ?? []).map((address) => derContextPrimitive(7, ipAddressBytes(address))),
  ];
  const result = [
    extension(oid.basicConstraints, true, derSequence(...(options.isCa ? [derBoolean(true)] : []))),
    extension(oid.keyUsage, true, derNamedBits(keyUsage)),
  ];
  if (options.usages.length > 0) {
    const usages = derSequence(...options.usages.map((usage) => derOid(usageOid[usage])));
    result.push(extension(oid.extendedKeyUsage, false, usages));
  }
  result.push(extension(oid.subjectKeyId, false, derOctetString(keyIdentifier(spki))));
  const authority = keyIdentifier(spkiDer(options.issuer.key));
  result.push(extension(oid.authorityKeyId, false, derSequence(derContextPrimitive(0, authority))));
  if (names.length > 0) result.push(extension(oid.subjectAltName, false, derSequence(...names)));
  return result;
}

/** RFC 5280 §4.2.1.2 method 1, as OpenSSL makes it. SHA-1 here is a name, not a protection. */
function keyIdentifier(spki: Uint8Array): Uint8Array {
  const bits = derChildren(decodeDer(spki, 'SPKI'), 'SPKI')[1];
  if (bits === undefined) throw new RangeError('cannot decode SPKI: it holds no key');
  return createHash('sha1').update(bits.content.subarray(1)).digest();
}

function asciiName(name: string): string {
  if (!/^[\x21-\x7e]{1,253}$/.test(name))
    throw new RangeError(`cannot create certificate: DNS name ${JSON.stringify(name)} is not ASCII`);
  return name;
}

function ipAddressBytes(address: string): Uint8Array {
  const family = isIP(address);
  if (family === 4) return Uint8Array.from(address.split('.'), Number);
  if (family !== 6 || address.includes('%')) {
    throw new RangeError(`cannot create certificate: ${JSON.stringify(address)} is not an IP address`);
  }
  // new URL() normalises every spelling, embedded IPv4 included, to groups with at most one "::"
  const normal = new URL(`http://[${address}]/`).hostname.slice(1, -1);
  const [head = '', tail] = normal.split('::');
  const groups = (text: string) => (text === '' ? [] : text.split(':').map((group) => Number.parseInt(group, 16)));
  const before = groups(head);
  const after = tail === undefined ? [] : groups(tail);
  const all = [...before, ...new Array<number>(8 - before.length - after.length).fill(0), ...after];
  return Uint8Array.from(all.flatMap((group) => [group >> 8, group & 0xff]));
}

/** Wraps PKCS #1 key bytes; kept here because the policy key's fingerprint is over PKCS #1, not SPKI. */
export function rsaPublicKeyDer(key: KeyObject): Uint8Array {
  const publicKey = key.type === 'private' ? createPublicKey(key) : key;
  return publicKey.export({ type: 'pkcs1', format: 'der' });
}
