/**
 * The node's own keys and certificates, made at first boot and the same ever after.
 *
 *     /data/node/pki/            root's own, the master of everything here
 *        node.{key,crt}          → agent's /config/node.{key,crt}
 *        curator.{key,crt}       → curator's /config/curator.key                (control role)
 *        etcd-ca.{key,crt}         signs the two below; its key goes nowhere
 *        etcd-server.{key,crt}   → etcd's /config/server.{key,crt}              with ca.crt
 *        etcd-client.{key,crt}   → curator's /config/etcd-client.{key,crt}      with etcd-ca.crt
 *
 * Services get copies in their /config, which is in RAM, root's, and new at each boot. Nothing here reads or writes where
 * a service may write: one that was taken over could otherwise leave something there that ends every later boot. A
 * power cut at any moment leaves either a key that is kept or none, in which case the next boot makes it.
 */
import {
  createPrivateKey,
  createPublicKey,
  generateKeyPair,
  type KeyObject,
  randomBytes,
  X509Certificate,
} from 'node:crypto';
import { promisify } from 'node:util';
import { type CertificateOptions, createCertificate, spkiFingerprint } from '../formats/x509.ts';
import { CURATOR_SERVER_NAME, nodeIdOf, nodeServerName, ORGANIZATION } from '../rpc/tls-names.ts';
import { ensureOwnedDirectory, readOwnedFile, writeOwnedFile } from './owned-files.ts';

const ROOT = 0;
const ETCD_ORGANIZATION = 'ashlar-etcd';
/** The node's own certificate counts only until the cluster issues one; etcd's are for loopback. */
const VALID_YEARS = 20;

export interface NodeIdentity {
  /** `node-` and 16 hex digits. */
  readonly nodeId: string;
  readonly nodeCertificatePem: string;
  /** SubjectPublicKeyInfo (DER) of the node's key, with which the agent serves. */
  readonly nodeSpki: Uint8Array;
  /** Of the curator's serving key, as an operator compares it; null without the control role. */
  readonly curatorFingerprint: string | null;
  /** What goes into the /config of services, private keys among it: file content by service and file name. */
  readonly serviceFiles: Readonly<Record<string, Readonly<Record<string, string>>>>;
}

export interface IdentityOptions {
  /** `/data` */
  readonly dataDirectory: string;
  readonly roles: readonly string[];
  /** No certificate is valid before: the image's build time, which the clock never precedes. */
  readonly notBefore: Date;
  /** Owner of what is made. @default 0 */
  readonly uid?: number;
}

/** Reads the identity, making what is missing. Throws when what is there cannot be read: keys are never replaced. */
export async function ensureIdentity(options: IdentityOptions): Promise<NodeIdentity> {
  const { dataDirectory, roles, notBefore, uid = ROOT } = options;
  const isControl = roles.includes('control');
  const pki = `${dataDirectory}/node/pki`;
  await ensureOwnedDirectory(`${dataDirectory}/node`, uid);
  await ensureOwnedDirectory(pki, uid);
  const make = (name: string, certificate: (key: KeyObject) => CertificateDraft) =>
    ensurePair({ directory: pki, name, uid, notBefore, certificate });

  // In parallel: what takes time is the disk, which writes many small files as fast as one.
  const [node, control] = await Promise.all([
    make('node', (key) => selfSigned(ORGANIZATION.node, nodeIdOf(key), nodeServerName(nodeIdOf(key)))),
    isControl ? ensureControlKeys(make) : null,
  ]);
  return {
    nodeId: nodeIdOf(node.publicKey),
    nodeCertificatePem: node.certificatePem,
    nodeSpki: node.publicKey.export({ type: 'spki', format: 'der' }),
    curatorFingerprint: control === null ? null : spkiFingerprint(control.curator.publicKey),
    serviceFiles: serviceFiles(node, control),
  };
}

type MakePair = (name: string, certificate: (key: KeyObject) => CertificateDraft) => Promise<KeyAndCertificate>;
type ControlKeys = Readonly<Record<'curator' | 'ca' | 'server' | 'client', KeyAndCertificate>>;

/** The curator's serving key, and etcd's own small PKI. */
async function ensureControlKeys(make: MakePair): Promise<ControlKeys> {
  const [curator, ca] = await Promise.all([
    make('curator', () => selfSigned(ORGANIZATION.curator, 'curator', CURATOR_SERVER_NAME)),
    make('etcd-ca', () => ({ ...selfSigned(ETCD_ORGANIZATION, 'etcd CA', null), isCa: true, usages: [] })),
  ]);
  const issuer = { name: { organization: ETCD_ORGANIZATION, commonName: 'etcd CA' }, key: ca.privateKey };
  const [server, client] = await Promise.all([
    make('etcd-server', () => ({
      subject: { organization: ETCD_ORGANIZATION, commonName: 'etcd' },
      issuer,
      ipAddresses: ['127.0.0.1'],
      dnsNames: ['localhost'],
      // etcd dials its own peer port and its own gateway with the serving certificate.
      usages: ['serverAuth', 'clientAuth'],
    })),
    make('etcd-client', () => ({
      subject: { organization: ETCD_ORGANIZATION, commonName: 'curator' },
      issuer,
      usages: ['clientAuth'],
    })),
  ]);
  return { curator, ca, server, client };
}

