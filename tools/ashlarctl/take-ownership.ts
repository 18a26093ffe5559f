/**
 * Take ownership, the operator's side (the curator's is src/curator/take-ownership.ts).
 *
 *   1. look at the server's key and compare it with the fingerprint; nothing is sent before that
 *   2. connect as the owner, trusting exactly that key
 *   3. have a fresh operator key certified
 *   4. compare the recovery key of the node's data with the owner's; another one, and the answer is thrown away
 *   5. keep the certificate with the cluster's CA as a context
 *
 * Owner and recovery key came to the node in parameters that anybody on the way may have changed. Another owner shows in
 * step 2: the curator then does not accept this owner's certificate. Another recovery key would show nowhere else.
 */
import { createPrivateKey, createPublicKey, generateKeyPair, X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { encodePem, spkiFingerprint } from '../../src/formats/x509.ts';
import { ClusterService } from '../../src/rpc/gen/ashlar/cluster/v1/cluster_pb.ts';
import { openChannel } from '../../src/rpc/grpc-client.ts';
import { pinnedServer, WrongFingerprintError } from '../../src/rpc/pinned-server.ts';
import { CURATOR_SERVER_NAME } from '../../src/rpc/tls-names.ts';
import { refuseSharedFile } from '../host/private-file.ts';
import { withAdvice } from './advice.ts';
import {
  NODE_PARAMETERS_FILE,
  OWNER_CERTIFICATE_FILE,
  OWNER_KEY_FILE,
  RECOVERY_PUBLIC_KEY_FILE,
} from './cluster-prepare.ts';
import type { Context, ContextStore } from './contexts.ts';

export interface TakeOwnershipOptions {
  readonly endpoint: string;
  readonly fingerprint: string;
  /** The directory that `cluster prepare` made. */
  readonly ownerDirectory: string;
  readonly contextName: string;
  readonly operatorName: string;
  readonly nodeEndpoints: Readonly<Record<string, string>>;
  readonly signal: AbortSignal;
}

export async function takeOwnership(store: ContextStore, options: TakeOwnershipOptions): Promise<Context> {
  const { endpoint, fingerprint, contextName, operatorName, signal } = options;
  const owner = await readOwner(options.ownerDirectory);
  const recoveryFingerprint = await readRecoveryFingerprint(options.ownerDirectory);
  const before = await store.read(contextName);
  try {
    const pinned = await pinnedServer(endpoint, CURATOR_SERVER_NAME, fingerprint, { signal });
    using channel = openChannel({
      address: endpoint,
      serverName: CURATOR_SERVER_NAME,
      trustedPem: [pinned],
      identity: owner,
    });
    const { publicKey, privateKey } = await promisify(generateKeyPair)('ec', { namedCurve: 'P-256' });
    const answer = await channel
      .client(ClusterService)
      .takeOwnership({ publicKeyDer: publicKey.export({ type: 'spki', format: 'der' }), operatorName }, { signal });
    if (answer.recoveryKeyFingerprint !== recoveryFingerprint) {
      throw new WrongRecoveryKeyError(options.ownerDirectory, recoveryFingerprint, answer.recoveryKeyFingerprint);
    }
    if (before !== undefined && before.clusterId !== answer.clusterId) {
      throw new Error(
        `cannot keep the certificate: context ${contextName} is of ${before.clusterId}, this is ${answer.clusterId}; give another name with --context, or first run: ashlarctl context remove ${contextName}`,
      );
    }
    const context: Context = {
      version: 1,
      clusterId: answer.clusterId,
      endpoint,
      authorityPem: encodePem('CERTIFICATE', answer.caCertificateDer),
      operator: {
        name: operatorName,
        certificatePem: encodePem('CERTIFICATE', answer.certificateDer),
        privateKeyPem: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
      },
      nodeEndpoints: { ...before?.nodeEndpoints, ...options.nodeEndpoints },
    };
    checkAnswer(context);
    await store.write(contextName, context);
    await store.use(contextName);
    return context;
  } catch (error) {
    if (error instanceof WrongFingerprintError) throw wrongFingerprint(endpoint, error);
    if (error instanceof WrongRecoveryKeyError) throw error;
    throw withAdvice(error, {
      server: 'the cluster API',
      address: endpoint,
      now: new Date(),
      credential: `the owner's certificate in ${options.ownerDirectory}`,
      wayOut: "give the directory whose node-parameters.json the cluster's first node was booted with",
    });
  }
}

function readOwnerFile(directory: string, file: string): Promise<string> {
  return readFile(join(directory, file), 'utf8').catch((cause: Error) => {
    throw new Error(
      `cannot read the owner's keys: ${cause.message}; --owner names the directory that ashlarctl cluster prepare made`,
      { cause },
    );
  });
}

async function readRecoveryFingerprint(directory: string): Promise<string> {
  const pem = await readOwnerFile(directory, RECOVERY_PUBLIC_KEY_FILE);
  try {
    return spkiFingerprint(createPublicKey(pem));
  } catch (cause) {
    throw new Error(
      `cannot read ${RECOVERY_PUBLIC_KEY_FILE} in ${directory}: it is damaged; restore it from your backup`,
      {
        cause,
      },
    );
  }
}

/** Certificate and key of a directory that `cluster prepare` made, which fit each other; the key is the reader's alone. */
export async function readOwner(directory: string): Promise<{ certificatePem: string; privateKeyPem: string }> {
  const certificatePem = await readOwnerFile(directory, OWNER_CERTIFICATE_FILE);
  const privateKeyPem = await readOwnerFile(directory, OWNER_KEY_FILE);
  await refuseSharedFile(join(directory, OWNER_KEY_FILE), "cannot use the owner's key");
  let fits: boolean;
  try {
    fits = new X509Certificate(certificatePem).checkPrivateKey(createPrivateKey(privateKeyPem));
  } catch {
    throw new Error(`cannot read the owner's key in ${directory}: it is damaged; restore it from your backup`);
  }
  if (!fits) throw new Error(`cannot use the owner's key in ${directory}: ${OWNER_CERTIFICATE_FILE} is of another key`);
  return { certificatePem, privateKeyPem };
}

function checkAnswer(context: Context): void {
  const certificate = new X509Certificate(context.operator.certificatePem);
  const isOurs = certificate.checkPrivateKey(createPrivateKey(context.operator.privateKeyPem));
  if (!isOurs || !certificate.verify(new X509Certificate(context.authorityPem).publicKey)) {
    throw new Error('cannot use the answer: the certificate is not for our key, or not from the authority beside it');
  }
}

/** For people: both keys, and that nothing was sent. */
export function wrongFingerprint(endpoint: string, { expected, actual }: WrongFingerprintError): Error {
  return new Error(
    [
      `cannot trust the server at ${endpoint}: its key is not the one you named, and nothing was sent to it`,
      `  expected  ${expected}`,
      `  it has    ${actual}`,
      "Compare with the console of the node. If the console shows neither, you are talking to another machine's port.",
    ].join('\n'),
  );
}

/** The node's data can be opened by a recovery key that is not the owner's. */
class WrongRecoveryKeyError extends Error {
  override readonly name = 'WrongRecoveryKeyError';

  constructor(ownerDirectory: string, expected: string, actual: string) {
    const own = join(ownerDirectory, RECOVERY_PUBLIC_KEY_FILE);
    super(
      [
        "cannot own this cluster: the recovery key of its node's data is not yours; no context was written",
        `  yours     ${expected}  (${own})`,
        `  the node  ${actual === '' ? 'does not say' : actual}`,
        'Whoever has the private half of that key can read the disk without this machine, and all keys on it. The node took',
        'it from the parameters of its first boot: they were changed, on the ESP or in fw_cfg. If that was you, put the',
        `public key that you gave it into ${own}. If not, trust nothing of this cluster: find out who could write there,`,
        'wipe the disk, write the image to it again, and boot it with',
        `${join(ownerDirectory, NODE_PARAMETERS_FILE)}.`,
      ].join('\n'),
    );
  }
}
