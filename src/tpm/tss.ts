/**
 * The one place that loads tpm2-tss (4.1 on the node; any 3.x or 4.x has the same ABI for what is used here).
 *
 *   wire bytes ── Tss2_MU_X_Unmarshal ──▶ opaque C structure ── Esys_Command ──▶ TPM
 *   wire bytes ◀── Tss2_MU_X_Marshal ──── opaque C structure ◀──────┘
 *
 * So TypeScript knows only wire format (`formats/tpm-structures.ts`) and no C layout. Calls block: for a Worker.
 *
 * The libraries are bound with RTLD_DEEPBIND: Node.js exports its own OpenSSL's symbols, and tpm2-tss must find those of
 * the libcrypto.so.3 it was linked with, not these.
 *
 * tpm2-tss writes its log to stderr unless the environment has `TSS2_LOG=all+NONE` before the first call.
 */
import koffi from 'koffi';
import { unusableDevice } from './tpm-device.ts';
import { decodeResponse, ownFailure, TPM_RC, TpmError, tpmResponseCode } from './tpm-error.ts';

/** Larger than any structure used here (the largest, TPMS_CAPABILITY_DATA, is about 4 KiB). */
const STRUCTURE_BYTES = 16 * 1024;
const POINTER_BYTES = 8;

/** ESYS_TR constants (tss2_esys.h). PCR n has the handle n. */
export const ESYS = {
  password: 0x0ff,
  none: 0xfff,
  ownerHierarchy: 0x101,
  nullHierarchy: 0x107,
  lockoutHierarchy: 0x10a,
  endorsementHierarchy: 0x10b,
} as const;

/** Structures that go in. */
type InputStructure =
  | 'TPM2B_SENSITIVE_CREATE'
  | 'TPM2B_PUBLIC'
  | 'TPM2B_PRIVATE'
  | 'TPM2B_DATA'
  | 'TPM2B_DIGEST'
  | 'TPM2B_NONCE'
  | 'TPM2B_NAME'
  | 'TPML_PCR_SELECTION'
  | 'TPML_DIGEST_VALUES'
  | 'TPMT_SIGNATURE'
  | 'TPMT_SIG_SCHEME'
  | 'TPMT_SYM_DEF'
  | 'TPM2B_ID_OBJECT'
  | 'TPM2B_ENCRYPTED_SECRET'
  | 'TPM2B_MAX_NV_BUFFER'
  | 'TPM2B_NV_PUBLIC'
  | 'TPML_DIGEST'
  | 'TPMT_TK_VERIFIED';

/** Structures that come out. */
type OutputStructure =
  | 'TPM2B_PUBLIC'
  | 'TPM2B_PRIVATE'
  | 'TPM2B_DIGEST'
  | 'TPM2B_SENSITIVE_DATA'
  | 'TPML_DIGEST'
  | 'TPML_PCR_SELECTION'
  | 'TPMS_CAPABILITY_DATA'
  | 'TPMT_TK_VERIFIED'
  | 'TPM2B_ATTEST'
  | 'TPMT_SIGNATURE'
  | 'TPM2B_MAX_NV_BUFFER'
  | 'TPM2B_NV_PUBLIC';

type NativeArgument = number | bigint | string | Uint8Array | null;
type NativeFunction = (...args: NativeArgument[]) => unknown;

/** Three optional session handles, as every command takes. */
const SESSIONS = 'uint32_t s1, uint32_t s2, uint32_t s3';

