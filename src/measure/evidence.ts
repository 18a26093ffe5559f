/**
 * Evidence: what a node's TPM said, with all that another needs to judge it. The format is documented for the writers of
 * other verifiers in docs/evidence.md; this is its one implementation here.
 *
 * The text is strict: known keys only and none twice, digests in lower-case hex, base64 in its one canonical form. So two
 * verifiers that read the same file have read the same evidence.
 */
import { createHash } from 'node:crypto';
import { FormatError } from '../formats/byte-reader.ts';
import { type Check, integer, list, object, oneOf, ShapeError, text } from '../formats/json-shape.ts';
import { credentialRandomBytes } from './make-credential.ts';

export const evidenceFormat = 'ashlar-evidence/1';
export const maxEvidenceBytes = 4 * 1024 * 1024;
export const nonceBytes = 32;
/** The registers of the SHA-256 bank that are quoted, all of them. */
export const quotedPcrs: readonly number[] = Array.from({ length: 16 }, (_, index) => index);

/** What the node says of its data partition's sealing. The quote does not cover it. */
export interface SealingClaim {
  policyRef: string;
  policyKeyFingerprint: string;
  /** Hex. */
  pcr7: string;
  generation: number;
  anchor: string;
  resealed?: string;
}

export interface Evidence {
  /** Who the node says it is. The quote covers its TLS key, not these words. */
  readonly node: { readonly id: string; readonly version: string; readonly bootId: string };
  /** When the verifier took the evidence, by its own clock. */
  readonly time: Date;
  /** {@link nonceBytes} that the verifier chose for this quote. */
  readonly nonce: Uint8Array;
  /** SubjectPublicKeyInfo, DER, of the TLS key that served the connection. */
  readonly tlsSpki: Uint8Array;
  readonly ek: {
    /** TPMT_PUBLIC. */
    readonly publicArea: Uint8Array;
    /** DER as it lies in the TPM's NV memory (padding may follow), and issuers' certificates; any order. */
    readonly certificates: readonly Uint8Array[];
  };
  readonly ak: { /** TPMT_PUBLIC. */ readonly publicArea: Uint8Array };
  /** The challenge that showed both keys to be in one TPM, opened up: see `makeCredential`. */
  readonly activation: {
    /** TPMS_ID_OBJECT. */
    readonly credentialBlob: Uint8Array;
    /** Contents of TPM2B_ENCRYPTED_SECRET. */
    readonly encryptedSecret: Uint8Array;
    /** 32 bytes. */
    readonly secret: Uint8Array;
    /** What the verifier made the challenge from. */
    readonly random: Uint8Array;
  };
  readonly quote: {
    /** TPMS_ATTEST. */
    readonly attest: Uint8Array;
    /** TPMT_SIGNATURE. */
    readonly signature: Uint8Array;
  };
  /** The SHA-256 bank, {@link quotedPcrs}. */
  readonly pcrs: ReadonlyMap<number, Uint8Array>;
  /** As securityfs gives it. */
  readonly eventLog: Uint8Array;
  readonly sealing?: SealingClaim;
}

/** `qualifyingData` of the quote: SHA-256(nonce ‖ secret ‖ tlsSpki). Binds it to one challenge and one connection. */
export function qualifyingData(part: { nonce: Uint8Array; secret: Uint8Array; tlsSpki: Uint8Array }): Uint8Array {
  return createHash('sha256').update(part.nonce).update(part.secret).update(part.tlsSpki).digest();
}

/** The file's text: two-space indented, keys in the order of the documentation. */
export function encodeEvidence(evidence: Evidence): string {
  const document = {
    format: evidenceFormat,
    node: { id: evidence.node.id, version: evidence.node.version, bootId: evidence.node.bootId },
    time: evidence.time.toISOString(),
    nonce: hex(evidence.nonce),
    tlsSpki: base64(evidence.tlsSpki),
    ek: { publicArea: base64(evidence.ek.publicArea), certificates: evidence.ek.certificates.map(base64) },
    ak: { publicArea: base64(evidence.ak.publicArea) },
    activation: {
      credentialBlob: base64(evidence.activation.credentialBlob),
      encryptedSecret: base64(evidence.activation.encryptedSecret),
      secret: hex(evidence.activation.secret),
      random: hex(evidence.activation.random),
    },
    quote: { attest: base64(evidence.quote.attest), signature: base64(evidence.quote.signature) },
    pcrs: { sha256: Object.fromEntries([...evidence.pcrs].map(([index, value]) => [index, hex(value)])) },
    eventLog: base64(evidence.eventLog),
    ...(evidence.sealing !== undefined && { sealing: evidence.sealing }),
  };
  return `${JSON.stringify(document, null, 2)}\n`;
}

/**
 * @throws FormatError that names the key and what is wrong with it; never anything else, whatever the input.
 */
