/**
 * The local protocol between init (PID 1, server) and the agent (client) on `/run/ashlar/init.sock`.
 *
 *     frame    = u32 little-endian length (1 … 1 MiB), that many bytes of UTF-8 JSON
 *     request  = { id, method, params }            answer = { id, result } | { id, error: { code, message } }
 *     stream   = { id, event }* then { id, result: null }; { id, method: "cancel" } ends stream `id` early
 *
 * Both sides check every frame: init because the agent faces the network, the agent because the answers go on to it.
 */
import {
  type Check,
  type Checked,
  dictionary,
  flag,
  integer,
  list,
  nonNegativeNumber,
  object,
  oneOf,
  ShapeError,
  text,
} from '../formats/json-shape.ts';

export const FRAME_MAX_BYTES = 1024 * 1024;
const LENGTH_BYTES = 4;

/** A frame or message that breaks the protocol; the connection it came from must be closed. */
export class ProtocolError extends Error {
  constructor(problem: string, options?: ErrorOptions) {
    super(`cannot read the init protocol: ${problem}`, options);
    this.name = 'ProtocolError';
  }
}

const name = text({ min: 1, max: 128, pattern: /^[a-z0-9][a-z0-9._-]*$/ });
const line = text({ max: 16 * 1024 });
const short = text({ max: 256 });
const milliseconds = nonNegativeNumber;

export const SERVICE_STATES = [
  'WAITING',
  'STARTING',
  'RUNNING',
  'HEALTHY',
  'BACKOFF',
  'STOPPING',
  'STOPPED',
  'DONE',
] as const;

const serviceStatus = object({
  name,
  state: oneOf(...SERVICE_STATES),
  /** How long it has been in this state. */
  sinceMs: milliseconds,
  restarts: integer({ min: 0, max: Number.MAX_SAFE_INTEGER }),
  /** How it ended last time, for a reader; empty while it never did. */
  lastExit: text({ max: 1024 }),
  healthy: flag,
});

const timelineEntry = object({
  stage: text({ min: 1, max: 128 }),
  /** Milliseconds since the kernel started. */
  atMs: milliseconds,
});

const nodeStatus = object({
  /** Empty until the data partition is open. */
  nodeId: text({ max: 21, pattern: /^(node-[0-9a-f]{16})?$/ }),
  version: short,
  bootId: short,
  /** The system partition that runs. */
  slot: oneOf('A', 'B', 'unknown'),
  /** The stage of boot or shutdown that init is in; `ready` once every service was healthy. */
  stage: short,
  /** Wall-clock time at which the kernel started, milliseconds since 1970. */
  bootTimeMs: milliseconds,
  /** `192.0.2.7/24` and the like, global scope only. */
  addresses: list(short, { max: 64 }),
  roles: list(short, { max: 16 }),
  /** SHA-256 bank, lower-case hex by index; empty without a TPM. */
  pcrs: dictionary(/^([0-9]|1[0-9]|2[0-3])$/, text({ max: 64, pattern: /^[0-9a-f]{64}$/ }), { max: 24 }),
  secureBoot: oneOf('enabled', 'disabled', 'setup', 'unknown'),
  tpm: oneOf('ready', 'absent', 'unused', 'failed'),
  memory: object({ totalBytes: nonNegativeNumber, availableBytes: nonNegativeNumber }),
  pid1RssBytes: nonNegativeNumber,
  timeline: list(timelineEntry, { max: 256 }),
  data: object({
    state: oneOf('closed', 'opening', 'open', 'refused'),
    createdThisBoot: flag,
    /** Of the public key that the open volume's recovery slot was made for; empty until it is open. */
    recoveryKeyFingerprint: text({ max: 50, pattern: /^(SHA256:[A-Za-z0-9_-]{43})?$/ }),
  }),
});

export const LOG_SEVERITIES = ['DEBUG', 'INFO', 'WARNING', 'ERROR'] as const;

