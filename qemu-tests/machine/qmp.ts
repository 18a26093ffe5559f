/** QEMU's control protocol: one JSON object a line over a Unix socket (QEMU's docs/interop/qmp-spec). */
import { createConnection, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

const CONNECT_DEADLINE_MS = 20_000;
const ANSWER_DEADLINE_MS = 60_000;

export interface QmpEvent {
  /** `RESET`, `SHUTDOWN`, `WATCHDOG`, `GUEST_PANICKED` … */
  readonly event: string;
  readonly data?: Readonly<Record<string, unknown>>;
}

export interface QmpClient extends Disposable {
  /** @throws Error with QEMU's reason when it refuses, or when the connection ends first */
  execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown>;
}

interface Pending {
  readonly command: string;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout;
}

/**
 * Connects to QEMU's socket, which appears a moment after QEMU starts.
 *
 * @param stillRunning ends the wait when QEMU has ended instead
 */
export async function connectQmp(
  socketPath: string,
  onEvent: (event: QmpEvent) => void,
  stillRunning: () => boolean,
): Promise<QmpClient> {
  const socket = await connect(socketPath, stillRunning);
  const pending = new Map<number, Pending>();
  let nextId = 1;
  let closed = false;

  const failAll = () => {
    closed = true;
    for (const { command, reject, timer } of pending.values()) {
      clearTimeout(timer);
      reject(new Error(`cannot run QMP command ${command}: the connection to QEMU ended`));
    }
    pending.clear();
  };
  const execute = (command: string, args?: Readonly<Record<string, unknown>>) =>
    new Promise<unknown>((resolve, reject) => {
      if (closed) {
        reject(new Error(`cannot run QMP command ${command}: QEMU is not running`));
        return;
      }
      const id = nextId++;
      const timer = setTimeout(() => {
        pending.delete(id);
        reject(new Error(`cannot run QMP command ${command}: no answer in ${ANSWER_DEADLINE_MS} ms`));
      }, ANSWER_DEADLINE_MS);
      pending.set(id, { command, resolve, reject, timer });
      socket.write(`${JSON.stringify({ execute: command, ...(args !== undefined && { arguments: args }), id })}\n`);
    });

  let text = '';
  socket.setEncoding('utf8');
  socket.on('data', (chunk: string) => {
    text += chunk;
    const lines = text.split('\n');
    text = lines.pop() ?? '';
    for (const line of lines)
      if (line.trim() !== '') receive(JSON.parse(line) as Record<string, unknown>, pending, onEvent);
  });
  socket.on('error', () => {});
  socket.on('close', failAll);
  await execute('qmp_capabilities');
  return { execute, [Symbol.dispose]: () => socket.destroy() };
}

function receive(message: Record<string, unknown>, pending: Map<number, Pending>, onEvent: (event: QmpEvent) => void) {
  if (typeof message.event === 'string') {
    onEvent(message as unknown as QmpEvent);
    return;
  }
  const request = pending.get(message.id as number);
  if (request === undefined) return; // the greeting
  pending.delete(message.id as number);
  clearTimeout(request.timer);
  if ('return' in message) request.resolve(message.return);
  else {
    const { desc } = message.error as { desc: string };
    request.reject(new Error(`cannot run QMP command ${request.command}: ${desc}`));
  }
}

async function connect(socketPath: string, stillRunning: () => boolean): Promise<Socket> {
  const deadline = performance.now() + CONNECT_DEADLINE_MS;
  for (;;) {
    try {
      return await connectOnce(socketPath);
    } catch (error) {
      if (!stillRunning() || performance.now() > deadline) {
        throw new Error(`cannot reach QEMU at ${socketPath}: ${(error as Error).message}`, { cause: error });
      }
      await sleep(50);
    }
  }
}

function connectOnce(socketPath: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(socketPath);
    socket.once('connect', () => {
      socket.off('error', reject);
      resolve(socket);
    });
    socket.once('error', reject);
  });
}