export function decodeEvidence(source: string | Uint8Array): Evidence {
  try {
    return decodeDocument(source);
  } catch (error) {
    if (error instanceof FormatError) throw error;
    throw new FormatError(`cannot decode evidence: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
}

/** A byte order mark stays in the text, where JSON has no place for it; by default it would be dropped without a word. */
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

function decodeDocument(source: string | Uint8Array): Evidence {
  if (source.length > maxEvidenceBytes)
    throw new RangeError(`${source.length} bytes are over the limit of ${maxEvidenceBytes}`);
  const content = typeof source === 'string' ? source : utf8.decode(source);
  const parsed = parseJson(content);
  refuseRepeatedKeys(content, parsed);
  const { format: _, pcrs, sealing, ...rest } = evidenceShape(parsed, '');
  return {
    ...rest,
    pcrs: new Map(quotedPcrs.map((index) => [index, pcrs.sha256[`${index}`] ?? new Uint8Array(0)])),
    ...(sealing !== undefined && { sealing }),
  };
}

/** Evidence has four levels and less than a hundred values, measurements five and some hundreds. */
const maxLevels = 16;
const maxValues = 10_000;

/**
 * JSON.parse takes seconds for a text of a few MiB that is nothing but brackets or commas, so these are counted first. It
 * quotes the text in its message, line breaks and all, so the message is ours.
 */
export function parseJson(content: string): unknown {
  refuseManyValues(content);
  try {
    return JSON.parse(content);
  } catch (cause) {
    throw new RangeError('it is not JSON, or not all of it is there', { cause });
  }
}

/** Exact for what is JSON; of anything else JSON.parse decides. */
function refuseManyValues(content: string): void {
  let levels = 0;
  let values = 1;
  let isInString = false;
  for (let at = 0; at < content.length; at += 1) {
    const character = content[at];
    if (isInString) {
      if (character === '\\') at += 1;
      else if (character === '"') isInString = false;
    } else if (character === '"') isInString = true;
    else if (character === '[' || character === '{') {
      levels += 1;
      values += 1;
      if (levels > maxLevels) throw new RangeError(`it has more than ${maxLevels} levels, one in the other`);
    } else if (character === ']' || character === '}') levels -= 1;
    else if (character === ',') values += 1;
    if (values > maxValues) throw new RangeError(`it has more than ${maxValues} values`);
  }
}

/**
 * JSON.parse lets the last of two equal keys win; another reader may take the first, and would judge other evidence. There
 * are as many keys in the text as in the value, or some were lost.
 */
function refuseRepeatedKeys(content: string, parsed: unknown): void {
  let written = 0;
  for (const [, colon] of content.matchAll(/"(?:[^"\\]|\\.)*"\s*(:?)/g)) if (colon === ':') written += 1;
  let read = 0;
  const pending = [parsed];
  for (let value = pending.pop(); value !== undefined; value = pending.pop()) {
    if (typeof value !== 'object' || value === null) continue;
    const members: unknown[] = Object.values(value);
    if (!Array.isArray(value)) read += members.length;
    // One by one: a list of a million would not fit the arguments of a call.
    for (const member of members) pending.push(member);
  }
  if (written !== read) throw new RangeError('a key is there twice in one object');
}

const hexOf = (byteCount: number): Check<Uint8Array> => {
  const digits = text({ min: 2 * byteCount, max: 2 * byteCount, pattern: /^[0-9a-f]*$/ });
  return (value, path) => Buffer.from(digits(value, path), 'hex');
};

const base64Of = (maxBytes: number): Check<Uint8Array> => {
  const letters = text({ min: 4, max: Math.ceil(maxBytes / 3) * 4, pattern: /^[A-Za-z0-9+/]*={0,2}$/ });
  return (value, path) => {
    const encoded = letters(value, path);
    const bytes = Buffer.from(encoded, 'base64');
    if (bytes.toString('base64') !== encoded) throw new ShapeError(path, 'is not canonical base64');
    if (bytes.length > maxBytes) throw new ShapeError(path, `must have at most ${maxBytes} bytes, not ${bytes.length}`);
    return bytes;
  };
};

const moment: Check<Date> = (value, path) => {
  const written = text({ max: 24, pattern: /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/ })(value, path);
  const time = new Date(written);
  if (Number.isNaN(time.getTime()) || time.toISOString() !== written)
    throw new ShapeError(path, `is not a moment: ${written}`);
  return time;
};

const structure = base64Of(4096);
const word = text({ min: 1, max: 200, pattern: /^[^\p{Cc}]*$/u });

const evidenceShape = object(
  {
    format: oneOf(evidenceFormat),
    node: object({ id: word, version: word, bootId: word }),
    time: moment,
    nonce: hexOf(nonceBytes),
    tlsSpki: base64Of(2048),
    ek: object({ publicArea: structure, certificates: list(base64Of(16 * 1024), { max: 8 }) }),
    ak: object({ publicArea: structure }),
    activation: object({
      credentialBlob: structure,
      encryptedSecret: structure,
      secret: hexOf(32),
      random: hexOf(credentialRandomBytes),
    }),
    quote: object({ attest: structure, signature: structure }),
    pcrs: object({ sha256: object(Object.fromEntries(quotedPcrs.map((index) => [`${index}`, hexOf(32)]))) }),
    eventLog: base64Of(2 * 1024 * 1024),
  },
  {
    sealing: object(
      {
        policyRef: word,
        policyKeyFingerprint: word,
        pcr7: text({ min: 64, max: 64, pattern: /^[0-9a-f]*$/ }),
        generation: integer({ min: 0, max: Number.MAX_SAFE_INTEGER }),
        anchor: word,
      },
      { resealed: word },
    ),
  },
);

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64');
