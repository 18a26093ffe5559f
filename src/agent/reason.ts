/** The reason that an operator gives for the node's log. */
import { RpcError } from '../rpc/rpc-error.ts';

/** Throws INVALID_ARGUMENT. */
export function checkReason(reason: string): string {
  if (/^\P{Cc}{1,200}$/u.test(reason)) return reason;
  throw new RpcError('INVALID_ARGUMENT', 'the reason must be 1 to 200 characters without control characters');
}
