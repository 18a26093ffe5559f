/**
 * The first contact with a server that is known only by the fingerprint of its key. Before anything is sent to it, not
 * even who we are, a bare TLS handshake shows which key it has.
 */
import { X509Certificate } from 'node:crypto';
import { connect } from 'node:tls';
import { encodePem } from '../formats/x509.ts';
import { certificateFingerprint, checkFingerprint } from './tls-names.ts';

/** The server holds another key than it should. */
export class WrongFingerprintError extends Error {
  override readonly name = 'WrongFingerprintError';
  readonly expected: string;
  readonly actual: string;

  constructor(address: string, expected: string, actual: string) {
    super(`cannot trust ${address}: its key is ${actual}, expected is ${expected}`);
    this.expected = expected;
    this.actual = actual;
  }
}

/**
 * The certificate (PEM) of the TLS server at `address`, when its key has the fingerprint. The handshake proves that the
 * server holds the key; trusting exactly this certificate binds later connections to the same key.
 *
 * @throws WrongFingerprintError; the socket's error; the signal's reason
 */
export async function pinnedServer(
  address: string,
  serverName: string,
  fingerprint: string,
  options: { readonly timeoutMs?: number; readonly signal?: AbortSignal } = {},
): Promise<string> {
  checkFingerprint(fingerprint);
  const certificate = await presentedCertificate(address, serverName, options.timeoutMs ?? 10_000, options.signal);
  const actual = certificateFingerprint(certificate);
  if (actual !== fingerprint) throw new WrongFingerprintError(address, fingerprint, actual);
  return encodePem('CERTIFICATE', certificate.raw);
}

function presentedCertificate(
  address: string,
  serverName: string,
  timeoutMs: number,
  signal?: AbortSignal,
): Promise<X509Certificate> {
  const { host, port } = splitAddress(address);
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const socket = connect({
      host,
      port,
      servername: serverName,
      ALPNProtocols: ['h2'],
      minVersion: 'TLSv1.3',
      // Nobody vouches for the certificate: its key is compared instead, by the caller.
      rejectUnauthorized: false,
      checkServerIdentity: () => undefined,
    });
    const finish = (settle: () => void) => {
      signal?.removeEventListener('abort', onAbort);
      socket.destroy();
      settle();
    };
    const onAbort = () => finish(() => reject(signal?.reason));
    signal?.addEventListener('abort', onAbort, { once: true });
    socket.setTimeout(timeoutMs, () =>
      finish(() => reject(new Error(`cannot reach ${address}: no TLS answer within ${timeoutMs} ms`))),
    );
    socket.once('secureConnect', () => {
      const { raw } = socket.getPeerCertificate();
      finish(() => resolve(new X509Certificate(raw)));
    });
    socket.on('error', (error) => finish(() => reject(error)));
    socket.once('close', () => finish(() => reject(new Error(`cannot reach ${address}: it closed the connection`))));
  });
}

/** `HOST:PORT` or `[IPv6]:PORT`. Throws an error that says so. */
export function splitAddress(address: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})$/.exec(address);
  const port = Number(match?.[3]);
  if (match === null || port < 1 || port > 65_535) {
    throw new Error(`cannot use ${JSON.stringify(address)} as an address: give HOST:PORT`);
  }
  return { host: match[1] ?? match[2] ?? '', port };
}
