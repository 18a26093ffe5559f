/**
 * The agent's side of the init protocol. Calls share one connection and are matched by id; each log stream has a
 * connection of its own, so that a slow reader slows only its own stream (the kernel's socket buffer is the queue).
 */
import { connect, type Socket } from 'node:net';
import {
  type Attestation,
  type AttestationIdentity,
  decodeLogEntry,
  decodeReply,
  decodeResult,
  encodeFrame,
  FrameDecoder,
  type InitErrorCode,
  type InitMethod,
  type InitParams,
  type InitReply,
  type InitRequest,
  type InitResult,
  type LogEntry,
  type LogsParams,
  type NodeStatus,
  type RecoveryState,
  type Sealing,
  type ServiceStatus,
} from './init-protocol.ts';

export const INIT_SOCKET = '/run/ashlar/init.sock';

/** How long a call may take; init answers from memory, so a slower answer is a fault. */
const CALL_TIMEOUT_MS = 10_000;
/** What a TPM answers; longer than init's own deadline, so that init's words arrive (src/init/attest-client.ts). */
const TPM_CALL_TIMEOUT_MS = 75_000;
/** Longer than init's own deadline for opening and sealing a volume (src/init/recover-client.ts). */
const RECOVER_TIMEOUT_MS = 195_000;

/** Init's own refusal or failure of a call. */
export class InitCallError extends Error {
  readonly code: InitErrorCode;

  constructor(method: string, code: InitErrorCode, message: string) {
    super(`cannot ${method} through init: ${message}`);
    this.name = 'InitCallError';
    this.code = code;
  }
}

/** A connection to init. All methods reject with `InitCallError`, `ProtocolError` or the socket's error. */
export interface InitClient extends AsyncDisposable {
  status(): Promise<NodeStatus>;
  services(): Promise<ServiceStatus[]>;
  /** Entries in order, until the last one, or for ever with `follow`. Aborting `signal` ends it without an error. */
  logs(params: LogsParams, signal: AbortSignal): AsyncIterable<LogEntry>;
  /** The firmware's TPM event log, as in securityfs. */
  eventLog(): Promise<Uint8Array>;
  /** The keys of the TPM. Refused with BUSY while the TPM works or rests, UNAVAILABLE without one. */
  attestationIdentity(): Promise<AttestationIdentity>;
  /** Refused as `attestationIdentity`, and with INVALID when the credential is not for this TPM and its key. */
  attest(params: InitParams<'attest'>): Promise<Attestation>;
  /** Refused with UNAVAILABLE when the data is not sealed. */
  sealing(): Promise<Sealing>;
  /** Refused as `sealing`. The next boot does it. */
  requestReseal(params: InitParams<'requestReseal'>): Promise<void>;
  /** Why the data is closed. Refused with NOT_FOUND on a node whose data is open. */
  recoveryState(): Promise<RecoveryState>;
  /** Resolves when the data is sealed anew; the reboot ends this process soon after. Refused as `recoveryState`. */
  recover(params: InitParams<'recover'>): Promise<InitResult<'recover'>>;
  /** Resolves when init has accepted; the ordered shutdown ends this process soon after. */
  reboot(reason: string): Promise<void>;
  poweroff(reason: string): Promise<void>;
  /** True once the connection is unusable; make a new client. */
  readonly closed: boolean;
}

/** Connects to init's socket. Rejects with the socket's error (`ENOENT`, `EACCES`, `ECONNREFUSED`). */
export async function connectInit(path: string = INIT_SOCKET): Promise<InitClient> {
  return new SocketInitClient(path, await openSocket(path));
}

interface PendingCall {
  readonly method: InitMethod;
  readonly resolve: (result: unknown) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

class SocketInitClient implements InitClient {
  readonly #path: string;
  readonly #socket: Socket;
  readonly #calls = new Map<number, PendingCall>();
  #lastId = 0;
  #closed = false;

