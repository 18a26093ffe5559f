/**
 * A gRPC client behind mutual TLS 1.3: one connection to one server, whose services are typed by their descriptors.
 * The server is known by its role name and a root, or by the fingerprint of its key (`pinnedServer`).
 */
import { checkServerIdentity, createSecureContext, type PeerCertificate } from 'node:tls';
import type { DescMessage, DescMethod, DescService, MessageInitShape, MessageShape } from '@bufbuild/protobuf';
import {
  type ClientReadableStream,
  credentials,
  Client as GrpcClient,
  Metadata,
  type ServiceError,
} from '@grpc/grpc-js';
import { decodeMessage, encodeMessage, methodPath } from './grpc-service.ts';
import { RpcCallError } from './rpc-error.ts';

const CALL_TIMEOUT_MS = 10_000;
/** Greatest answer; an event log is the largest there is. */
const ANSWER_MAX_BYTES = 4 * 1024 * 1024;

export interface ChannelOptions {
  /** `HOST:PORT`, dialled as it is. */
  readonly address: string;
  /** The name that the server's certificate must carry. */
  readonly serverName: string;
  /** Roots, or one single certificate that is the server's own. */
  readonly trustedPem: readonly string[];
  /** Who we are; absent for a server that asks for no certificate. */
  readonly identity?: { readonly certificatePem: string; readonly privateKeyPem: string };
  /** Called in each handshake, with the certificate (DER) that the server proved to hold the key of. */
  readonly onServerCertificate?: (certificateDer: Uint8Array) => void;
}

export interface CallOptions {
  /** @default 10000; a stream has none unless given */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
}

type ClientMethod<M> = M extends {
  methodKind: infer Kind;
  input: infer I extends DescMessage;
  output: infer O extends DescMessage;
}
  ? Kind extends 'unary'
    ? (request: MessageInitShape<I>, options?: CallOptions) => Promise<MessageShape<O>>
    : Kind extends 'server_streaming'
      ? (request: MessageInitShape<I>, options?: CallOptions) => AsyncIterable<MessageShape<O>>
      : Kind extends 'bidi_streaming'
        ? (requests: AsyncIterable<MessageInitShape<I>>, options?: CallOptions) => AsyncIterable<MessageShape<O>>
        : never
  : never;

/** One function for each method of the service. Calls fail with `RpcCallError`. */
export type ServiceClient<S extends DescService> = { [K in keyof S['method']]: ClientMethod<S['method'][K]> };

export interface RpcChannel extends Disposable {
  client<S extends DescService>(service: S): ServiceClient<S>;
}

/** Connects with the first call, reconnects with later ones. A call while the server is away fails at once. */
export function openChannel(options: ChannelOptions): RpcChannel {
  const context = createSecureContext({
    ca: [...options.trustedPem],
    minVersion: 'TLSv1.3',
    // A pinned certificate is trusted by itself, whoever signed it.
    allowPartialTrustChain: true,
    ...(options.identity && { cert: options.identity.certificatePem, key: options.identity.privateKeyPem }),
  });
  const verification = {
    checkServerIdentity: (name: string, certificate: PeerCertificate) => {
      const refusal = checkServerIdentity(name, certificate);
      if (refusal === undefined) options.onServerCertificate?.(certificate.raw);
      return refusal;
    },
  };
  const grpc = new GrpcClient(options.address, credentials.createFromSecureContext(context, verification), {
    'grpc.ssl_target_name_override': options.serverName,
    'grpc.default_authority': options.serverName,
    'grpc.max_receive_message_length': ANSWER_MAX_BYTES,
    'grpc.keepalive_time_ms': 60_000,
    'grpc.keepalive_timeout_ms': 20_000,
    'grpc.initial_reconnect_backoff_ms': 500,
    'grpc.max_reconnect_backoff_ms': 5_000,
    'grpc.use_local_subchannel_pool': 1,
    'grpc.enable_retries': 0,
    'grpc.enable_channelz': 0,
    // Proxy variables of the environment are meant for the web; an identity of the cluster goes to the cluster only.
    'grpc.enable_http_proxy': 0,
    'grpc.service_config_disable_resolution': 1,
  });
  return {
    client<S extends DescService>(service: S): ServiceClient<S> {
      return Object.fromEntries(
        service.methods.map((method) => [method.localName, clientMethod(grpc, method, options.address)]),
      ) as ServiceClient<S>;
    },
    [Symbol.dispose]: () => grpc.close(),
  };
}

type Loose = MessageInitShape<DescMessage>;

function clientMethod(grpc: GrpcClient, method: DescMethod, target: string): unknown {
  const name = `${method.parent.typeName}.${method.name}`;
  const path = methodPath(method);
  const serialize = (message: Loose) => encodeMessage(method.input, message);
  const deserialize = (bytes: Buffer) => decodeMessage(method.output, bytes);
  switch (method.methodKind) {
    case 'unary':
      return (request: Loose, options: CallOptions = {}) =>
        new Promise((resolve, reject) => {
          options.signal?.throwIfAborted();
          const call = grpc.makeUnaryRequest(
            path,
            serialize,
            deserialize,
            request,
            new Metadata(),
            { deadline: Date.now() + (options.timeoutMs ?? CALL_TIMEOUT_MS) },
            (error, response) => {
              options.signal?.removeEventListener('abort', cancel);
              if (error === null) resolve(response);
              else reject(options.signal?.aborted ? options.signal.reason : RpcCallError.from(error, name, target));
            },
          );
          const cancel = () => call.cancel();
          options.signal?.addEventListener('abort', cancel, { once: true });
        });
    case 'server_streaming':
      return (request: Loose, options: CallOptions = {}) =>
        iterate(
          grpc.makeServerStreamRequest(path, serialize, deserialize, request, new Metadata(), deadlineOf(options)),
          options,
          name,
          target,
        );
    case 'bidi_streaming':
      return (requests: AsyncIterable<Loose>, options: CallOptions = {}) => {
        const call = grpc.makeBidiStreamRequest(path, serialize, deserialize, new Metadata(), deadlineOf(options));
        const send = async () => {
          for await (const request of requests) call.write(request);
          call.end();
        };
        send().catch((error: Error) => call.destroy(error));
        return iterate(call, options, name, target);
      };
    default:
      throw new Error(`cannot call ${name}: client streaming is not supported`);
  }
}

function deadlineOf(options: CallOptions): { deadline?: number } {
  return options.timeoutMs === undefined ? {} : { deadline: Date.now() + options.timeoutMs };
}

/** Ends without an error when the signal aborts; leaving the loop cancels the call. */
async function* iterate(
  call: ClientReadableStream<unknown>,
  options: CallOptions,
  name: string,
  target: string,
): AsyncIterable<unknown> {
  const cancel = () => call.cancel();
  if (options.signal?.aborted) cancel();
  options.signal?.addEventListener('abort', cancel, { once: true });
  try {
    for await (const message of call) yield message;
  } catch (error) {
    if (options.signal?.aborted) return;
    throw isServiceError(error) ? RpcCallError.from(error, name, target) : error;
  } finally {
    options.signal?.removeEventListener('abort', cancel);
    call.cancel();
  }
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && 'code' in error && typeof error.code === 'number' && 'details' in error;
}
