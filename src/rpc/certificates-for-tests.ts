/** Real keys and certificates for tests of anything that speaks TLS. Only tests import this. */
import {
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  X509Certificate,
} from 'node:crypto';
import { type CertificateName, createCertificate } from '../formats/x509.ts';
import { nodeIdOf, nodeServerName, ORGANIZATION } from './tls-names.ts';

const DAY_MS = 86_400_000;

export interface TestIdentity {
  readonly name: CertificateName;
  readonly certificatePem: string;
  readonly privateKeyPem: string;
  readonly certificate: X509Certificate;
  readonly privateKey: KeyObject;
}

export interface TestCertificateOptions {
  readonly name: CertificateName;
  /** @default itself */
  readonly issuer?: TestIdentity;
  readonly isCa?: boolean;
  readonly dnsNames?: readonly string[];
  /** Days from now; negative: in the past. @default -1 */
  readonly fromDays?: number;
  /** @default 1 */
  readonly toDays?: number;
  readonly privateKeyPem?: string;
}

export function testIdentity(options: TestCertificateOptions): TestIdentity {
  const pair = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const privateKey = options.privateKeyPem === undefined ? pair.privateKey : createPrivateKey(options.privateKeyPem);
  const publicKey = options.privateKeyPem === undefined ? pair.publicKey : createPublicKey(privateKey);
  const certificatePem = createCertificate({
    subject: options.name,
    publicKey,
    issuer: { name: options.issuer?.name ?? options.name, key: options.issuer?.privateKey ?? privateKey },
    serialNumber: randomBytes(16),
    notBefore: new Date(Date.now() + (options.fromDays ?? -1) * DAY_MS),
    notAfter: new Date(Date.now() + (options.toDays ?? 1) * DAY_MS),
    isCa: options.isCa ?? false,
    ...(options.dnsNames && { dnsNames: options.dnsNames }),
    usages: options.isCa ? [] : ['serverAuth', 'clientAuth'],
  });
  return {
    name: options.name,
    certificatePem,
    privateKeyPem: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    certificate: new X509Certificate(certificatePem),
    privateKey,
  };
}

export function testAuthority(commonName = 'test CA'): TestIdentity {
  return testIdentity({ name: { organization: ORGANIZATION.authority, commonName }, isCa: true, toDays: 10 });
}

export function testOperator(issuer: TestIdentity, options: Partial<TestCertificateOptions> = {}): TestIdentity {
  return testIdentity({ name: { organization: ORGANIZATION.operator, commonName: 'ada' }, issuer, ...options });
}

/** A node's identity; without an issuer the self-signed one of its first boot. */
export function testNode(issuer?: TestIdentity): TestIdentity {
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const nodeId = nodeIdOf(publicKey);
  return testIdentity({
    name: { organization: ORGANIZATION.node, commonName: nodeId },
    dnsNames: [nodeServerName(nodeId)],
    privateKeyPem: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    ...(issuer && { issuer }),
  });
}
