/**
 * A gRPC server behind mutual TLS.
 *
 *     TCP ─ limits per address ─► TLS 1.3, client certificate required ─► HTTP/2 (grpc-js) ─► interceptor ─► method
 *                                 foreign, expired, none: ends here                           certificate → principal
 *                                                                                             → permission, or refusal
 *
 * TLS is ours and grpc-js gets connections that are already authenticated, so that no byte of HTTP/2 from a stranger is
 * parsed, refusals can be logged with their reason, and credentials can be changed while the server runs.
 */
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import type { Socket } from 'node:net';
import { createServer, type SecureContextOptions, type TLSSocket } from 'node:tls';
import type { DescMethod } from '@bufbuild/protobuf';
import {
  type ConnectionInjector,
  Server,
  ServerCredentials,
  ServerInterceptingCall,
  type ServerInterceptor,
  status,
} from '@grpc/grpc-js';
import { methodPath, type RegisteredService, type SurfaceCall } from './grpc-service.ts';
import { checkPermission, type Principal } from './permissions.ts';
import { RpcError, type RpcLog, statusOf } from './rpc-error.ts';

/** A server's identity and whom it lets through the handshake. */
export interface ServerTls {
  readonly certificatePem: string;
  readonly privateKeyPem: string;
  /** Roots: authorities, and single self-signed certificates. */
  readonly trustedPem: readonly string[];
}

export interface GrpcServerLimits {
  /** Greatest request message, after decompression. @default 1 MiB */
  readonly messageBytes: number;
  /** Greatest sum of names and values of one call's headers. @default 16 KiB */
  readonly headerBytes: number;
  /** Calls under way on one connection. @default 100 */
  readonly streams: number;
  /** Connections past the handshake. Those from this machine (127.0.0.1) are counted apart, here and below. @default 256 */
  readonly connections: number;
  /** Connections past the handshake from one address. @default 64 */
  readonly connectionsPerAddress: number;
  /** Connections in the handshake, of which anybody can open any number: one more ends the oldest. @default 128 */
  readonly handshakes: number;
  /** Connections in the handshake from one address: one more ends its oldest. @default 32 */
  readonly handshakesPerAddress: number;
  /** From the TCP connection to the end of the TLS handshake. @default 10 s */
  readonly handshakeMs: number;
  /** After this a connection takes no new calls; running ones get `connectionGraceMs` more. @default 1 h */
  readonly connectionAgeMs: number;
  /** @default 5 min */
  readonly connectionGraceMs: number;
  /** A connection without calls is closed after this. @default 10 min */
  readonly connectionIdleMs: number;
  /**
   * Bytes that a connection may send in one `ingressWindowMs`. Requests are small; more is a flood (of pings, settings,
   * resets: whatever HTTP/2 has), and the connection is dropped. @default 4 MiB
   */
  readonly ingressBytes: number;
  /** @default 5 s */
  readonly ingressWindowMs: number;
}

const MEBIBYTE = 1024 * 1024;

const DEFAULT_LIMITS: GrpcServerLimits = {
  messageBytes: MEBIBYTE,
  headerBytes: 16 * 1024,
  streams: 100,
  connections: 256,
  connectionsPerAddress: 64,
  handshakes: 128,
  handshakesPerAddress: 32,
  handshakeMs: 10_000,
  connectionAgeMs: 3_600_000,
  connectionGraceMs: 300_000,
  connectionIdleMs: 600_000,
  ingressBytes: 4 * MEBIBYTE,
  ingressWindowMs: 5_000,
};

export interface GrpcServerOptions {
  /** `ADDRESS:PORT`; port 0 takes a free one. */
  readonly listen: string;
  readonly tls: ServerTls;
  readonly services: readonly RegisteredService[];
  /** Whom a certificate stands for; throws `RpcError` when nobody. Called for every call. */
  readonly identify: (certificate: X509Certificate) => Principal;
  readonly limits?: Partial<GrpcServerLimits>;
  readonly log: RpcLog;
}

export interface GrpcServer extends AsyncDisposable {
  readonly port: number;
  /** From the next handshake on; connections that exist stay. */
  setTls(tls: ServerTls): void;
  /** Takes no new connections, gives running calls `graceMs`, then ends all. */
  close(graceMs?: number): Promise<void>;
}

