/** Makes certificates as TPM makers do, and worse ones, for tests. Nothing that ships imports it. */
import { generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import { decodeCertificate, extensionOid } from '../formats/certificate.ts';
import {
  derBitString,
  derBoolean,
  derContext,
  derInteger,
  derNamedBits,
  derOctetString,
  derOid,
  derSequence,
  derSetOf,
  derTime,
  derUtf8String,
} from '../formats/der.ts';
import { verifyEkChain } from './ek-certificate.ts';

export interface Pair {
  readonly publicKey: KeyObject;
  readonly privateKey: KeyObject;
}
export const ec = (): Pair => generateKeyPairSync('ec', { namedCurve: 'P-256' });
export const rsa = (modulusLength: number): Pair => generateKeyPairSync('rsa', { modulusLength });
export const [rootKeys, middleKeys, ekKeys]: readonly [Pair, Pair, Pair] = [ec(), ec(), rsa(2048)];
export const time = new Date('2026-06-01T00:00:00Z');

export const sha256WithEcdsa = '1.2.840.10045.4.3.2';
export const name = (...attributes: [oid: string, value: string][]): Uint8Array =>
  derSequence(...attributes.map(([oid, value]) => derSetOf(derSequence(derOid(oid), derUtf8String(value)))));
export const called = (commonName: string): Uint8Array => name(['2.5.4.3', commonName]);
export const extension = (oid: string, critical: boolean, value: Uint8Array): Uint8Array =>
  derSequence(derOid(oid), ...(critical ? [derBoolean(true)] : []), derOctetString(value));

export const purposes = (...oids: string[]): Uint8Array =>
  extension(extensionOid.extendedKeyUsage, false, derSequence(...oids.map(derOid)));
export const authority = (pathLength?: number): Uint8Array[] => [
  extension(
    extensionOid.basicConstraints,
    true,
    derSequence(derBoolean(true), ...(pathLength === undefined ? [] : [derInteger(pathLength)])),
  ),
  extension(extensionOid.keyUsage, true, derNamedBits([5, 6])),
];
/** As the EK Credential Profile wants it: critical, because the subject is empty. */
export const tpmName = extension(
  extensionOid.subjectAltName,
  true,
  derSequence(
    derContext(4, name(['2.23.133.2.1', 'id:494E5443'], ['2.23.133.2.2', 'fTPM'], ['2.23.133.2.3', 'id:00020000'])),
  ),
);

export interface Wanted {
  readonly subject?: Uint8Array;
  readonly issuer?: Uint8Array;
  readonly issuerKey?: KeyObject;
  readonly spki?: Uint8Array;
  readonly extensions?: readonly Uint8Array[];
  readonly notAfter?: Date;
  /** OID or AlgorithmIdentifier. */
  readonly algorithm?: string | Uint8Array;
  readonly digest?: string;
  readonly padding?: number;
  /** As version 1, which has no extensions. */
  readonly isOld?: boolean;
}

/** The endorsement key's certificate, below `middle`, unless told otherwise. */
export function certificate(wanted: Wanted = {}): Uint8Array {
  const { algorithm: written = sha256WithEcdsa } = wanted;
  const algorithm = typeof written === 'string' ? derSequence(derOid(written)) : written;
  const tbs = derSequence(
    ...(wanted.isOld ? [] : [derContext(0, derInteger(2))]),
    derInteger(Uint8Array.of(7)),
    algorithm,
    wanted.issuer ?? called('middle'),
    derSequence(
      derTime(new Date('2020-01-01T00:00:00Z')),
      derTime(wanted.notAfter ?? new Date('9999-12-31T23:59:59Z')),
    ),
    wanted.subject ?? name(),
    wanted.spki ?? spkiOf(ekKeys),
    ...(wanted.isOld
      ? []
      : [derContext(3, derSequence(...(wanted.extensions ?? [tpmName, purposes('2.23.133.8.1')])))]),
  );
  const key = wanted.issuerKey ?? middleKeys.privateKey;
  const { padding } = wanted;
  const signature = sign(wanted.digest ?? 'sha256', tbs, padding === undefined ? key : { key, padding });
  return derSequence(tbs, algorithm, derBitString(signature));
}

export const spkiOf = (pair: Pair): Uint8Array => pair.publicKey.export({ format: 'der', type: 'spki' });
export const rootWith = (wanted: Wanted = {}): Uint8Array =>
  certificate({
    subject: called('root'),
    issuer: called('root'),
    issuerKey: rootKeys.privateKey,
    spki: spkiOf(rootKeys),
    extensions: authority(),
    ...wanted,
  });
export const middleWith = (wanted: Wanted = {}): Uint8Array =>
  certificate({
    subject: called('middle'),
    issuer: called('root'),
    issuerKey: rootKeys.privateKey,
    spki: spkiOf(middleKeys),
    extensions: authority(0),
    ...wanted,
  });

export const root = rootWith();
export const middle = middleWith();
export const chainOf = (leaf: Uint8Array, others: readonly Uint8Array[] = [middle], authorities = [root]): string[] =>
  verifyEkChain(decodeCertificate(leaf), { others, authorities, time });
