/**
 * The node's membership: its certificate of the cluster, and the cluster's CA. Both are in one file, replaced as a
 * whole, so that a power cut leaves the old one or the new one.
 */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { mkdir, open, readFile, rename } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { object, text } from '../formats/json-shape.ts';
import { encodePem } from '../formats/x509.ts';
import type { RegisterNodeResponse } from '../rpc/gen/ashlar/cluster/v1/cluster_pb.ts';
import type { NodeKeys } from './config.ts';

const membershipFile = object({
  clusterId: text({ min: 1, max: 128 }),
  certificatePem: text({ max: 16 * 1024 }),
  authorityPem: text({ max: 16 * 1024 }),
});

export interface Membership {
  readonly clusterId: string;
  readonly certificatePem: string;
  readonly certificate: X509Certificate;
  readonly authorityPem: string;
  readonly authority: X509Certificate;
}

/** @param dataDirectory `/data` */
export function membershipPath(dataDirectory: string): string {
  return join(dataDirectory, 'tls/membership.json');
}

/** Undefined when there is none. Throws when there is one that is damaged or of another key: it can be had anew. */
export async function readMembership(path: string, keys: NodeKeys): Promise<Membership | undefined> {
  let content: string;
  try {
    content = await readFile(path, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
  return checkMembership(membershipFile(JSON.parse(content), ''), keys);
}

/** What a curator answered, checked. Throws when it does not fit the node's key. */
export function membershipOf(answer: RegisterNodeResponse, keys: NodeKeys): Membership {
  return checkMembership(
    {
      clusterId: answer.clusterId,
      certificatePem: encodePem('CERTIFICATE', answer.certificateDer),
      authorityPem: encodePem('CERTIFICATE', answer.caCertificateDer),
    },
    keys,
  );
}

export async function storeMembership(path: string, { clusterId, certificatePem, authorityPem }: Membership) {
  await mkdir(dirname(path), { recursive: true, mode: 0o700 });
  const temporary = `${path}.new`;
  await using file = await open(temporary, 'w', 0o600);
  await file.writeFile(`${JSON.stringify({ clusterId, certificatePem, authorityPem }, null, 2)}\n`);
  await file.sync();
  await rename(temporary, path);
  await using directory = await open(dirname(path), 'r');
  await directory.sync();
}

function checkMembership(
  file: { clusterId: string; certificatePem: string; authorityPem: string },
  keys: NodeKeys,
): Membership {
  const certificate = new X509Certificate(file.certificatePem);
  const authority = new X509Certificate(file.authorityPem);
  if (!certificate.checkPrivateKey(createPrivateKey(keys.privateKeyPem))) {
    throw new Error("cannot use the node's certificate: it is of another key");
  }
  if (!certificate.verify(authority.publicKey)) {
    throw new Error("cannot use the node's certificate: the authority that came with it did not sign it");
  }
  return { ...file, certificate, authority };
}