const logEntry = object({
  name: text({ min: 1, max: 128 }),
  severity: oneOf(...LOG_SEVERITIES),
  /** Milliseconds since the kernel started. */
  atMs: milliseconds,
  /** Milliseconds since 1970, by the clock of that moment. */
  wallMs: milliseconds,
  text: line,
});

const logsParams = object(
  {},
  {
    /** A log name and everything below it (`init` includes `init.data`); all logs when absent. */
    name: text({ min: 1, max: 128, pattern: /^[A-Za-z0-9][A-Za-z0-9._-]*$/ }),
    /** The newest this many entries first. @default 1000 */
    tail: integer({ min: 0, max: 100_000 }),
    /** Go on with new entries until cancelled. @default false */
    follow: flag,
  },
);

const noParams = object({});
const reasonParams = object({ reason: text({ min: 1, max: 256 }) });

/** Bytes that init passes on without looking into them: between the agent, which checks them, and the TPM's Worker. */
const opaque = (maxBytes: number) => text({ max: 4 * Math.ceil(maxBytes / 3), pattern: /^[A-Za-z0-9+/]*={0,2}$/ });
/** A TPMT_PUBLIC, TPMS_ATTEST or TPMT_SIGNATURE, and what MakeCredential makes, of keys up to RSA 4096. */
const TPM_STRUCTURE_MAX_BYTES = 2048;
const tpmStructure = opaque(TPM_STRUCTURE_MAX_BYTES);
export const ATTESTATION_NONCE_BYTES = 32;

const attestationIdentity = object({
  /** TPMT_PUBLIC of the endorsement key. */
  ekPublic: tpmStructure,
  /** X.509 DER from the TPM's NV, the endorsement key's own first. */
  ekCertificates: list(opaque(8 * 1024), { max: 8 }),
  /** TPMT_PUBLIC of the attestation key. */
  akPublic: tpmStructure,
});

const sha256Hex = text({ max: 64, pattern: /^[0-9a-f]{64}$/ });

const attestation = object({
  quote: tpmStructure,
  signature: tpmStructure,
  pcrs: dictionary(/^([0-9]|1[0-5])$/, sha256Hex, { max: 16 }),
});

const sealedState = {
  policyRef: short,
  policyKeyFingerprint: sha256Hex,
  pcr7: sha256Hex,
  generation: integer({ min: 0, max: 0xffff_ffff }),
};

const sealing = object(
  {
    ...sealedState,
    policyKeyPem: text({ max: 4096 }),
    anchor: short,
    /** What this boot sealed anew; empty when nothing. */
    resealed: text({ max: 1024 }),
    resealRequested: flag,
  },
  { waiting: object(sealedState) },
);

const nothing: Check<null> = (value, path) => {
  if (value !== null) throw new ShapeError(path, 'must be null');
  return null;
};

export type ServiceStatus = Checked<typeof serviceStatus>;
export type ServiceState = (typeof SERVICE_STATES)[number];
export type NodeStatus = Checked<typeof nodeStatus>;
export type TimelineEntry = Checked<typeof timelineEntry>;
export type LogEntry = Checked<typeof logEntry>;
export type LogSeverity = (typeof LOG_SEVERITIES)[number];
export type LogsParams = Checked<typeof logsParams>;
export type AttestationIdentity = Checked<typeof attestationIdentity>;
export type Attestation = Checked<typeof attestation>;
export type Sealing = Checked<typeof sealing>;
export type RecoveryState = Checked<typeof recoveryState>;

/** Why the data is closed, and what opens it: of a node that serves recovery (docs/boot-flow.md). */
const recoveryState = object({
  refusal: text({ min: 1, max: 64, pattern: /^[a-z0-9-]+$/ }),
  message: text({ min: 1, max: 4096 }),
  volumeUuid: text({ max: 36, pattern: /^[0-9a-f-]{36}$/ }),
  recoveryKeyFingerprint: text({ max: 50, pattern: /^SHA256:[A-Za-z0-9_-]{43}$/ }),
  /** RSA-OAEP to the operator's recovery key. */
  encryptedRecoveryKey: opaque(1024),
});

