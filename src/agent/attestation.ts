/**
 * Attestation and sealing in the node's API: what comes from the network is checked here, in the agent, so that neither
 * init nor the TPM's Worker sees bytes of another size than a credential has.
 */
import type { MessageInitShape } from '@bufbuild/protobuf';
import type {
  AttestRequest,
  AttestResponseSchema,
  GetAttestationIdentityResponseSchema,
  RequestResealRequest,
} from '../rpc/gen/ashlar/node/v1/node_pb.ts';
import { InitCallError, type InitClient } from '../rpc/init-client.ts';
import { ATTESTATION_NONCE_BYTES, type AttestationIdentity, type InitParams } from '../rpc/init-protocol.ts';
import { RpcError } from '../rpc/rpc-error.ts';

/** TPM2B_DIGEST integrityHMAC and an encrypted TPM2B_DIGEST, both of SHA-256 (TPM 2.0 Library, part 1, 24.4). */
const CREDENTIAL_BLOB_BYTES = 2 + 32 + 2 + 32;
/** What RSA-OAEP to an RSA 2048 endorsement key gives. */
const RSA_SECRET_BYTES = 256;
/** An ephemeral TPMS_ECC_POINT on P-256: two coordinates, each with its length. */
const ECC_SECRET_BYTES = 2 + 32 + 2 + 32;

export function attestationIdentityMessage(
  identity: AttestationIdentity,
): MessageInitShape<typeof GetAttestationIdentityResponseSchema> {
  return {
    ekPublic: fromBase64(identity.ekPublic),
    ekCertificates: identity.ekCertificates.map(fromBase64),
    akPublic: fromBase64(identity.akPublic),
  };
}

/** Quote, PCRs and log of one request, with which node and boot it is. */
export async function attest(
  client: InitClient,
  params: InitParams<'attest'>,
): Promise<MessageInitShape<typeof AttestResponseSchema>> {
  const { nodeId, version, bootId } = await client.status();
  const { quote, signature, pcrs } = await client.attest(params);
  // The firmware's log ended when the kernel started: it is the same before and after the quote.
  const eventLog = await client.eventLog().catch((error: unknown) => {
    if (error instanceof InitCallError && error.code === 'NOT_FOUND') return new Uint8Array();
    throw error;
  });
  return {
    quote: fromBase64(quote),
    signature: fromBase64(signature),
    pcrs: Object.fromEntries(Object.entries(pcrs).map(([index, value]) => [index, Buffer.from(value, 'hex')])),
    eventLog,
    nodeId,
    version,
    bootId,
  };
}

/** Throws INVALID_ARGUMENT with what has the wrong size. */
export function checkAttestRequest({ nonce, credentialBlob, encryptedSecret }: AttestRequest): InitParams<'attest'> {
  if (nonce.length !== ATTESTATION_NONCE_BYTES) {
    throw new RpcError('INVALID_ARGUMENT', `the nonce must be ${ATTESTATION_NONCE_BYTES} bytes, not ${nonce.length}`);
  }
  const blob = Buffer.from(credentialBlob);
  if (blob.length !== CREDENTIAL_BLOB_BYTES || blob.readUInt16BE(0) !== 32) {
    throw new RpcError(
      'INVALID_ARGUMENT',
      `the credential must be ${CREDENTIAL_BLOB_BYTES} bytes that begin with the length of an HMAC, 32: a secret of 32 bytes for a key of the SHA-256 kind; it has ${blob.length}`,
    );
  }
  const { length } = encryptedSecret;
  if (length !== RSA_SECRET_BYTES && length !== ECC_SECRET_BYTES) {
    throw new RpcError(
      'INVALID_ARGUMENT',
      `the encrypted secret must be ${RSA_SECRET_BYTES} bytes for an RSA 2048 endorsement key or ${ECC_SECRET_BYTES} for one on P-256, not ${length}`,
    );
  }
  return {
    nonce: toBase64(nonce),
    credentialBlob: toBase64(credentialBlob),
    encryptedSecret: toBase64(encryptedSecret),
  };
}

/** Throws INVALID_ARGUMENT. */
export function checkPcr7({ pcr7 }: RequestResealRequest): { readonly pcr7?: string } {
  if (pcr7 === '') return {};
  if (/^[0-9a-f]{64}$/.test(pcr7) && !/^(0+|f+)$/.test(pcr7)) return { pcr7 };
  throw new RpcError('INVALID_ARGUMENT', 'PCR 7 must be 64 lower-case hexadecimal digits, and not all 0 or all f');
}

function fromBase64(text: string): Uint8Array {
  return Buffer.from(text, 'base64');
}

function toBase64(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('base64');
}
