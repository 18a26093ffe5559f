/**
 * Errors at the edge. A server throws `RpcError` for what the caller should read; everything else that escapes from a
 * method becomes INTERNAL with a reference number, and only the log has the text. A client gets `RpcCallError`.
 */
import { randomBytes } from 'node:crypto';
import { type ServiceError, status } from '@grpc/grpc-js';

export type RpcCode = Exclude<keyof typeof status, 'OK'>;

/** What a method refuses or fails with; code and message go to the caller as they are. */
export class RpcError extends Error {
  override readonly name = 'RpcError';
  readonly code: RpcCode;

  constructor(code: RpcCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** A call of ours that failed: refused by the server, or never answered. */
export class RpcCallError extends Error {
  override readonly name = 'RpcCallError';
  readonly code: RpcCode;
  /** The server's words, or the transport's. */
  readonly details: string;

  constructor(method: string, target: string, code: RpcCode, details: string, options?: ErrorOptions) {
    super(`cannot call ${method} of ${target}: ${code}: ${details}`, options);
    this.code = code;
    this.details = details;
  }

  static from(error: ServiceError, method: string, target: string): RpcCallError {
    return new RpcCallError(method, target, codeName(error.code), error.details, { cause: error });
  }
}

export interface RpcStatus {
  code: number;
  details: string;
}

/** Where servers and clients of RPCs report; one line each. */
export interface RpcLog {
  info(text: string): void;
  warning(text: string): void;
  error(text: string): void;
}

/** The one mapping from what a method threw to what its caller sees. */
export function statusOf(error: unknown, method: string, log: RpcLog): RpcStatus {
  if (error instanceof RpcError) return { code: status[error.code], details: error.message };
  if (error instanceof Error && error.name === 'AbortError') {
    return { code: status.CANCELLED, details: 'the call was cancelled' };
  }
  const reference = randomBytes(4).toString('hex');
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  log.error(`${method} failed, reference ${reference}: ${text}`);
  return { code: status.INTERNAL, details: `internal error; the server's log has it as reference ${reference}` };
}

function codeName(code: number): RpcCode {
  const name = status[code];
  return name === undefined || name === 'OK' ? 'UNKNOWN' : (name as RpcCode);
}