/** Everything is passed as an integer or an address; outputs are addresses of buffers that receive a pointer or value. */
const COMMANDS = {
  Esys_Startup: 'uint16_t type',
  Esys_GetCapability: `${SESSIONS}, uint32_t capability, uint32_t property, uint32_t count, void *more, void *data`,
  Esys_GetRandom: `${SESSIONS}, uint16_t count, void *bytes`,
  Esys_PCR_Read: `${SESSIONS}, void *selection, void *counter, void *read, void *values`,
  Esys_PCR_Extend: `uint32_t pcr, ${SESSIONS}, void *digests`,
  Esys_CreatePrimary: `uint32_t parent, ${SESSIONS}, void *sensitive, void *template, void *outside, void *pcrs, void *object, void *public, void *creation, void *hash, void *ticket`,
  Esys_Create: `uint32_t parent, ${SESSIONS}, void *sensitive, void *template, void *outside, void *pcrs, void *private, void *public, void *creation, void *hash, void *ticket`,
  Esys_Load: `uint32_t parent, ${SESSIONS}, void *private, void *public, void *object`,
  Esys_LoadExternal: `${SESSIONS}, void *private, void *public, uint32_t hierarchy, void *object`,
  Esys_EvictControl: `uint32_t auth, uint32_t object, ${SESSIONS}, uint32_t persistent, void *result`,
  Esys_VerifySignature: `uint32_t key, ${SESSIONS}, void *digest, void *signature, void *ticket`,
  Esys_StartAuthSession: `uint32_t key, uint32_t bind, ${SESSIONS}, void *nonce, uint8_t type, void *symmetric, uint16_t hash, void *session`,
  Esys_TRSess_SetAttributes: 'uint32_t session, uint8_t attributes, uint8_t mask',
  Esys_PolicyPCR: `uint32_t session, ${SESSIONS}, void *digest, void *selection`,
  Esys_PolicyAuthorize: `uint32_t session, ${SESSIONS}, void *approved, void *reference, void *name, void *ticket`,
  Esys_PolicyGetDigest: `uint32_t session, ${SESSIONS}, void *digest`,
  Esys_Unseal: `uint32_t object, ${SESSIONS}, void *data`,
  Esys_HierarchyChangeAuth: `uint32_t auth, ${SESSIONS}, void *newAuth`,
  Esys_DictionaryAttackLockReset: `uint32_t auth, ${SESSIONS}`,
  Esys_NV_DefineSpace: `uint32_t auth, ${SESSIONS}, void *indexAuth, void *public, void *index`,
  Esys_NV_UndefineSpace: `uint32_t auth, uint32_t index, ${SESSIONS}`,
  Esys_NV_ReadPublic: `uint32_t index, ${SESSIONS}, void *public, void *name`,
  Esys_NV_Read: `uint32_t auth, uint32_t index, ${SESSIONS}, uint16_t size, uint16_t offset, void *data`,
  Esys_NV_Write: `uint32_t auth, uint32_t index, ${SESSIONS}, void *data, uint16_t offset`,
  Esys_NV_Increment: `uint32_t auth, uint32_t index, ${SESSIONS}`,
  Esys_PolicySecret: `uint32_t auth, uint32_t session, ${SESSIONS}, void *nonce, void *cpHash, void *reference, int32_t expiration, void *timeout, void *ticket`,
  Esys_PolicyOR: `uint32_t session, ${SESSIONS}, void *digests`,
  Esys_PolicyNV: `uint32_t auth, uint32_t index, uint32_t session, ${SESSIONS}, void *operand, uint16_t offset, uint16_t operation`,
  Esys_Quote: `uint32_t key, ${SESSIONS}, void *qualifying, void *scheme, void *pcrs, void *attest, void *signature`,
  Esys_ActivateCredential: `uint32_t activated, uint32_t key, ${SESSIONS}, void *blob, void *secret, void *certInfo`,
  Esys_FlushContext: 'uint32_t object',
  Esys_TR_FromTPMPublic: `uint32_t handle, ${SESSIONS}, void *object`,
  Esys_TR_Serialize: 'uint32_t object, void *bytes, void *size',
  Esys_TR_SetAuth: 'uint32_t object, void *auth',
} as const;

export type Command = keyof typeof COMMANDS;

/** How often and after which pauses a busy TPM is asked again; the sum is about 6 s. */
const RETRY_PAUSES_MS = [5, 10, 20, 50, 100, 200, 500, 1000, 2000, 2000] as const;

/**
 * Runs `call` again while it answers that the TPM is busy (RC_RETRY, RC_YIELDED, RC_TESTING).
 *
 * @param pause blocks for so many milliseconds
 * @returns the first other code, or the last busy one
 */
