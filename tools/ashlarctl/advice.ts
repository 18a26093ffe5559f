/** Errors of calls, with what to do next. The transport tells little, so its words are searched for what they mean. */
import { RpcCallError } from '../../src/rpc/rpc-error.ts';

export interface AdviceContext {
  /** What was called, for people: "the cluster API", "node-…". */
  readonly server: string;
  readonly address: string;
  /** What we showed the server. */
  readonly credential: string;
  /** The way out when the server does not accept it. */
  readonly wayOut: string;
  readonly now: Date;
}

/** The same error, said to an operator. Errors that are not of calls pass unchanged. */
export function withAdvice(error: unknown, context: AdviceContext): unknown {
  if (!(error instanceof Error)) return error;
  const details = error instanceof RpcCallError ? error.details : error.message;
  const code = error instanceof RpcCallError ? error.code : ((error as NodeJS.ErrnoException).code ?? '');
  const advice = adviceFor(code, details, context);
  if (advice === undefined) return error;
  return new Error(`cannot reach ${context.server} at ${context.address}: ${advice}`, { cause: error });
}

function adviceFor(
  code: string,
  details: string,
  { credential, wayOut, now, server }: AdviceContext,
): string | undefined {
  const says = (pattern: RegExp) => pattern.test(details);
  if (code !== '' && code !== 'UNAVAILABLE' && code !== 'DEADLINE_EXCEEDED' && code !== 'UNAUTHENTICATED') {
    if (!/^(E[A-Z]+|CERT_|ERR_TLS|ERR_SSL)/.test(code)) return undefined;
  }
  if (says(/ECONNREFUSED/)) {
    return 'nothing listens there (connection refused); wait until the console says "ready", and check the address and any forwarded port';
  }
  if (says(/ENOTFOUND|EAI_AGAIN|Name resolution failed/)) return 'there is no host of that name; check the endpoint';
  if (says(/EHOSTUNREACH|ENETUNREACH|ETIMEDOUT/) || code === 'DEADLINE_EXCEEDED') {
    return 'no answer in time; check the address, the network between, and that the machine is on';
  }
  if (says(/certificate has expired|CERT_HAS_EXPIRED|certificate is not yet valid|CERT_NOT_YET_VALID/)) {
    return `its certificate is not valid at this machine's time, ${now.toISOString()}: compare the clocks of both (here: date -u; there: ashlarctl node describe)`;
  }
  if (says(/unable to verify|unable to get|self-signed certificate|self signed certificate|SELF_SIGNED/)) {
    return `${server} is not of this context's cluster (its certificate is from another authority); check the endpoint; ${wayOut}`;
  }
  if (says(/altnames/)) return `another server answers there than ${server}; check the endpoint or its override`;
  if (says(/alert|ECONNRESET|socket hang up|socket disconnected|Connection dropped|EPIPE|Failed to connect \(/i)) {
    return `it ended the TLS handshake: it does not accept ${credential}, or its clock is far off; ${wayOut}`;
  }
  if (code === 'UNAUTHENTICATED') return `${details}; compare the clocks of both; ${wayOut}`;
  if (code === 'UNAVAILABLE') return details;
  return undefined;
}
