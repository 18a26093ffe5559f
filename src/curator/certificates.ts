/** The cluster's certificate authority: what it issues, for whom, and for how long. */
import {
  createPrivateKey,
  createPublicKey,
  generateKeyPair,
  type KeyObject,
  randomBytes,
  X509Certificate,
} from 'node:crypto';
import { promisify } from 'node:util';
import { type CertificateOptions, createCertificate, decodePem } from '../formats/x509.ts';
import type { ClusterRecord } from '../rpc/gen/ashlar/curator/v1/records_pb.ts';
import { CURATOR_SERVER_NAME, nodeServerName, ORGANIZATION } from '../rpc/tls-names.ts';

const DAY_MS = 86_400_000;
export const NODE_CERTIFICATE_DAYS = 7;
export const OPERATOR_CERTIFICATE_DAYS = 30;
const CURATOR_CERTIFICATE_DAYS = 7;
const AUTHORITY_YEARS = 20;
/** The clocks of a cluster's machines may differ by this much. */
const CLOCK_SKEW_MS = 3_600_000;
/**
 * The authority is valid from here on, whatever the clock said when it was made: a first boot with a clock that runs
 * ahead would otherwise give a cluster that nobody can verify once the clock is right.
 */
const AUTHORITY_NOT_BEFORE = new Date('2025-01-01T00:00:00Z');

/** The authority, able to sign. */
export interface Authority {
  readonly certificate: X509Certificate;
  readonly key: KeyObject;
  readonly commonName: string;
}

export interface IssuedCertificate {
  readonly pem: string;
  readonly der: Uint8Array;
  readonly validFromDate: Date;
  readonly validToDate: Date;
}

/** A new authority for a new cluster. */
export async function createAuthority(
  clusterId: string,
  now: Date,
): Promise<{ certificateDer: Uint8Array; privateKeyDer: Uint8Array }> {
  const { publicKey, privateKey } = await promisify(generateKeyPair)('ec', { namedCurve: 'P-256' });
  const name = { organization: ORGANIZATION.authority, commonName: clusterId };
  const pem = createCertificate({
    subject: name,
    publicKey,
    issuer: { name, key: privateKey },
    serialNumber: randomSerial(),
    notBefore: AUTHORITY_NOT_BEFORE,
    notAfter: new Date(Date.UTC(Math.max(now.getUTCFullYear(), 2025) + AUTHORITY_YEARS, 0, 1)),
    isCa: true,
    usages: [],
  });
  return {
    certificateDer: decodePem('CERTIFICATE', pem),
    privateKeyDer: privateKey.export({ type: 'pkcs8', format: 'der' }),
  };
}

export function openAuthority(cluster: ClusterRecord): Authority {
  return {
    certificate: new X509Certificate(cluster.caCertificateDer),
    key: createPrivateKey({ key: Buffer.from(cluster.caPrivateKeyDer), format: 'der', type: 'pkcs8' }),
    commonName: cluster.clusterId,
  };
}

/** A member: it serves its API and is a client of the curator, hence both usages. */
export function issueNodeCertificate(
  authority: Authority,
  nodeId: string,
  publicKey: KeyObject,
  now: Date,
): IssuedCertificate {
  return issue(authority, now, NODE_CERTIFICATE_DAYS, {
    subject: { organization: ORGANIZATION.node, commonName: nodeId },
    publicKey,
    dnsNames: [nodeServerName(nodeId)],
    usages: ['serverAuth', 'clientAuth'],
  });
}

export function issueOperatorCertificate(
  authority: Authority,
  name: string,
  publicKey: KeyObject,
  now: Date,
): IssuedCertificate {
  return issue(authority, now, OPERATOR_CERTIFICATE_DAYS, {
    subject: { organization: ORGANIZATION.operator, commonName: name },
    publicKey,
    usages: ['clientAuth'],
  });
}

export function issueCuratorCertificate(authority: Authority, servingKeyPem: string, now: Date): IssuedCertificate {
  return issue(authority, now, CURATOR_CERTIFICATE_DAYS, {
    subject: { organization: ORGANIZATION.curator, commonName: 'curator' },
    publicKey: createPublicKey(servingKeyPem),
    dnsNames: [CURATOR_SERVER_NAME],
    usages: ['serverAuth'],
  });
}

function issue(
  authority: Authority,
  now: Date,
  days: number,
  options: Pick<CertificateOptions, 'subject' | 'publicKey' | 'dnsNames' | 'usages'>,
): IssuedCertificate {
  const notBefore = new Date(now.getTime() - CLOCK_SKEW_MS);
  const notAfter = new Date(now.getTime() + days * DAY_MS);
  const pem = createCertificate({
    ...options,
    issuer: {
      name: { organization: ORGANIZATION.authority, commonName: authority.commonName },
      key: authority.key,
    },
    serialNumber: randomSerial(),
    notBefore,
    notAfter,
    isCa: false,
  });
  return { pem, der: decodePem('CERTIFICATE', pem), validFromDate: notBefore, validToDate: notAfter };
}

function randomSerial(): Uint8Array {
  const serial = randomBytes(16);
  // Positive and of full length: the first bit 0, the second 1.
  serial.writeUInt8((serial.readUInt8(0) & 0x3f) | 0x40, 0);
  return serial;
}
