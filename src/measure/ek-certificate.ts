/**
 * Is this endorsement key one of a TPM that a maker vouches for? (TCG EK Credential Profile for TPM 2.0.)
 *
 * The maker's certificate lies in the TPM's NV memory; its issuers' certificates lie there too, or come with the evidence.
 * What such certificates are like: subject empty, all that is told of the TPM in a critical SubjectAltName with directory
 * names; usages of every kind; lifetimes until 9999; padding behind them.
 */
import { X509Certificate } from 'node:crypto';
import {
  type Certificate,
  type CertificateKey,
  decodeBasicConstraints,
  decodeCertificate,
  decodeExtendedKeyUsage,
  decodeName,
  directoryNames,
  extensionOid,
  hasKeyUsage,
  rsassaPssOid,
} from '../formats/certificate.ts';
import type { TpmPublicKey } from '../formats/tpm-attest.ts';

/** Certificates from the endorsement key's to the trusted one, both counted. */
const maxChain = 6;
/** Signatures that one judgement checks at most: issuers of the same name must not make it long. */
const maxVerifications = 64;
const keyCertSign = 5;
/** tcg-kp-EKCertificate. */
const ekPurpose = '2.23.133.8.1';
/** What a critical extension may be without us refusing: we act on it, or it does not narrow what we ask. */
const understood: ReadonlySet<string> = new Set(Object.values(extensionOid));

const strongSignatures = new Set([
  // sha256, sha384, sha512 WithRSAEncryption
  '1.2.840.113549.1.1.11',
  '1.2.840.113549.1.1.12',
  '1.2.840.113549.1.1.13',
  // ecdsa-with-SHA256, SHA384, SHA512
  '1.2.840.10045.4.3.2',
  '1.2.840.10045.4.3.3',
  '1.2.840.10045.4.3.4',
]);
/** sha256, sha384, sha512: for RSASSA-PSS, whose digest is a parameter. */
const strongDigests = new Set(['2.16.840.1.101.3.4.2.1', '2.16.840.1.101.3.4.2.2', '2.16.840.1.101.3.4.2.3']);

/** Keys of 112 bits of security at least, as NIST SP 800-57 has it, which is OpenSSL's level 2. */
const minRsaBits = 2048;
const strongCurves: ReadonlySet<string> = new Set(['P-256', 'P-384', 'P-521']);

/** What the maker says of the TPM (EK Credential Profile §3.1.2); each as in the certificate, or ''. */
export interface TpmDescription {
  readonly manufacturer: string;
  readonly model: string;
  readonly version: string;
}

/** Whether the certificate is about this key. */
export function certifies(certificate: Certificate, key: TpmPublicKey): boolean {
  const certified = certificate.publicKey;
  if (certified.type === 'rsa' && key.type === 'rsa')
    return (
      isSame(certified.modulus, withoutZeros(key.modulus)) &&
      isSame(certified.exponent, withoutZeros(Uint8Array.of(...bytesOf(key.exponent))))
    );
  if (certified.type === 'ec' && key.type === 'ecc')
    return certified.curve === key.curve && isSame(certified.point, Buffer.concat([Uint8Array.of(4), key.x, key.y]));
  return false;
}

/**
 * The first certificate about this key.
 *
 * @throws Error that says what is there instead.
 */
export function findEkCertificate(certificates: readonly Uint8Array[], key: TpmPublicKey): Certificate {
  if (certificates.length === 0) throw new Error('the TPM brings no certificate for its endorsement key');
  const found = certificates.map(decodeCertificate).find((certificate) => certifies(certificate, key));
  if (found === undefined)
    throw new Error(`none of the ${certificates.length} certificates is about this ${key.type} endorsement key`);
  return found;
}

export function describeTpm(certificate: Certificate): TpmDescription {
  const altName = certificate.extensions.find(({ oid }) => oid === extensionOid.subjectAltName);
  const attributes = [
    ...(altName === undefined ? [] : directoryNames(altName.value).flatMap(decodeName)),
    ...decodeName(certificate.subject),
  ];
  const value = (oid: string) => attributes.find((attribute) => attribute.oid === oid)?.value ?? '';
  return { manufacturer: value('2.23.133.2.1'), model: value('2.23.133.2.2'), version: value('2.23.133.2.3') };
}

/** `CN=…, O=…`, or the only thing that a nameless one is known by. */
export function nameOf(name: Uint8Array): string {
  const short: Record<string, string> = { '2.5.4.3': 'CN', '2.5.4.10': 'O', '2.5.4.11': 'OU', '2.5.4.6': 'C' };
  const parts = decodeName(name).map(({ oid, value }) => `${short[oid] ?? oid}=${value}`);
  return parts.length === 0 ? '(no name)' : parts.join(', ');
}

/**
 * Follows issuers from the endorsement key's certificate to one of the authorities. An authority is judged as any other
 * issuer is: that somebody trusts it does not make it last longer, or a server's certificate an authority.
 *
 * @param others certificates that may be on the way, from anywhere.
 * @param authorities DER of the certificates that are trusted, whoever signed them; those that are not needed may be unfit.
 * @returns names from the first issuer to the authority.
 * @throws Error that names the certificate and what is wrong with it, or where the chain ends.
 */