/** Base64 of a secret: no error may quote it. */
const secret: Check<string> = (value, path) => {
  if (typeof value !== 'string' || !/^[A-Za-z0-9+/]{4,684}={0,2}$/.test(value))
    throw new ShapeError(path, 'is not base64 of 3 to 513 bytes');
  return value;
};

/** Parameters and results by method. `logs` is a stream of events that ends with null. */
export const INIT_METHODS = {
  status: { params: noParams, result: nodeStatus, event: null },
  services: { params: noParams, result: list(serviceStatus, { max: 256 }), event: null },
  logs: { params: logsParams, result: nothing, event: logEntry },
  eventLog: {
    params: noParams,
    result: object({ base64: text({ max: 900 * 1024, pattern: /^[A-Za-z0-9+/]*={0,2}$/ }) }),
    event: null,
  },
  attestationIdentity: { params: noParams, result: attestationIdentity, event: null },
  attest: {
    params: object({
      nonce: opaque(ATTESTATION_NONCE_BYTES),
      credentialBlob: tpmStructure,
      encryptedSecret: tpmStructure,
    }),
    result: attestation,
    event: null,
  },
  sealing: { params: noParams, result: sealing, event: null },
  requestReseal: {
    params: object({ reason: text({ min: 1, max: 256 }) }, { pcr7: sha256Hex }),
    result: nothing,
    event: null,
  },
  recoveryState: { params: noParams, result: recoveryState, event: null },
  recover: {
    params: object({ recoverySecret: secret }),
    result: object({ summary: text({ max: 1024 }) }),
    event: null,
  },
  reboot: { params: reasonParams, result: nothing, event: null },
  poweroff: { params: reasonParams, result: nothing, event: null },
} as const;

export type InitMethod = keyof typeof INIT_METHODS;
export type InitParams<M extends InitMethod> = Checked<(typeof INIT_METHODS)[M]['params']>;
export type InitResult<M extends InitMethod> = Checked<(typeof INIT_METHODS)[M]['result']>;

export const INIT_ERROR_CODES = ['INVALID', 'NOT_FOUND', 'BUSY', 'UNAVAILABLE', 'INTERNAL'] as const;
export type InitErrorCode = (typeof INIT_ERROR_CODES)[number];

/** What init refuses to do for its client; code and message are the answer. Any other error is INTERNAL to it. */
export class InitRefusal extends Error {
  override readonly name = 'InitRefusal';
  readonly code: InitErrorCode;

