/**
 * What must be signed, and the signatures that come back: two JSON documents (docs/signing.md), so that a key can be on
 * another machine, in a token, or behind a program. Whoever signs can see what: a request names what its bytes are made
 * of, and the bytes are made again from that and compared.
 *
 * There are two rounds. The policy key approves PCR 11 first; its signatures are part of the image (`.pcrsig`), so what
 * the Secure Boot key signs is known only with them.
 */
import { constants, createHash, createPublicKey, type KeyObject, verify, X509Certificate } from 'node:crypto';
import { authenticodeDigestSignatureInput } from '../../src/formats/authenticode.ts';
import { type Check, type Checked, list, object, oneOf, ShapeError, text } from '../../src/formats/json-shape.ts';
import { spkiFingerprint } from '../../src/formats/x509.ts';
import { pcrSignatureInput } from '../../src/measure/pcr-signature.ts';
import { maxEpoch, maxFormerPolicyKeys, signedPcr11Policy } from '../../src/measure/policy.ts';

export const signatureAlgorithm = 'RSASSA-PKCS1-v1_5-SHA256';
/** What signs UKIs: the `db` key. */
export const secureBootSignature = 'secure-boot';
/** @param former the name of a former policy key, when that one is to sign */
export const policySignature = (policyRef: string, former?: string): string =>
  former === undefined ? `policy/${policyRef}` : `former-policy/${former}/${policyRef}`;

const requestFormat = 'ashlar-signing-request/1';
const signaturesFormat = 'ashlar-signatures/1';
const maxSignatures = maxEpoch * (1 + maxFormerPolicyKeys) + 1;

/** What an image needs. */
export type SignatureRequest = PolicyRequest | SecureBootRequest;

/** All that a signer may be asked for. */
export type Signable = SignatureRequest | EnrolmentRequest;

export interface PolicyRequest {
  readonly purpose: 'policy';
  readonly name: string;
  readonly policyRef: string;
  /** Which former policy key is to sign; without it the policy key itself. */
  readonly former?: string;
  /** PCR 11 in phase enter-initrd, which the signature approves. */
  readonly pcr11: Uint8Array;
  /** Of the key that must sign. */
  readonly publicKeyPem: string;
  readonly toBeSigned: Uint8Array;
}

export interface SecureBootRequest {
  readonly purpose: 'secure-boot';
  readonly name: string;
  /** Of the image with its policy signatures in it. */
  readonly authenticodeDigest: Uint8Array;
  /** Of the key that must sign. */
  readonly certificatePem: string;
  readonly toBeSigned: Uint8Array;
}

/** An authenticated write of a Secure Boot variable. */
export interface EnrolmentRequest {
  readonly purpose: 'enrolment';
  readonly name: string;
  /** Of the key that must sign. */
  readonly certificatePem: string;
  readonly toBeSigned: Uint8Array;
}

export function policyRequest(
  pcr11: Uint8Array,
  policyRef: string,
  { publicKeyPem, former }: { readonly publicKeyPem: string; readonly former?: string | undefined },
): PolicyRequest {
  return {
    purpose: 'policy',
    name: policySignature(policyRef, former),
    policyRef,
    ...(former === undefined ? {} : { former }),
    pcr11,
    publicKeyPem,
    toBeSigned: pcrSignatureInput(signedPcr11Policy(pcr11), policyRef),
  };
}

export function secureBootRequest(authenticodeDigest: Uint8Array, certificatePem: string): SecureBootRequest {
  return {
    purpose: 'secure-boot',
    name: secureBootSignature,
    authenticodeDigest,
    certificatePem,
    toBeSigned: authenticodeDigestSignatureInput(authenticodeDigest),
  };
}

/** The key that must make the signature. */
export function requestedKey(request: Signable): KeyObject {
  return request.purpose === 'policy'
    ? createPublicKey(request.publicKeyPem)
    : new X509Certificate(request.certificatePem).publicKey;
}

/** @throws Error naming the signature when the requested key did not make it. @param from who gave it, for the message. */
export function checkSignature(request: Signable, signature: Uint8Array, from: string): void {
  const key = requestedKey(request);
  const expectedBytes = Math.ceil((key.asymmetricKeyDetails?.modulusLength ?? 0) / 8);
  const refuse = (reason: string): never => {
    throw new Error(
      `cannot use signature ${request.name} from ${from}: ${reason}; it must be ${signatureAlgorithm} by ${nameOfKey(request)}, ${spkiFingerprint(key)}, over the bytes with SHA-256 ${sha256(request.toBeSigned)}`,
    );
  };
  if (signature.length !== expectedBytes) refuse(`it has ${signature.length} bytes, not ${expectedBytes}`);
  if (!verify('sha256', request.toBeSigned, { key, padding: constants.RSA_PKCS1_PADDING }, signature)) {
    refuse('it does not verify');
  }
}

function nameOfKey(request: Signable): string {
  if (request.purpose === 'policy')
    return `the key of ${request.former === undefined ? 'policy.pub' : `former-policy/${request.former}.pub`}`;
  const { subject } = new X509Certificate(request.certificatePem);
  return `the key of ${request.purpose === 'secure-boot' ? 'db.crt' : 'certificate'} "${subject.replaceAll('\n', ', ')}"`;
}

/** A signature that waits for others: it covers bytes that they are part of. */
export interface LaterSignature {
  readonly name: string;
  readonly waitsFor: readonly string[];
  readonly because: string;
}

