/** The agent's connection to init: made when needed, made again when it broke, its errors in the words of RPCs. */
import { connectInit, InitCallError, type InitClient } from '../rpc/init-client.ts';
import { type RpcCode, RpcError } from '../rpc/rpc-error.ts';

export interface InitConnection extends AsyncDisposable {
  /** Runs `use` with a live connection. What init refuses becomes an `RpcError`; init away is UNAVAILABLE. */
  run<T>(use: (init: InitClient) => Promise<T>): Promise<T>;
  /** The same for a stream. */
  stream<T>(use: (init: InitClient) => AsyncIterable<T>): AsyncIterable<T>;
}

/** Init takes 16 connections; each stream has one, and calls must always find one free. */
const STREAMS_MAX = 12;

export function openInitConnection(path: string): InitConnection {
  let connecting: Promise<InitClient> | undefined;
  let streams = 0;
  const client = async (): Promise<InitClient> => {
    const current = await connecting?.catch(() => undefined);
    if (current !== undefined && !current.closed) return current;
    connecting = connectInit(path);
    return connecting;
  };
  return {
    async run(use) {
      try {
        return await use(await client());
      } catch (error) {
        throw inWordsOfRpc(error);
      }
    },
    async *stream(use) {
      if (streams >= STREAMS_MAX) {
        throw new RpcError('RESOURCE_EXHAUSTED', `${STREAMS_MAX} streams are open already; end one first`);
      }
      streams += 1;
      try {
        yield* use(await client());
      } catch (error) {
        throw inWordsOfRpc(error);
      } finally {
        streams -= 1;
      }
    },
    async [Symbol.asyncDispose]() {
      const current = await connecting?.catch(() => undefined);
      await current?.[Symbol.asyncDispose]();
    },
  };
}

const CODES = {
  INVALID: 'INVALID_ARGUMENT',
  NOT_FOUND: 'NOT_FOUND',
  BUSY: 'RESOURCE_EXHAUSTED',
  UNAVAILABLE: 'FAILED_PRECONDITION',
} as const satisfies Record<string, RpcCode>;

function inWordsOfRpc(error: unknown): unknown {
  if (error instanceof RpcError) return error;
  // INTERNAL is init's own fault: its text is for the log.
  if (error instanceof InitCallError) {
    return error.code === 'INTERNAL' ? error : new RpcError(CODES[error.code], error.message, { cause: error });
  }
  return new RpcError('UNAVAILABLE', 'init does not answer; try again in a while', { cause: error });
}