  constructor(path: string, socket: Socket) {
    this.#path = path;
    this.#socket = socket;
    const decoder = new FrameDecoder();
    socket.on('data', (chunk: Buffer) => {
      try {
        for (const frame of decoder.push(chunk)) this.#settle(decodeReply(frame));
      } catch (error) {
        socket.destroy(error instanceof Error ? error : new Error(String(error)));
      }
    });
    socket.on('error', (error) => this.#fail(error));
    socket.on('close', () => this.#fail(new Error(`cannot go on: init closed ${path}`)));
  }

  get closed(): boolean {
    return this.#closed;
  }

  status(): Promise<NodeStatus> {
    return this.#call('status', {});
  }

  services(): Promise<ServiceStatus[]> {
    return this.#call('services', {});
  }

  async eventLog(): Promise<Uint8Array> {
    const { base64 } = await this.#call('eventLog', {});
    return Buffer.from(base64, 'base64');
  }

  attestationIdentity(): Promise<AttestationIdentity> {
    return this.#call('attestationIdentity', {}, TPM_CALL_TIMEOUT_MS);
  }

  attest(params: InitParams<'attest'>): Promise<Attestation> {
    return this.#call('attest', params, TPM_CALL_TIMEOUT_MS);
  }

  sealing(): Promise<Sealing> {
    return this.#call('sealing', {});
  }

  async requestReseal(params: InitParams<'requestReseal'>): Promise<void> {
    await this.#call('requestReseal', params);
  }

  recoveryState(): Promise<RecoveryState> {
    return this.#call('recoveryState', {}, TPM_CALL_TIMEOUT_MS);
  }

  recover(params: InitParams<'recover'>): Promise<InitResult<'recover'>> {
    return this.#call('recover', params, RECOVER_TIMEOUT_MS);
  }

  async reboot(reason: string): Promise<void> {
    await this.#call('reboot', { reason });
  }

  async poweroff(reason: string): Promise<void> {
    await this.#call('poweroff', { reason });
  }

  async *logs(params: LogsParams, signal: AbortSignal): AsyncIterable<LogEntry> {
    if (signal.aborted) return;
    const socket = await openSocket(this.#path);
    const abort = () => socket.destroy();
    signal.addEventListener('abort', abort, { once: true });
    try {
      socket.write(encodeFrame({ id: 1, method: 'logs', params }));
      const decoder = new FrameDecoder();
      for await (const chunk of socket as AsyncIterable<Buffer>) {
        for (const frame of decoder.push(chunk)) {
          const reply = decodeReply(frame);
          if ('error' in reply) throw new InitCallError('read logs', reply.error.code, reply.error.message);
          if (!('event' in reply)) return;
          yield decodeLogEntry(reply.event);
          if (signal.aborted) return;
        }
      }
      if (!signal.aborted) throw new Error(`cannot read logs to their end: init closed ${this.#path}`);
    } catch (error) {
      // Destroying the socket ends the iteration with an error of its own, which is what was asked for.
      if (!signal.aborted) throw error;
    } finally {
      signal.removeEventListener('abort', abort);
      socket.destroy();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#socket.closed) return;
    await new Promise<void>((resolve) => {
      this.#socket.once('close', () => resolve());
      this.#socket.destroy();
    });
  }

  #call<M extends InitMethod>(method: M, params: InitParams<M>, timeoutMs = CALL_TIMEOUT_MS): Promise<InitResult<M>> {
    return new Promise((resolve, reject) => {
      if (this.#closed) throw new Error(`cannot ${method} through init: the connection to ${this.#path} is closed`);
      this.#lastId += 1;
      const id = this.#lastId;
      const timer = setTimeout(() => {
        this.#calls.delete(id);
        reject(new InitCallError(method, 'UNAVAILABLE', `no answer within ${timeoutMs} ms`));
      }, timeoutMs);
      this.#calls.set(id, { method, resolve: (result) => resolve(decodeResult(method, result)), reject, timer });
      this.#socket.write(encodeFrame({ id, method, params } as InitRequest));
    });
  }

  #settle(reply: InitReply): void {
    const call = this.#calls.get(reply.id);
    if (call === undefined) return; // its deadline passed
    this.#calls.delete(reply.id);
    clearTimeout(call.timer);
    if ('error' in reply) return call.reject(new InitCallError(call.method, reply.error.code, reply.error.message));
    try {
      call.resolve('result' in reply ? reply.result : undefined);
    } catch (error) {
      call.reject(error instanceof Error ? error : new Error(String(error)));
    }
  }

  #fail(error: Error): void {
    this.#closed = true;
    for (const call of this.#calls.values()) {
      clearTimeout(call.timer);
      call.reject(error);
    }
    this.#calls.clear();
  }
}

function openSocket(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject);
      // The iterator or the client reports errors from here on; this one keeps a late error from being uncaught.
      socket.on('error', () => undefined);
      resolve(socket);
    });
  });
}