export interface SigningRequest {
  /** Of the image, for people. */
  readonly image: string;
  readonly signatures: readonly SignatureRequest[];
  readonly later: readonly LaterSignature[];
}

export function encodeSigningRequest({ image, signatures, later }: SigningRequest): string {
  const entries = signatures.map((request) => ({
    name: request.name,
    purpose: request.purpose,
    ...(request.purpose === 'policy'
      ? {
          policyRef: request.policyRef,
          ...(request.former === undefined ? {} : { former: request.former }),
          pcr11: hex(request.pcr11),
          publicKeyPem: request.publicKeyPem,
        }
      : { authenticodeDigest: hex(request.authenticodeDigest), certificatePem: request.certificatePem }),
    keyFingerprint: spkiFingerprint(requestedKey(request)),
    algorithm: signatureAlgorithm,
    toBeSigned: Buffer.from(request.toBeSigned).toString('base64'),
    sha256: sha256(request.toBeSigned),
  }));
  return `${JSON.stringify({ format: requestFormat, image, signatures: entries, later }, undefined, 2)}\n`;
}

const name = text({ min: 1, max: 120, pattern: /^[a-z0-9/._-]+$/ });
const digest: Check<Uint8Array> = (value, path) =>
  Buffer.from(text({ max: 64, pattern: /^[0-9a-f]{64}$/ })(value, path), 'hex');
const base64: Check<Uint8Array> = (value, path) =>
  Buffer.from(text({ max: 8192, pattern: /^[A-Za-z0-9+/]+={0,2}$/ })(value, path), 'base64');
const pem = text({ max: 16 * 1024 });
const ofEveryRequest = {
  name,
  keyFingerprint: text({ max: 80 }),
  algorithm: oneOf(signatureAlgorithm),
  toBeSigned: base64,
  sha256: digest,
};
const policyEntry = object(
  {
    ...ofEveryRequest,
    purpose: oneOf('policy'),
    policyRef: text({ max: 64, pattern: /^[\x21-\x7e]+$/ }),
    pcr11: digest,
    publicKeyPem: pem,
  },
  { former: text({ max: 32, pattern: /^[a-z0-9-]+$/ }) },
);
const secureBootEntry = object({
  ...ofEveryRequest,
  purpose: oneOf('secure-boot'),
  authenticodeDigest: digest,
  certificatePem: pem,
});

/** Makes the request anew from what it is said to be made of, so that nothing else can be signed in its name. */
const requestEntry: Check<SignatureRequest> = (value, path) => {
  const isPolicy = typeof value === 'object' && value !== null && 'purpose' in value && value.purpose === 'policy';
  const { request, said } = isPolicy ? fromPolicyEntry(value, path) : fromSecureBootEntry(value, path);
  if (!Buffer.from(request.toBeSigned).equals(said.toBeSigned))
    throw new ShapeError(`${path}.toBeSigned`, 'is not what purpose and digest say is to be signed');
  if (sha256(request.toBeSigned) !== hex(said.sha256)) throw new ShapeError(`${path}.sha256`, 'is not of toBeSigned');
  if (request.name !== said.name) throw new ShapeError(`${path}.name`, `must be ${request.name}, not ${said.name}`);
  return request;
};

function fromPolicyEntry(value: unknown, path: string) {
  const said = policyEntry(value, path);
  return { said, request: policyRequest(said.pcr11, said.policyRef, said) };
}

function fromSecureBootEntry(value: unknown, path: string) {
  const said = secureBootEntry(value, path);
  return { said, request: secureBootRequest(said.authenticodeDigest, said.certificatePem) };
}

const signingRequest = object({
  format: oneOf(requestFormat),
  image: text({ max: 200 }),
  signatures: list(requestEntry, { max: maxSignatures }),
  later: list(object({ name, waitsFor: list(name, { max: maxSignatures }), because: text({ max: 400 }) }), { max: 8 }),
});

/** @throws Error naming the key that is wrong, or the bytes that are not what they are said to be. */
export function decodeSigningRequest(json: string): SigningRequest {
  return decode('signing request', signingRequest, json);
}

const signaturesDocument = object({
  format: oneOf(signaturesFormat),
  signatures: list(object({ name, signature: base64 }), { max: maxSignatures }),
});

export type Signatures = ReadonlyMap<string, Uint8Array>;

export function encodeSignatures(signatures: Signatures): string {
  const entries = [...signatures].map(([signatureName, signature]) => ({
    name: signatureName,
    signature: Buffer.from(signature).toString('base64'),
  }));
  return `${JSON.stringify({ format: signaturesFormat, signatures: entries }, undefined, 2)}\n`;
}

/** @throws Error naming the key that is wrong. Whether the signatures are good shows {@link checkSignature}. */
export function decodeSignatures(json: string): Signatures {
  const { signatures } = decode('signatures', signaturesDocument, json);
  const result = new Map(signatures.map(({ name: signatureName, signature }) => [signatureName, signature]));
  if (result.size !== signatures.length) throw new Error('cannot read signatures: a name is there twice');
  return result;
}

function decode<C extends Check<unknown>>(what: string, check: C, json: string): Checked<C> {
  try {
    return check(JSON.parse(json), '') as Checked<C>;
  } catch (error) {
    throw new Error(`cannot read ${what}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
