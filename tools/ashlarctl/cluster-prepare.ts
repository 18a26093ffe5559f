/** Prepare: what the owner of a new cluster needs before its first node boots. */
import { generateKeyPair, randomBytes } from 'node:crypto';
import { chmod, mkdir, mkdtemp, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { encodeNodeParameters, type NodeParameters } from '../../src/formats/node-parameters.ts';
import { createCertificate, spkiFingerprint } from '../../src/formats/x509.ts';

const OWNER_YEARS = 20;
/** As the authority of a cluster: a node whose clock is behind must still know its owner. */
const OWNER_NOT_BEFORE = new Date('2025-01-01T00:00:00Z');

export const OWNER_KEY_FILE = 'owner.key';
export const OWNER_CERTIFICATE_FILE = 'owner.crt';
export const RECOVERY_KEY_FILE = 'recovery.key';
export const RECOVERY_PUBLIC_KEY_FILE = 'recovery.pub';
export const NODE_PARAMETERS_FILE = 'node-parameters.json';

export interface PreparedCluster {
  readonly directory: string;
  readonly nodeParameters: string;
  readonly ownerFingerprint: string;
  readonly recoveryFingerprint: string;
}

export interface PrepareOptions {
  readonly timeServers: readonly string[];
  /** False: the first node may be a machine without a TPM. */
  readonly isTpmRequired: boolean;
}

/** Makes the directory with all files, or nothing. Refuses one that has anything in it. */
export async function prepareCluster(directory: string, options: PrepareOptions): Promise<PreparedCluster> {
  const target = resolve(directory);
  const present = await readdir(target).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return [];
    throw new Error(`cannot prepare ${directory}: ${error.message}`, { cause: error });
  });
  if (present.length > 0) {
    throw new Error(`cannot prepare ${directory}: it has ${present[0]} in it already; name a directory that is new`);
  }
  const owner = await promisify(generateKeyPair)('ec', { namedCurve: 'P-256' });
  const recovery = await promisify(generateKeyPair)('rsa', { modulusLength: 3072 });
  const name = { organization: 'ashlar-owner', commonName: 'owner' };
  const ownerCertificatePem = createCertificate({
    subject: name,
    publicKey: owner.publicKey,
    issuer: { name, key: owner.privateKey },
    serialNumber: Buffer.concat([Buffer.of(0x40), randomBytes(15)]),
    notBefore: OWNER_NOT_BEFORE,
    notAfter: new Date(Date.UTC(new Date().getUTCFullYear() + OWNER_YEARS, 0, 1)),
    isCa: false,
    usages: ['clientAuth'],
  });
  const recoveryPublicPem = recovery.publicKey.export({ type: 'spki', format: 'pem' }).toString();
  const parameters: NodeParameters = {
    version: 1,
    cluster: { bootstrap: { ownerCertificatePem } },
    recovery: { publicKeyPem: recoveryPublicPem },
    ...(options.timeServers.length > 0 && { time: { servers: [...options.timeServers] } }),
    ...(!options.isTpmRequired && { tpm: { required: false } }),
  };
  const files = {
    [OWNER_KEY_FILE]: { mode: 0o600, content: owner.privateKey.export({ type: 'pkcs8', format: 'pem' }) },
    [OWNER_CERTIFICATE_FILE]: { mode: 0o644, content: ownerCertificatePem },
    [RECOVERY_KEY_FILE]: { mode: 0o600, content: recovery.privateKey.export({ type: 'pkcs8', format: 'pem' }) },
    [RECOVERY_PUBLIC_KEY_FILE]: { mode: 0o644, content: recoveryPublicPem },
    [NODE_PARAMETERS_FILE]: { mode: 0o644, content: encodeNodeParameters(parameters) },
  };
  await mkdir(dirname(target), { recursive: true });
  const temporary = await mkdtemp(join(dirname(target), `.${basename(target)}-`));
  try {
    for (const [file, { mode, content }] of Object.entries(files)) {
      await writeFile(join(temporary, file), content, { mode, flag: 'wx' });
    }
    await chmod(temporary, 0o700);
    await rename(temporary, target);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true });
    throw error;
  }
  return {
    directory: target,
    nodeParameters: join(target, NODE_PARAMETERS_FILE),
    ownerFingerprint: spkiFingerprint(owner.publicKey),
    recoveryFingerprint: spkiFingerprint(recovery.publicKey),
  };
}
