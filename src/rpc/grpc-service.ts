/**
 * Typed services: what joins a protobuf-es service descriptor to grpc-js on the server's side. Requests arrive here as
 * bytes and are decoded only after the caller was authorized.
 */
import {
  create,
  type DescMessage,
  type DescMethod,
  type DescService,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from '@bufbuild/protobuf';
import type {
  MethodDefinition,
  ServerDuplexStream,
  ServerUnaryCall,
  ServerWritableStream,
  ServiceDefinition,
  sendUnaryData,
  UntypedHandleCall,
  UntypedServiceImplementation,
} from '@grpc/grpc-js';
import { type Principal, permissionOf } from './permissions.ts';
import { RpcError, type RpcLog, statusOf } from './rpc-error.ts';

/** What a method may know of its call. */
export interface CallContext {
  readonly principal: Principal;
  /** Aborts when the caller cancels, its deadline passes or its connection ends. */
  readonly signal: AbortSignal;
}

type MethodImplementation<M> = M extends {
  methodKind: infer Kind;
  input: infer I extends DescMessage;
  output: infer O extends DescMessage;
}
  ? Kind extends 'unary'
    ? (request: MessageShape<I>, call: CallContext) => Promise<MessageInitShape<O>>
    : Kind extends 'server_streaming'
      ? (request: MessageShape<I>, call: CallContext) => AsyncIterable<MessageInitShape<O>>
      : Kind extends 'bidi_streaming'
        ? (requests: AsyncIterable<MessageShape<I>>, call: CallContext) => AsyncIterable<MessageInitShape<O>>
        : never
  : never;

/** One function for each method of the service, named as in the generated descriptor. */
export type ServiceImplementation<S extends DescService> = {
  [K in keyof S['method']]: MethodImplementation<S['method'][K]>;
};

/** A service ready to be served. */
export interface RegisteredService {
  readonly descriptor: DescService;
  readonly definition: ServiceDefinition;
  /** Binds the implementation to a server: `principalOf` gives the caller of an already authorized call. */
  bind(principalOf: (call: SurfaceCall) => Principal, log: RpcLog): UntypedServiceImplementation;
}

/** What all of grpc-js's server calls have in common. */
export interface SurfaceCall {
  readonly cancelled: boolean;
  getAuthContext(): object;
  on(event: 'cancelled' | 'drain', listener: () => void): unknown;
  off(event: 'cancelled' | 'drain', listener: () => void): unknown;
}

type LooseImplementation = Record<string, (request: unknown, call: CallContext) => unknown>;

/**
 * Joins a descriptor and its implementation. Throws when a method has no permission option, so that a server with such
 * a method does not start.
 */
export function implement<S extends DescService>(
  descriptor: S,
  implementation: ServiceImplementation<S>,
): RegisteredService {
  // The types above hold each function to its method; from here on methods are looked up by name.
  const functions = implementation as unknown as LooseImplementation;
  const methods = descriptor.methods.map((method) => {
    permissionOf(method);
    const run = functions[method.localName];
    if (run === undefined) throw new Error(`cannot serve ${descriptor.typeName}: ${method.name} is not implemented`);
    return { method, run: run.bind(implementation) };
  });
  return {
    descriptor,
    definition: Object.fromEntries(methods.map(({ method }) => [method.localName, methodDefinition(method)])),
    bind: (principalOf, log) =>
      Object.fromEntries(
        methods.map(({ method, run }) => [method.localName, bindMethod(method, run, principalOf, log)]),
      ),
  };
}

export function methodPath(method: DescMethod): string {
  return `/${method.parent.typeName}/${method.name}`;
}

/** How grpc-js sees a method: bytes in; messages out. */
function methodDefinition(method: DescMethod): MethodDefinition<Uint8Array, unknown> {
  return {
    path: methodPath(method),
    requestStream: method.methodKind === 'client_streaming' || method.methodKind === 'bidi_streaming',
    responseStream: method.methodKind === 'server_streaming' || method.methodKind === 'bidi_streaming',
    requestSerialize: (bytes) => Buffer.from(bytes),
    requestDeserialize: (bytes) => bytes,
    responseSerialize: (message) => encodeMessage(method.output, message as MessageInitShape<DescMessage>),
    responseDeserialize: (bytes) => decodeMessage(method.output, bytes),
  };
}

export function encodeMessage(schema: DescMessage, message: MessageInitShape<DescMessage>): Buffer {
  const bytes = toBinary(schema, create(schema, message));
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Unknown fields are dropped: nothing of ours passes them on. */
export function decodeMessage(schema: DescMessage, bytes: Uint8Array): MessageShape<DescMessage> {
  return fromBinary(schema, bytes, { readUnknownFields: false });
}

function decodeRequest(method: DescMethod, bytes: unknown): unknown {
  try {
    return decodeMessage(method.input, bytes as Uint8Array);
  } catch (cause) {
    throw new RpcError('INVALID_ARGUMENT', `the request is not a ${method.input.typeName}`, { cause });
  }
}

function bindMethod(
  method: DescMethod,
  run: (request: unknown, call: CallContext) => unknown,
  principalOf: (call: SurfaceCall) => Principal,
  log: RpcLog,
): UntypedHandleCall {
  const name = `${method.parent.typeName}.${method.name}`;
  const contextOf = (call: SurfaceCall): CallContext => {
    const abort = new AbortController();
    const onCancel = () => abort.abort(new DOMException('the call was cancelled', 'AbortError'));
    if (call.cancelled) onCancel();
    call.on('cancelled', onCancel);
    return { principal: principalOf(call), signal: abort.signal };
  };
  if (method.methodKind === 'unary') {
    return (call: ServerUnaryCall<unknown, unknown>, callback: sendUnaryData<unknown>) => {
      const answer = async () => run(decodeRequest(method, call.request), contextOf(call));
      answer().then(
        (response) => callback(null, response),
        (error: unknown) => callback(statusOf(error, name, log)),
      );
    };
  }
  if (method.methodKind === 'client_streaming') {
    throw new Error(`cannot serve ${name}: client streaming is not supported; use a bidirectional stream`);
  }
  return (call: ServerWritableStream<unknown, unknown> | ServerDuplexStream<unknown, unknown>) => {
    const stream = async () => {
      const context = contextOf(call);
      const request =
        method.methodKind === 'bidi_streaming'
          ? decodeRequests(method, call as ServerDuplexStream<unknown, unknown>)
          : decodeRequest(method, (call as ServerWritableStream<unknown, unknown>).request);
      for await (const message of run(request, context) as AsyncIterable<unknown>) {
        if (context.signal.aborted) return;
        if (!call.write(message)) await drained(call, context.signal);
      }
      call.end();
    };
    stream().catch((error: unknown) => {
      if (call.destroyed) return;
      call.emit('error', statusOf(error, name, log));
    });
  };
}

async function* decodeRequests(method: DescMethod, call: ServerDuplexStream<unknown, unknown>): AsyncIterable<unknown> {
  // The end of the requests must not destroy the stream: answers still go out on it.
  for await (const bytes of call.iterator({ destroyOnReturn: false })) yield decodeRequest(method, bytes);
}

/** Waits until a slow reader has caught up; the reader's end also ends the wait. */
function drained(call: SurfaceCall, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      call.off('drain', done);
      signal.removeEventListener('abort', done);
      resolve();
    };
    if (signal.aborted) return resolve();
    call.on('drain', done);
    signal.addEventListener('abort', done);
  });
}