export function retryWhileBusy(call: () => number, pause: (ms: number) => void): number {
  let code = call();
  for (const ms of RETRY_PAUSES_MS) {
    const response = tpmResponseCode(code);
    if (response !== TPM_RC.retry && response !== TPM_RC.yielded && response !== TPM_RC.testing) return code;
    pause(ms);
    code = call();
  }
  return code;
}

function pauseThread(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

/** The loaded libraries. */
class TssLibraries {
  readonly #esys = koffi.load('libtss2-esys.so.0', { deep: true });
  readonly #mu = koffi.load('libtss2-mu.so.0', { deep: true });
  readonly #tctildr = koffi.load('libtss2-tctildr.so.0', { deep: true });
  readonly decode: (code: number) => string;
  readonly free: NativeFunction;
  readonly #commands = new Map<Command, NativeFunction>();
  readonly #codecs = new Map<string, NativeFunction>();

  constructor() {
    const decode: NativeFunction = koffi
      .load('libtss2-rc.so.0', { deep: true })
      .func('const char *Tss2_RC_Decode(uint32_t code)');
    // `tpm:session(1):a policy check failed`: who and about what is in TpmError already.
    this.decode = (code) =>
      String(decode(code))
        .replace(/^\w+:(\w+(\([\w.]+\))?:)?/, '')
        .trim();
    this.free = this.#esys.func('void Esys_Free(void *pointer)');
  }

  /** Binds a function of the ESAPI by its prototype without the return type. */
  esys(prototype: string): NativeFunction {
    return this.#esys.func(`uint32_t ${prototype}`);
  }

  tctiLoader(prototype: string): NativeFunction {
    return this.#tctildr.func(prototype);
  }

  command(name: Command): NativeFunction {
    let bound = this.#commands.get(name);
    if (bound === undefined) {
      bound = this.esys(`${name}(void *context, ${COMMANDS[name]})`);
      this.#commands.set(name, bound);
    }
    return bound;
  }

  codec(name: string, direction: 'Marshal' | 'Unmarshal'): NativeFunction {
    const symbol = `Tss2_MU_${name}_${direction}`;
    let bound = this.#codecs.get(symbol);
    if (bound === undefined) {
      const parameters =
        direction === 'Marshal'
          ? 'void *source, void *buffer, size_t size, void *offset'
          : 'void *buffer, size_t size, void *offset, void *target';
      bound = this.#mu.func(`uint32_t ${symbol}(${parameters})`);
      this.#codecs.set(symbol, bound);
    }
    return bound;
  }
}

/** A pointer or value that a command gives back: pass `buffer` as argument, then read it. */
export class Output {
  readonly buffer = Buffer.alloc(POINTER_BYTES);

  get pointer(): bigint {
    return this.buffer.readBigUInt64LE();
  }

  /** An ESYS_TR handle or another 32-bit value. */
  get value(): number {
    return this.buffer.readUInt32LE();
  }
}

/** A connection to one TPM. Not to be shared between threads. */
export class TssContext implements Disposable {
  readonly #libraries = new TssLibraries();
  readonly #tcti = new Output();
  readonly #esys = new Output();
  #isBroken = false;

  /**
   * @param tcti `device:/dev/tpmrm0` (the kernel's resource manager), or `swtpm:path=SOCKET` in tests. The TCTI's library
   *   (`libtss2-tcti-device.so.0`) is loaded by name at run time.
   */
  constructor(tcti: string) {
    const open = this.#libraries.tctiLoader('uint32_t Tss2_TctiLdr_Initialize(const char *name, void *context)');
    const opened = Number(open(tcti, this.#tcti.buffer));
    if (opened !== 0)
      throw unusableDevice(tcti) ?? new TpmError(`open TPM ${tcti}`, opened, this.#libraries.decode(opened));
    const initialize = this.#libraries.esys('Esys_Initialize(void *context, void *tcti, void *abi)');
    const code = Number(initialize(this.#esys.buffer, this.#tcti.pointer, null));
    if (code !== 0) this.#closeTcti();
    this.#check(`open TPM ${tcti}`, code);
  }

  /** After an answer that made no sense the stack takes no further command on this connection. */
  get isBroken(): boolean {
    return this.#isBroken;
  }

  /** Runs one command; a busy TPM is asked again. Throws `TpmError`. */
  run(command: Command, ...args: NativeArgument[]): void {
    if (this.#isBroken) {
      throw ownFailure(command.slice('Esys_'.length), 'unexpected-response', 'an earlier answer made no sense');
    }
    const call = this.#libraries.command(command);
    const code = retryWhileBusy(() => Number(call(this.#esys.pointer, ...args)), pauseThread);
    const decoded = decodeResponse(code);
    // What the stack cannot take apart while a command runs is the TPM's answer: the command was taken apart before.
    const isAnswer = decoded.layer === 'marshalling';
    this.#check(
      command.slice('Esys_'.length),
      code,
      isAnswer ? { ...decoded, failure: 'unexpected-response' } : decoded,
    );
  }

  /** Makes the C structure for a command from its wire format. Wipe it with `fill(0)` when it held a secret. */
  structure(name: InputStructure, wire: Uint8Array): Buffer {
    const target = Buffer.alloc(STRUCTURE_BYTES);
    const offset = Buffer.alloc(POINTER_BYTES);
    const code = Number(this.#libraries.codec(name, 'Unmarshal')(wire, wire.length, offset, target));
    this.#check(`convert ${name}`, code);
    const used = Number(offset.readBigUInt64LE());
    if (used !== wire.length) throw new RangeError(`cannot convert ${name}: ${wire.length - used} bytes are left over`);
    return target;
  }

  /** The wire format of a structure that a command gave back. Its memory is wiped and freed. */
  take(name: OutputStructure, output: Output): Buffer {
    const pointer = output.pointer;
    const buffer = Buffer.alloc(STRUCTURE_BYTES);
    const offset = Buffer.alloc(POINTER_BYTES);
    try {
      const code = Number(this.#libraries.codec(name, 'Marshal')(pointer, buffer, buffer.length, offset));
      this.#check(`convert ${name}`, code);
      return Buffer.from(buffer.subarray(0, Number(offset.readBigUInt64LE())));
    } finally {
      if (name === 'TPM2B_SENSITIVE_DATA') wipeSensitiveData(pointer);
      buffer.fill(0);
      this.discard(output);
    }
  }

  /**
   * What the stack knows of an object or NV index, without asking the TPM: handle, TPM2B_NAME, kind, TPM2B_PUBLIC or
   * TPM2B_NV_PUBLIC.
   */
  describe(object: number): Buffer {
    const [bytes, size] = [new Output(), new Output()];
    this.run('Esys_TR_Serialize', object, bytes.buffer, size.buffer);
    try {
      return Buffer.from(new Uint8Array(koffi.view(bytes.pointer, Number(size.pointer))));
    } finally {
      this.discard(bytes);
    }
  }

  /** Frees a structure that a command gave back and nobody needs. */
  discard(output: Output): void {
    this.#libraries.free(output.pointer);
    output.buffer.fill(0);
  }

  [Symbol.dispose](): void {
    if (this.#esys.pointer === 0n) return;
    // Esys_Finalize and Tss2_TctiLdr_Finalize return nothing and set the pointers to NULL.
    this.#libraries.esys('Esys_Finalize(void *context)')(this.#esys.buffer);
    this.#closeTcti();
  }

  #closeTcti(): void {
    this.#libraries.tctiLoader('void Tss2_TctiLdr_Finalize(void *context)')(this.#tcti.buffer);
  }

  #check(action: string, code: number, decoded = decodeResponse(code)): void {
    if (code === 0) return;
    const error = new TpmError(action, code, this.#libraries.decode(code), decoded);
    if (error.failure === 'unexpected-response' || error.layer === 'TCTI') {
      this.#isBroken = true;
    }
    throw error;
  }
}

/** TPM2B_SENSITIVE_DATA in C is a u16 size and the bytes: the secret is overwritten where the stack has put it. */
function wipeSensitiveData(pointer: bigint): void {
  const size = new DataView(koffi.view(pointer, 2)).getUint16(0, true);
  new Uint8Array(koffi.view(pointer, 2 + size)).fill(0);
}
