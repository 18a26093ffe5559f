/**
 * The agent of a node whose data does not open: the same process in the same bundle, with another API.
 *
 *     owner ── mTLS, TLS key of this boot ─► RecoveryService ── init socket ─► init
 *
 * There is no cluster to ask and no certificate of it. The one client is the owner, by exactly the certificate in the node
 * parameters, which were measured before they were read.
 */
import { X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Checked, object, text } from '../formats/json-shape.ts';
import { RecoveryService } from '../rpc/gen/ashlar/node/v1/recovery_pb.ts';
import { serveGrpc } from '../rpc/grpc-server.ts';
import { createHealth } from '../rpc/health-service.ts';
import type { Principal } from '../rpc/permissions.ts';
import { RpcError, type RpcLog } from '../rpc/rpc-error.ts';
import { openInitConnection } from './init-connection.ts';
import { createRecoveryService } from './recovery-service.ts';

const recoveryConfig = object({
  listen: text({ min: 1, max: 256, pattern: /^[^\s]+:\d{1,5}$/ }),
  initSocket: text({ min: 1, max: 107 }),
  ownerCertificatePem: text({ min: 1, max: 16 * 1024 }),
});

export type RecoveryConfig = Checked<typeof recoveryConfig>;

export interface RecoveryAgentOptions {
  readonly config: RecoveryConfig;
  /** Of this boot alone. */
  readonly keys: { readonly certificatePem: string; readonly privateKeyPem: string };
  readonly log: RpcLog;
  readonly signal: AbortSignal;
  /** Called when it listens. */
  readonly onServing?: (port: number) => void;
}

/** Runs until the signal aborts. Rejects when it cannot go on. */
export async function runRecoveryAgent(options: RecoveryAgentOptions): Promise<void> {
  const { config, keys, log, signal } = options;
  const owner = new X509Certificate(config.ownerCertificatePem);
  await using init = openInitConnection(config.initSocket);
  const health = createHealth([RecoveryService.typeName]);
  health.set(true);
  await using server = await serveGrpc({
    listen: config.listen,
    tls: { ...keys, trustedPem: [config.ownerCertificatePem] },
    services: [createRecoveryService(init, log), health.service],
    identify: (certificate) => identifyOwner(certificate, owner),
    log,
  });
  log.info(`serving recovery on port ${server.port}`);
  options.onServing?.(server.port);
  await new Promise<void>((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
  log.info('ending');
  await server.close();
}

/** Undefined when init configured the agent of an ordinary node. @param directory `/config` */
export async function readRecoveryConfig(
  directory: string,
): Promise<Pick<RecoveryAgentOptions, 'config' | 'keys'> | undefined> {
  let content: string;
  try {
    content = await readFile(join(directory, 'recovery.json'), 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
  const [certificatePem, privateKeyPem] = await Promise.all([
    readFile(join(directory, 'recovery.crt'), 'utf8'),
    readFile(join(directory, 'recovery.key'), 'utf8'),
  ]);
  return { config: recoveryConfig(JSON.parse(content), 'recovery.json'), keys: { certificatePem, privateKeyPem } };
}

/** The handshake trusts the owner's certificate as a root, and so whatever it might have issued; here only itself counts. */
function identifyOwner(certificate: X509Certificate, owner: X509Certificate): Principal {
  if (certificate.fingerprint256 === owner.fingerprint256) return { kind: 'owner' };
  throw new RpcError('UNAUTHENTICATED', "only the owner's own certificate counts here");
}