  constructor(code: InitErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** A request, its method and parameters checked. */
export type InitRequest =
  | { [M in InitMethod]: { readonly id: number; readonly method: M; readonly params: InitParams<M> } }[InitMethod]
  | { readonly id: number; readonly method: 'cancel' };

export type InitReply =
  | { readonly id: number; readonly result: unknown }
  | { readonly id: number; readonly event: unknown }
  | { readonly id: number; readonly error: { readonly code: InitErrorCode; readonly message: string } };

const requestId = integer({ min: 1, max: 0xffff_ffff });
const unchecked: Check<unknown> = (value) => value;
const requestEnvelope = object({ id: requestId, method: text({ min: 1, max: 64 }) }, { params: unchecked });
const errorReply = object({ code: oneOf(...INIT_ERROR_CODES), message: text({ max: 4096 }) });
const replyEnvelope = object({ id: requestId }, { result: unchecked, event: unchecked, error: errorReply });

/** A request whose envelope was readable but whose method or parameters were not: answered, not fatal. */
export class InvalidRequest extends Error {
  readonly id: number;

  constructor(id: number, problem: string) {
    super(problem);
    this.name = 'InvalidRequest';
    this.id = id;
  }
}

/** Checks a decoded frame as a request. Throws `InvalidRequest` (answer it) or `ProtocolError` (close). */
export function decodeRequest(frame: unknown): InitRequest {
  const { id, method, params = {} } = checked(requestEnvelope, frame, 'request');
  if (method === 'cancel') return { id, method };
  if (!isMethod(method)) throw new InvalidRequest(id, `${JSON.stringify(method)} is not a method of init`);
  try {
    return { id, method, params: INIT_METHODS[method].params(params, 'params') } as InitRequest;
  } catch (error) {
    if (error instanceof ShapeError) throw new InvalidRequest(id, error.message);
    throw error;
  }
}

/** Checks a decoded frame as a reply; its result or event is checked by `decodeResult` and `decodeEvent`. */
export function decodeReply(frame: unknown): InitReply {
  const reply = checked(replyEnvelope, frame, 'reply');
  const kinds = ['result', 'event', 'error'].filter((kind) => Object.hasOwn(reply, kind));
  if (kinds.length !== 1) throw new ProtocolError('a reply must have exactly one of result, event, error');
  return reply as InitReply;
}

/** Checks the result of a call. Throws `ProtocolError`. */
export function decodeResult<M extends InitMethod>(method: M, result: unknown): InitResult<M> {
  return checked(INIT_METHODS[method].result as Check<InitResult<M>>, result, `result of ${method}`);
}

/** Checks an event of the `logs` stream. Throws `ProtocolError`. */
export function decodeLogEntry(event: unknown): LogEntry {
  return checked(logEntry, event, 'event');
}

/** A message as one frame. Throws `ProtocolError` when it is longer than a frame may be. */
export function encodeFrame(message: InitRequest | InitReply): Uint8Array {
  const body = Buffer.from(JSON.stringify(message), 'utf8');
  if (body.length > FRAME_MAX_BYTES)
    throw new ProtocolError(`a frame of ${body.length} bytes is longer than the ${FRAME_MAX_BYTES} allowed`);
  const frame = Buffer.allocUnsafe(LENGTH_BYTES + body.length);
  frame.writeUInt32LE(body.length, 0);
  body.copy(frame, LENGTH_BYTES);
  return frame;
}

/**
 * Cuts a byte stream into frames. It keeps at most one incomplete frame, whose length is checked before there is room for
 * its body; each byte is copied once, however small the chunks are.
 */
export class FrameDecoder {
  readonly #length = Buffer.alloc(LENGTH_BYTES);
  /** Where the next bytes go: `#length`, or the body that it announced. */
  #part = this.#length;
  #filled = 0;

  /** Adds bytes and returns the frames they complete, parsed. Throws `ProtocolError`; then the stream is unusable. */
  push(chunk: Uint8Array): unknown[] {
    const frames: unknown[] = [];
    for (let at = 0; at < chunk.length; ) {
      const taken = chunk.subarray(at, at + this.#part.length - this.#filled);
      this.#part.set(taken, this.#filled);
      this.#filled += taken.length;
      at += taken.length;
      if (this.#filled < this.#part.length) break;
      this.#filled = 0;
      if (this.#part === this.#length) this.#part = Buffer.allocUnsafe(announcedLength(this.#length));
      else {
        frames.push(parseFrame(this.#part));
        this.#part = this.#length;
      }
    }
    return frames;
  }

  /** Bytes of an incomplete frame: not 0 at the end of the stream means that it was cut. */
  get pendingBytes(): number {
    return this.#part === this.#length ? this.#filled : LENGTH_BYTES + this.#filled;
  }
}

function announcedLength(bytes: Buffer): number {
  const length = bytes.readUInt32LE(0);
  if (length === 0 || length > FRAME_MAX_BYTES)
    throw new ProtocolError(`a frame announces ${length} bytes, allowed are 1 to ${FRAME_MAX_BYTES}`);
  return length;
}

function parseFrame(body: Buffer): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(body));
  } catch {
    throw new ProtocolError(`a frame of ${body.length} bytes is not UTF-8 JSON`);
  }
}

function checked<T>(check: Check<T>, value: unknown, what: string): T {
  try {
    return check(value, what);
  } catch (error) {
    if (error instanceof ShapeError) throw new ProtocolError(error.message, { cause: error });
    throw error;
  }
}

function isMethod(method: string): method is InitMethod {
  return Object.hasOwn(INIT_METHODS, method);
}