export function verifyEkChain(
  leaf: Certificate,
  options: { others: readonly Uint8Array[]; authorities: readonly Uint8Array[]; time: Date },
): string[] {
  judgeLeaf(leaf, options.time);
  const authorities = options.authorities.map(decodeCertificate);
  const others = options.others.map(decodeCertificate);
  const names: string[] = [];
  let left = maxVerifications;
  let unfit: Error | undefined;
  const issued = (child: Certificate) => (issuer: Certificate) => {
    if (!isSame(issuer.subject, child.issuer)) return false;
    left -= 1;
    if (left < 0) throw new Error(`more than ${maxVerifications} certificates claim to be issuers`);
    return new X509Certificate(child.der).verify(new X509Certificate(issuer.der).publicKey);
  };
  for (let current = leaf, below = 0; names.length < maxChain - 1; below += 1) {
    judgeSignature(current);
    for (const authority of authorities) {
      if (!issued(current)(authority)) continue;
      try {
        judgeIssuer(authority, below, options.time);
        return [...names, nameOf(authority.subject)];
      } catch (error) {
        // Makers renew certificates of a key: another one of the file may be fit.
        unfit ??= error instanceof Error ? error : new Error(String(error));
      }
    }
    const next = others.find(issued(current));
    if (next === undefined || isSame(next.der, current.der))
      throw (
        unfit ?? new Error(`its issuer, ${nameOf(current.issuer)}, is not among the trusted authorities, nor below one`)
      );
    judgeIssuer(next, below, options.time);
    names.push(nameOf(next.subject));
    current = next;
  }
  throw new Error(`the chain has more than ${maxChain} certificates`);
}

function judgeSignature({ subject, signatureAlgorithm, signatureDigest }: Certificate): void {
  const isStrong =
    signatureAlgorithm === rsassaPssOid
      ? strongDigests.has(signatureDigest ?? '')
      : strongSignatures.has(signatureAlgorithm);
  const written = [signatureAlgorithm, ...(signatureDigest === undefined ? [] : [signatureDigest])].join(' with ');
  if (!isStrong) throw new Error(`${nameOf(subject)} is signed with a weak algorithm (${written})`);
}

function judgeLeaf(leaf: Certificate, time: Date): void {
  judgeAny(leaf, 'the endorsement key’s certificate', time);
  const constraints = valueOf(leaf, extensionOid.basicConstraints);
  if (constraints !== undefined && decodeBasicConstraints(constraints).isCa)
    throw new Error('the endorsement key’s certificate is one of an authority');
  const purposes = valueOf(leaf, extensionOid.extendedKeyUsage);
  // Older certificates say no purpose at all; one that says others is for something else.
  if (purposes !== undefined && !decodeExtendedKeyUsage(purposes).includes(ekPurpose))
    throw new Error(`the certificate is not for an endorsement key: ${decodeExtendedKeyUsage(purposes).join(', ')}`);
}

function judgeIssuer(issuer: Certificate, below: number, time: Date): void {
  const name = nameOf(issuer.subject);
  judgeAny(issuer, name, time);
  const constraints = valueOf(issuer, extensionOid.basicConstraints);
  const { isCa, pathLength } = constraints === undefined ? { isCa: false } : decodeBasicConstraints(constraints);
  if (!isCa) throw new Error(`${name} is not an authority, but issued a certificate`);
  if (pathLength !== undefined && below > pathLength)
    throw new Error(`${name} may have ${pathLength} authorities below it, and has ${below}`);
  const usage = valueOf(issuer, extensionOid.keyUsage);
  if (usage !== undefined && !hasKeyUsage(usage, keyCertSign)) throw new Error(`${name} may not sign certificates`);
}

function judgeAny(certificate: Certificate, name: string, time: Date): void {
  const unknown = certificate.extensions.find(({ oid, critical }) => critical && !understood.has(oid));
  if (unknown !== undefined) throw new Error(`${name} has a critical extension that is not known here: ${unknown.oid}`);
  const { notBefore, notAfter } = certificate;
  if (time < notBefore || time > notAfter)
    throw new Error(
      `${name} is valid from ${notBefore.toISOString()} until ${notAfter.toISOString()}, not at ${time.toISOString()}`,
    );
  const weakness = weaknessOf(certificate.publicKey);
  if (weakness !== undefined) throw new Error(`the key of ${name} is too weak: ${weakness}`);
}

function weaknessOf(key: CertificateKey): string | undefined {
  if (key.type === 'other') return `an algorithm that is not known here (${key.algorithm})`;
  if (key.type === 'ec')
    return strongCurves.has(key.curve) ? undefined : `curve ${key.curve}, at least P-256 is expected`;
  const bits = 8 * key.modulus.length - (Math.clz32(key.modulus[0] ?? 0) - 24);
  return bits < minRsaBits ? `RSA of ${bits} bits, at least ${minRsaBits} are expected` : undefined;
}

function valueOf(certificate: Certificate, oid: string): Uint8Array | undefined {
  return certificate.extensions.find((extension) => extension.oid === oid)?.value;
}

function isSame(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

function bytesOf(value: number): number[] {
  return [24, 16, 8, 0].map((shift) => (value >>> shift) & 0xff);
}

function withoutZeros(value: Uint8Array): Uint8Array {
  const start = value.findIndex((octet) => octet !== 0);
  return value.subarray(start === -1 ? value.length - 1 : start);
}
