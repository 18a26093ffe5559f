/**
 * The owner of a test's cluster: the keys an operator would make with `ashlarctl cluster prepare`, and the node
 * parameters that name them. Made here too, because tests want parameters that the tool refuses to write.
 */
import { generateKeyPairSync, type KeyObject, randomBytes } from 'node:crypto';
import type { NodeParameters } from '../../src/formats/node-parameters.ts';
import { createCertificate } from '../../src/formats/x509.ts';

const DAY_MS = 86_400_000;

export interface Owner {
  readonly certificatePem: string;
  readonly key: KeyObject;
  readonly recoveryKey: KeyObject;
  readonly nodeParameters: NodeParameters;
}

export function createOwner(): Owner {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const recovery = generateKeyPairSync('rsa', { modulusLength: 3072 });
  const name = { organization: 'ashlar-owner', commonName: 'owner' };
  const certificatePem = createCertificate({
    subject: name,
    publicKey,
    issuer: { name, key: privateKey },
    serialNumber: Uint8Array.of(1, ...randomBytes(8)),
    notBefore: new Date(Date.now() - DAY_MS),
    notAfter: new Date(Date.now() + 365 * DAY_MS),
    isCa: false,
    usages: ['clientAuth'],
  });
  return {
    certificatePem,
    key: privateKey,
    recoveryKey: recovery.privateKey,
    nodeParameters: {
      version: 1,
      cluster: { bootstrap: { ownerCertificatePem: certificatePem } },
      recovery: { publicKeyPem: recovery.publicKey.export({ type: 'spki', format: 'pem' }) as string },
    },
  };
}