/** Listens and serves. Rejects when the address is taken or a service's method has no permission. */
export async function serveGrpc(options: GrpcServerOptions): Promise<GrpcServer> {
  const limits = { ...DEFAULT_LIMITS, ...options.limits };
  const grpc = new Server({
    'grpc.max_receive_message_length': limits.messageBytes,
    'grpc.max_concurrent_streams': limits.streams,
    'grpc.max_connection_age_ms': limits.connectionAgeMs,
    'grpc.max_connection_age_grace_ms': limits.connectionGraceMs,
    'grpc.max_connection_idle_ms': limits.connectionIdleMs,
    // Finds peers that went away without a word.
    'grpc.keepalive_time_ms': 60_000,
    'grpc.keepalive_timeout_ms': 20_000,
    // In MiB. It bounds what headers can take before they are counted against `headerBytes`: Node would accept 16 MiB.
    'grpc-node.max_session_memory': 4,
    'grpc.enable_channelz': 0,
    interceptors: [authorizer(options, limits.headerBytes)],
  });
  for (const service of options.services) {
    grpc.addService(service.definition, service.bind(authorizedPrincipal, options.log));
  }
  const injector = grpc.createConnectionInjector(ServerCredentials.createInsecure());
  return TlsFront.listen(options, limits, injector, grpc);
}

/** The TLS listener, and the limits that are about connections rather than calls. */
class TlsFront implements GrpcServer {
  readonly #injector: ConnectionInjector;
  readonly #grpc: Server;
  readonly #tls: ReturnType<typeof createServer>;
  readonly #limits: GrpcServerLimits;
  readonly #log: RpcLog;
  readonly #sockets = new Set<TLSSocket>();
  /** So that strangers, however many, leave room for the services of this machine. */
  readonly #fromOutside = new Admission();
  readonly #fromHere = new Admission();
  #endedHandshakes = 0;
  readonly #ingressTimer: NodeJS.Timeout;
  readonly #ingressBefore = new WeakMap<TLSSocket, number>();