function serviceFiles(node: KeyAndCertificate, control: ControlKeys | null): NodeIdentity['serviceFiles'] {
  const agent = { 'node.key': node.keyPem, 'node.crt': node.certificatePem };
  if (control === null) return { agent };
  const { curator, ca, server, client } = control;
  return {
    agent,
    curator: {
      'curator.key': curator.keyPem,
      'etcd-ca.crt': ca.certificatePem,
      'etcd-client.key': client.keyPem,
      'etcd-client.crt': client.certificatePem,
    },
    etcd: { 'ca.crt': ca.certificatePem, 'server.key': server.keyPem, 'server.crt': server.certificatePem },
  };
}

interface CertificateDraft {
  readonly subject: CertificateOptions['subject'];
  /** Null: signed by itself. */
  readonly issuer: CertificateOptions['issuer'] | null;
  readonly dnsNames?: readonly string[];
  readonly ipAddresses?: readonly string[];
  readonly usages: CertificateOptions['usages'];
  readonly isCa?: boolean;
}

interface KeyAndCertificate {
  readonly keyPem: string;
  readonly certificatePem: string;
  readonly privateKey: KeyObject;
  readonly publicKey: KeyObject;
}

function selfSigned(organization: string, commonName: string, serverName: string | null): CertificateDraft {
  return {
    subject: { organization, commonName },
    issuer: null,
    ...(serverName === null ? {} : { dnsNames: [serverName] }),
    usages: ['serverAuth', 'clientAuth'],
  };
}

async function ensurePair({
  directory,
  name,
  uid,
  notBefore,
  certificate,
}: {
  directory: string;
  name: string;
  uid: number;
  notBefore: Date;
  certificate: (publicKey: KeyObject) => CertificateDraft;
}): Promise<KeyAndCertificate> {
  const keyPath = `${directory}/${name}.key`;
  const certificatePath = `${directory}/${name}.crt`;
  let keyPem = await readOwnedFile(keyPath);
  if (keyPem === null) {
    const { privateKey } = await promisify(generateKeyPair)('ec', { namedCurve: 'P-256' });
    keyPem = privateKey.export({ type: 'pkcs8', format: 'pem' }).toString();
    await writeOwnedFile(keyPath, keyPem, uid);
  }
  const privateKey = readKey(keyPem, keyPath);
  const publicKey = createPublicKey(privateKey);
  let certificatePem = await readOwnedFile(certificatePath);
  if (certificatePem === null || !isCertificateOf(certificatePem, privateKey)) {
    const draft = certificate(publicKey);
    certificatePem = createCertificate({
      subject: draft.subject,
      publicKey,
      issuer: draft.issuer ?? { name: draft.subject, key: privateKey },
      serialNumber: randomSerial(),
      notBefore,
      notAfter: new Date(Date.UTC(notBefore.getUTCFullYear() + VALID_YEARS, 0, 1)),
      isCa: draft.isCa ?? false,
      usages: draft.usages,
      ...(draft.dnsNames === undefined ? {} : { dnsNames: draft.dnsNames }),
      ...(draft.ipAddresses === undefined ? {} : { ipAddresses: draft.ipAddresses }),
    });
    await writeOwnedFile(certificatePath, certificatePem, uid);
  }
  return { keyPem, certificatePem, privateKey, publicKey };
}

function readKey(pem: string, path: string): KeyObject {
  try {
    return createPrivateKey(pem);
  } catch (error) {
    // The message of the parser could quote the key.
    throw new Error(
      `cannot read the key ${path}: it is damaged (${pem.length} characters); restore the data partition`,
      {
        cause: error instanceof Error ? new Error(error.name) : undefined,
      },
    );
  }
}

function isCertificateOf(pem: string, privateKey: KeyObject): boolean {
  try {
    return new X509Certificate(pem).checkPrivateKey(privateKey);
  } catch {
    return false;
  }
}

/** 16 random bytes, positive. */
function randomSerial(): Uint8Array {
  const serial = randomBytes(16);
  serial.writeUInt8((serial.readUInt8(0) & 0x7f) | 0x40, 0);
  return serial;
}
