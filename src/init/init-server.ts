/**
 * The server side of the init protocol. Its one client is the agent, which faces the network: the socket's mode is the
 * permission, every frame is checked, and nothing a client does or leaves undone may grow PID 1's memory or stop its loop.
 */
import { chmodSync, chownSync } from 'node:fs';
import { unlink } from 'node:fs/promises';
import { createServer, type Server, type Socket } from 'node:net';
import {
  type Attestation,
  type AttestationIdentity,
  decodeRequest,
  encodeFrame,
  FrameDecoder,
  type InitErrorCode,
  type InitParams,
  InitRefusal,
  type InitReply,
  type InitRequest,
  InvalidRequest,
  type LogEntry,
  type LogsParams,
  type NodeStatus,
  type RecoveryState,
  type Sealing,
  type ServiceStatus,
} from '../rpc/init-protocol.ts';
import type { Logger } from '../supervisor/log-store.ts';
import type { StopAction } from './signals.ts';

const CONNECTIONS_MAX = 16;
const REQUESTS_PER_CONNECTION = 16;
/** Answers that a client has not read; more, and it is not reading. */
const UNREAD_BYTES_MAX = 4 * 1024 * 1024;

/** What the server asks of init. An `InitRefusal` goes to the client as it is. */
export interface InitService {
  status(): Promise<NodeStatus>;
  services(): Promise<ServiceStatus[]>;
  /** Ends with the last entry, or when `signal` aborts if following. */
  logs(params: LogsParams, signal: AbortSignal): AsyncIterable<LogEntry>;
  /** Null when the machine has none. */
  eventLog(): Promise<Uint8Array | null>;
  attestationIdentity(): Promise<AttestationIdentity>;
  attest(params: InitParams<'attest'>): Promise<Attestation>;
  sealing(): Promise<Sealing>;
  requestReseal(params: InitParams<'requestReseal'>): Promise<void>;
  /** Of a node whose data does not open; absent on any other. */
  readonly recovery?: RecoveryMode;
  /** Begins the ordered shutdown; returns at once. */
  stop(action: StopAction, reason: string): void;
}

/** What a refused node does for its owner. */
export interface RecoveryMode {
  state(): Promise<RecoveryState>;
  /** Opens the data and seals it anew. The server reboots afterwards. */
  recover(params: InitParams<'recover'>): Promise<{ readonly summary: string }>;
}

export interface InitServerOptions {
  readonly path: string;
  readonly service: InitService;
  readonly log: Logger;
  /** Group that may connect. */
  readonly gid: number;
}

/** Listens on a Unix socket, mode 0660, root and `gid`. */
export async function startInitServer({ path, service, log, gid }: InitServerOptions): Promise<AsyncDisposable> {
  await unlink(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error;
  });
  const connections = new Set<Connection>();
  const server = createServer((socket) => {
    const connection = new Connection(socket, service, log);
    connections.add(connection);
    socket.once('close', () => connections.delete(connection));
  });
  server.maxConnections = CONNECTIONS_MAX;
  server.on('drop', () => log.warning(`refused a connection: ${CONNECTIONS_MAX} are open`));
  await listen(server, path);
  if (process.getuid?.() === 0) chownSync(path, 0, gid);
  chmodSync(path, 0o660);
  return {
    [Symbol.asyncDispose]: async () => {
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      for (const connection of connections) connection.close();
      await closed;
    },
  };
}

class Connection {
  readonly #socket: Socket;
  readonly #service: InitService;
  readonly #log: Logger;
  readonly #active = new Map<number, AbortController>();