  static async listen(
    options: GrpcServerOptions,
    limits: GrpcServerLimits,
    injector: ConnectionInjector,
    grpc: Server,
  ): Promise<TlsFront> {
    const front = new TlsFront(options, limits, injector, grpc);
    try {
      front.#tls.listen(parseListen(options.listen));
      await once(front.#tls, 'listening');
    } catch (error) {
      await front.close(0);
      throw new Error(`cannot listen on ${options.listen}: ${error instanceof Error ? error.message : String(error)}`, {
        cause: error,
      });
    }
    return front;
  }

  private constructor(
    options: GrpcServerOptions,
    limits: GrpcServerLimits,
    injector: ConnectionInjector,
    grpc: Server,
  ) {
    this.#limits = limits;
    this.#log = options.log;
    this.#injector = injector;
    this.#grpc = grpc;
    this.#tls = createServer({
      ...secureContext(options.tls),
      requestCert: true,
      rejectUnauthorized: true,
      ALPNProtocols: ['h2'],
      handshakeTimeout: limits.handshakeMs,
    });
    this.#tls.prependListener('connection', (socket: Socket) => this.#admit(socket));
    this.#tls.on('secureConnection', (socket) => this.#accept(socket));
    this.#tls.on('tlsClientError', (error, socket) => this.#refused(error, socket));
    this.#ingressTimer = setInterval(() => this.#dropFloods(), limits.ingressWindowMs).unref();
  }

  get port(): number {
    const address = this.#tls.address();
    if (address === null || typeof address === 'string') throw new Error('cannot tell the port: not listening');
    return address.port;
  }

  setTls(tls: ServerTls): void {
    this.#tls.setSecureContext(secureContext(tls));
  }

  async close(graceMs = 2_000): Promise<void> {
    clearInterval(this.#ingressTimer);
    const closed = this.#tls.listening ? once(this.#tls, 'close') : undefined;
    if (closed !== undefined) this.#tls.close();
    // drain() lets each connection finish its calls; what has not ended by then is cut.
    this.#injector.drain(graceMs);
    const cut = setTimeout(() => {
      for (const socket of this.#sockets) socket.destroy();
    }, graceMs);
    await closed;
    clearTimeout(cut);
    this.#injector.destroy();
    this.#grpc.forceShutdown();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close(0);
  }

  #admit(socket: Socket): void {
    const address = socket.remoteAddress ?? '';
    const admission = this.#admissionOf(address);
    const full = admission.whyFull(address, this.#limits);
    if (full !== undefined) {
      this.#log.warning(`refused a connection from ${address}: ${full}`);
      socket.destroy();
      return;
    }
    this.#endedHandshakes += admission.begin(socket, address, this.#limits);
  }

  #admissionOf(address: string): Admission {
    return ['127.0.0.1', '::ffff:127.0.0.1', '::1'].includes(address) ? this.#fromHere : this.#fromOutside;
  }

  #accept(socket: TLSSocket): void {
    if (socket.alpnProtocol !== 'h2') {
      this.#log.warning(`refused a connection from ${peerOf(socket)}: it does not speak HTTP/2`);
      socket.destroy();
      return;
    }
    const address = socket.remoteAddress ?? '';
    const admission = this.#admissionOf(address);
    // Again: others may have come through since this one began.
    const full = admission.whyFull(address, this.#limits);
    if (full !== undefined) {
      this.#log.warning(`refused a connection from ${peerOf(socket)}: ${full}`);
      socket.destroy();
      return;
    }
    admission.pass(socket, address);
    this.#sockets.add(socket);
    socket.once('close', () => this.#sockets.delete(socket));
    // A broken connection is the peer's affair; its calls end through their streams.
    socket.on('error', () => undefined);
    this.#injector.injectConnection(socket);
  }

  #refused(error: Error & { code?: string }, socket: TLSSocket): void {
    // Node ends the handshake of an unacceptable certificate with a bare reset; its reason is on the socket.
    const reason = String(socket.authorizationError ?? error.code ?? error.message);
    // A peer that only looks at our key, as at first contact, leaves without a word.
    if (reason === 'ECONNRESET') this.#log.info('a TLS handshake was given up by its peer');
    else this.#log.warning(`refused a TLS handshake from ${peerOf(socket)}: ${reason}`);
    // A handshake whose time is up is only reported by Node, not ended.
    socket.destroy();
  }

  #dropFloods(): void {
    if (this.#endedHandshakes > 0) {
      this.#log.warning(`ended ${this.#endedHandshakes} TLS handshakes early: there were more than can wait`);
      this.#endedHandshakes = 0;
    }
    for (const socket of this.#sockets) {
      const received = socket.bytesRead;
      const inWindow = received - (this.#ingressBefore.get(socket) ?? 0);
      this.#ingressBefore.set(socket, received);
      if (inWindow > this.#limits.ingressBytes) {
        this.#log.warning(
          `dropped a connection from ${peerOf(socket)}: it sent ${inWindow} bytes in ${this.#limits.ingressWindowMs} ms`,
        );
        socket.destroy();
      }
    }
  }
}

/** Who is in the handshake and who is past it. */
class Admission {
  /** By peer, address and port, oldest first: the TLS socket over a connection is another object. */
  readonly #handshakes = new Map<string, { readonly socket: Socket; readonly address: string }>();
  readonly #perAddress = new Map<string, number>();
  #passed = 0;

  /** Why one more from this address cannot be let through the handshake; undefined when it can. */
  whyFull(address: string, limits: GrpcServerLimits): string | undefined {
    const own = this.#perAddress.get(address) ?? 0;
    if (own >= limits.connectionsPerAddress) return `it has ${own} already`;
    return this.#passed >= limits.connections ? `there are ${this.#passed} already` : undefined;
  }

