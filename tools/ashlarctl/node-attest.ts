/** `ashlarctl node attest`: evidence of one node over its API, judged here. */
import { RpcCallError } from '../../src/rpc/rpc-error.ts';
import type { NodeConnection } from './connection.ts';
import { ATTESTATION_TIMEOUT_MS, type AttestationCalls } from './take-evidence.ts';

/** A node's attestation as `takeEvidence` asks for it. */
export function nodeAttestation(node: NodeConnection, signal: AbortSignal): AttestationCalls {
  const options = { signal, timeoutMs: ATTESTATION_TIMEOUT_MS };
  return {
    identity: () => node.call((client) => client.getAttestationIdentity({}, options)),
    attest: (request) => node.call((client) => client.attest(request, options)),
    async sealing() {
      try {
        return (await node.call((client) => client.getSealing({}, { signal }))).sealing;
      } catch (error) {
        if (error instanceof RpcCallError && error.code === 'FAILED_PRECONDITION') return undefined;
        throw error;
      }
    },
    tlsSpki: () => node.tlsSpki(),
  };
}