  constructor(socket: Socket, service: InitService, log: Logger) {
    this.#socket = socket;
    this.#service = service;
    this.#log = log;
    const decoder = new FrameDecoder();
    socket.on('data', (chunk: Buffer) => {
      try {
        for (const frame of decoder.push(chunk)) {
          if (socket.destroyed) return;
          this.#accept(frame);
        }
      } catch (error) {
        this.#refuse(error instanceof Error ? error.message : String(error));
      }
    });
    socket.on('error', (error) => this.#log.debug(`a connection failed: ${error.message}`));
    socket.on('close', () => {
      for (const call of this.#active.values()) call.abort();
    });
  }

  close(): void {
    this.#socket.destroy();
  }

  #accept(frame: unknown): void {
    let request: InitRequest;
    try {
      request = decodeRequest(frame);
    } catch (error) {
      if (!(error instanceof InvalidRequest)) throw error;
      this.#send({ id: error.id, error: { code: 'INVALID', message: error.message } });
      return;
    }
    if (request.method === 'cancel') {
      this.#active.get(request.id)?.abort();
      return;
    }
    if (this.#active.has(request.id)) throw new Error(`request ${request.id} is already running`);
    if (this.#active.size >= REQUESTS_PER_CONNECTION) {
      this.#fail(request.id, 'BUSY', `${REQUESTS_PER_CONNECTION} requests are running on this connection`);
      return;
    }
    const controller = new AbortController();
    this.#active.set(request.id, controller);
    this.#answer(request, controller.signal)
      .catch((error: unknown) => {
        if (error instanceof InitRefusal) return this.#fail(request.id, error.code, error.message);
        this.#log.error(`cannot answer ${request.method}: ${error instanceof Error ? error.message : String(error)}`);
        this.#fail(request.id, 'INTERNAL', `init failed to answer ${request.method}; its log says why`);
      })
      .finally(() => this.#active.delete(request.id));
  }

  async #answer(request: Exclude<InitRequest, { method: 'cancel' }>, signal: AbortSignal): Promise<void> {
    const { id } = request;
    switch (request.method) {
      case 'status':
        return this.#send({ id, result: await this.#service.status() });
      case 'services':
        return this.#send({ id, result: await this.#service.services() });
      case 'logs':
        return this.#stream(id, this.#service.logs(request.params, signal), signal);
      case 'eventLog': {
        const log = await this.#service.eventLog();
        if (log === null) return this.#fail(id, 'NOT_FOUND', 'this machine has no TPM event log');
        return this.#send({ id, result: { base64: Buffer.from(log).toString('base64') } });
      }
      case 'attestationIdentity':
        return this.#send({ id, result: await this.#service.attestationIdentity() });
      case 'attest':
        return this.#send({ id, result: await this.#service.attest(request.params) });
      case 'sealing':
        return this.#send({ id, result: await this.#service.sealing() });
      case 'requestReseal':
        await this.#service.requestReseal(request.params);
        return this.#send({ id, result: null });
      case 'recoveryState':
        return this.#send({ id, result: await this.#recovery().state() });
      case 'recover':
        this.#send({ id, result: await this.#recovery().recover(request.params) });
        return this.#service.stop('reboot', 'the data was recovered');
      case 'reboot':
      case 'poweroff':
        // Answered first: the shutdown ends the client, too.
        this.#send({ id, result: null });
        this.#service.stop(request.method, request.params.reason);
    }
  }

  #recovery(): RecoveryMode {
    if (this.#service.recovery !== undefined) return this.#service.recovery;
    throw new InitRefusal('NOT_FOUND', 'the data of this node is open: there is nothing to recover');
  }

  async #stream(id: number, entries: AsyncIterable<LogEntry>, signal: AbortSignal): Promise<void> {
    for await (const event of entries) {
      if (signal.aborted) break;
      // A slow reader stops the reading of the log, which drops entries for it and says so.
      if (!this.#write(encodeFrame({ id, event }))) await this.#drained(signal);
    }
    this.#send({ id, result: null });
  }

  #drained(signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        this.#socket.off('drain', done);
        this.#socket.off('close', done);
        signal.removeEventListener('abort', done);
        resolve();
      };
      this.#socket.on('drain', done);
      this.#socket.on('close', done);
      signal.addEventListener('abort', done);
    });
  }

  #fail(id: number, code: InitErrorCode, message: string): void {
    this.#send({ id, error: { code, message } });
  }

  #send(reply: InitReply): void {
    this.#write(encodeFrame(reply));
  }

  /** False when the caller should wait for 'drain'. */
  #write(frame: Uint8Array): boolean {
    if (this.#socket.destroyed) return true;
    const canTakeMore = this.#socket.write(frame);
    if (this.#socket.writableLength > UNREAD_BYTES_MAX)
      this.#refuse(`it left more than ${UNREAD_BYTES_MAX} bytes of answers unread`);
    return canTakeMore;
  }

  #refuse(reason: string): void {
    this.#log.warning(`closed a connection: ${reason}`);
    this.#socket.destroy();
  }
}

function listen(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(path, () => {
      server.off('error', reject);
      resolve();
    });
  });
}