  /** Makes room for a handshake, and says how many it ended for that. */
  begin(socket: Socket, address: string, limits: GrpcServerLimits): number {
    const waiting = [...this.#handshakes.values()];
    const own = waiting.filter((other) => other.address === address);
    const tooMany =
      own.length >= limits.handshakesPerAddress ? own : waiting.length >= limits.handshakes ? waiting : [];
    const ended = tooMany.slice(0, 1);
    for (const [peer, other] of this.#handshakes) {
      if (!ended.includes(other)) continue;
      // Now, not when its close is told: until then more may come.
      this.#handshakes.delete(peer);
      other.socket.destroy();
    }
    const peer = peerOf(socket);
    this.#handshakes.set(peer, { socket, address });
    socket.once('close', () => {
      // Its port may be another connection's by now.
      if (this.#handshakes.get(peer)?.socket === socket) this.#handshakes.delete(peer);
    });
    return ended.length;
  }

  /** Its handshake is over, and its client known. */
  pass(socket: TLSSocket, address: string): void {
    this.#handshakes.delete(peerOf(socket));
    this.#passed += 1;
    this.#perAddress.set(address, (this.#perAddress.get(address) ?? 0) + 1);
    socket.once('close', () => {
      this.#passed -= 1;
      const left = (this.#perAddress.get(address) ?? 1) - 1;
      if (left === 0) this.#perAddress.delete(address);
      else this.#perAddress.set(address, left);
    });
  }
}

/**
 * The interceptor that stands before every method: certificate → principal → the permission in the method's descriptor.
 * A refused call ends before its request is read. What it does not know, it refuses.
 */
function authorizer(options: GrpcServerOptions, headerBytes: number): ServerInterceptor {
  const methods = new Map<string, DescMethod>(
    options.services.flatMap(({ descriptor }) => descriptor.methods.map((method) => [methodPath(method), method])),
  );
  return (definition, call) => {
    let principal: Principal;
    try {
      const method = methods.get(definition.path);
      if (method === undefined) throw new RpcError('PERMISSION_DENIED', `${definition.path} is not a served method`);
      const certificate = call.getAuthContext().sslPeerCertificate;
      if (certificate === undefined) throw new RpcError('UNAUTHENTICATED', 'the connection has no client certificate');
      principal = options.identify(new X509Certificate(certificate.raw));
      checkPermission(principal, method);
    } catch (error) {
      const refusal = statusOf(error, definition.path, options.log);
      if (refusal.code !== status.INTERNAL) options.log.warning(`refused ${definition.path}: ${refusal.details}`);
      return new ServerInterceptingCall(call, {
        start: (next) => {
          next({ onReceiveMetadata: () => call.sendStatus(refusal) });
        },
      });
    }
    return new AuthorizedCall(call, principal, headerBytes);
  };
}

type AuthContext = ReturnType<ServerInterceptingCall['getAuthContext']>;

interface AuthorizedContext extends AuthContext {
  readonly principal: Principal;
}

/** Carries the principal from the interceptor to the method, unless the headers are too long. */
class AuthorizedCall extends ServerInterceptingCall {
  readonly #principal: Principal;

  constructor(
    call: ConstructorParameters<typeof ServerInterceptingCall>[0],
    principal: Principal,
    headerBytes: number,
  ) {
    super(call, {
      start: (begin) => {
        begin({
          onReceiveMetadata: (metadata, next) => {
            const size = Object.entries(metadata.toHttp2Headers()).flat(2).join('').length;
            if (size <= headerBytes) next(metadata);
            else
              call.sendStatus({
                code: status.RESOURCE_EXHAUSTED,
                details: `more than ${headerBytes} bytes of headers`,
              });
          },
        });
      },
    });
    this.#principal = principal;
  }

  override getAuthContext(): AuthorizedContext {
    return { ...super.getAuthContext(), principal: this.#principal };
  }
}

function authorizedPrincipal(call: SurfaceCall): Principal {
  const context = call.getAuthContext() as Partial<AuthorizedContext>;
  if (context.principal === undefined) throw new RpcError('UNAUTHENTICATED', 'the call was not authorized');
  return context.principal;
}

function secureContext(tls: ServerTls): SecureContextOptions {
  return {
    cert: tls.certificatePem,
    key: tls.privateKeyPem,
    ca: [...tls.trustedPem],
    minVersion: 'TLSv1.3',
    maxVersion: 'TLSv1.3',
  };
}

function parseListen(listen: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([^:]+)):(\d{1,5})$/.exec(listen);
  const port = Number(match?.[3]);
  if (match === null || port > 65_535) throw new Error(`cannot listen on ${JSON.stringify(listen)}: give ADDRESS:PORT`);
  return { host: match[1] ?? match[2] ?? '', port };
}

function peerOf(socket: Socket): string {
  return `${socket.remoteAddress ?? 'a closed socket'}:${socket.remotePort ?? 0}`;
}
