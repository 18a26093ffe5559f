/**
 * Signing with a key in a PKCS #11 token (OASIS PKCS #11 v2.40, the C interface that every token's module has): a smart
 * card, an HSM, SoftHSM. The one place that loads such modules.
 *
 * The PIN goes straight into C_Login: it is in no argument list, no environment and no other program. It is tried once,
 * since a token counts wrong ones.
 *
 * The module is bound with RTLD_DEEPBIND: Node.js exports its own OpenSSL's symbols, and a module must find those of the
 * libcrypto that it was linked with. Calls block: a token that waits for a touch makes the program wait.
 */
import koffi from 'koffi';
import { addressOf } from '../../src/linux/libc.ts';
import type { Pkcs11Uri } from './pkcs11-uri.ts';

/** A token refused. `code` is PKCS #11's CK_RV. */
export class Pkcs11Error extends Error {
  override readonly name = 'Pkcs11Error';
  readonly code: number;

  constructor(what: string, code: number) {
    super(`${what}: ${RETURN_VALUES[code] ?? `CK_RV 0x${code.toString(16)}`}`);
    this.code = code;
  }
}

const RETURN_VALUES: Readonly<Record<number, string>> = {
  0x02: 'CKR_HOST_MEMORY',
  0x05: 'CKR_GENERAL_ERROR',
  0x06: 'CKR_FUNCTION_FAILED',
  0x30: 'CKR_DEVICE_ERROR',
  0x32: 'CKR_DEVICE_REMOVED',
  0x60: 'CKR_KEY_HANDLE_INVALID',
  0x63: 'CKR_KEY_TYPE_INCONSISTENT',
  0x68: 'CKR_KEY_FUNCTION_NOT_PERMITTED',
  0x70: 'CKR_MECHANISM_INVALID',
  0xa0: 'CKR_PIN_INCORRECT (the PIN is wrong; the token counts wrong ones)',
  0xa1: 'CKR_PIN_INVALID',
  0xa2: 'CKR_PIN_LEN_RANGE',
  0xa3: 'CKR_PIN_EXPIRED',
  0xa4: 'CKR_PIN_LOCKED (unlock it with the security officer’s PIN)',
  0xe0: 'CKR_TOKEN_NOT_PRESENT',
  0x101: 'CKR_USER_NOT_LOGGED_IN',
  0x102: 'CKR_USER_PIN_NOT_INITIALIZED',
};

const CKM_RSA_PKCS = 0x1;
const CKM_SHA256_RSA_PKCS = 0x40;
const CKR_MECHANISM_INVALID = 0x70;
const CKR_CRYPTOKI_ALREADY_INITIALIZED = 0x191;
const CKU_USER = 1;
const CKU_CONTEXT_SPECIFIC = 2;
const CKO_PRIVATE_KEY = 3;
const CKF_SERIAL_SESSION = 4;
const CKF_LOGIN_REQUIRED = 4;
const CKF_PROTECTED_AUTHENTICATION_PATH = 0x100;
const ATTRIBUTE = { class: 0x000, label: 0x003, id: 0x102, alwaysAuthenticate: 0x202 } as const;
const MAX_SLOTS = 256;
/** Bytes of a modulus of 16,384 bits. */
const MAX_SIGNATURE_BYTES = 2048;
/** ASN.1 before a SHA-256 digest (RFC 8017 §9.2), for tokens that only do the RSA part. */
const SHA256_DIGEST_INFO = Buffer.from('3031300d060960864801650304020105000420', 'hex');

/** Places in CK_FUNCTION_LIST, after its version; and parameters. CK_ULONG has 64 bits on the hosts we build on. */
const FUNCTIONS = {
  C_Initialize: [0, 'void *arguments'],
  C_Finalize: [1, 'void *reserved'],
  C_GetSlotList: [4, 'uint8_t present, void *slots, void *count'],
  C_GetTokenInfo: [6, 'uint64_t slot, void *info'],
  C_OpenSession: [12, 'uint64_t slot, uint64_t flags, void *application, void *notify, void *session'],
  C_CloseSession: [13, 'uint64_t session'],
  C_Login: [18, 'uint64_t session, uint64_t user, void *pin, uint64_t length'],
  C_GetAttributeValue: [24, 'uint64_t session, uint64_t object, void *template, uint64_t count'],
  C_FindObjectsInit: [26, 'uint64_t session, void *template, uint64_t count'],
  C_FindObjects: [27, 'uint64_t session, void *objects, uint64_t most, void *count'],
  C_FindObjectsFinal: [28, 'uint64_t session'],
  C_SignInit: [42, 'uint64_t session, void *mechanism, uint64_t key'],
  C_Sign: [43, 'uint64_t session, void *data, uint64_t length, void *signature, void *signatureLength'],
} as const;

type Pkcs11Function = keyof typeof FUNCTIONS;
type Argument = number | bigint | Uint8Array | null;

/**
 * Makes an RSASSA-PKCS1-v1_5 SHA-256 signature over `data` with the key that the URI names.
 *
 * @param digest SHA-256 of `data`, for tokens that do only the RSA part.
 * @param pin for tokens that want one; undefined for those that ask for it themselves.
 * @throws Error naming the token, key or step that is wrong.
 */
export function signWithToken(
  uri: Pkcs11Uri,
  options: { data: Uint8Array; digest: Uint8Array; pin: Uint8Array | undefined },
): Uint8Array {
  using module = new Pkcs11Module(uri.modulePath);
  using session = module.openSession(uri.token);
  session.login(CKU_USER, options.pin);
  return session.sign(session.findPrivateKey(uri), options);
}

class Pkcs11Module {
  readonly path: string;
  readonly #functions: ReadonlyMap<Pkcs11Function, (...args: Argument[]) => unknown>;
  #mustFinalize = false;

  constructor(path: string) {
    this.path = path;
    this.#functions = loadFunctions(path);
    const code = this.tryCall('C_Initialize', null);
    if (code !== 0 && code !== CKR_CRYPTOKI_ALREADY_INITIALIZED) throw new Pkcs11Error(`cannot use ${path}`, code);
    this.#mustFinalize = code === 0;
  }

  tryCall(name: Pkcs11Function, ...args: Argument[]): number {
    return Number(this.#functions.get(name)?.(...args));
  }

  /** @throws Pkcs11Error when the function does not return CKR_OK */
  call(name: Pkcs11Function, ...args: Argument[]): void {
    const code = this.tryCall(name, ...args);
    if (code !== 0) throw new Pkcs11Error(`cannot ${name} with ${this.path}`, code);
  }

  /** A session with the one token of that label, or with the only token when none is named. */
  openSession(label: string | undefined): Pkcs11Session {
    const slots = new BigUint64Array(MAX_SLOTS);
    const count = new BigUint64Array([BigInt(MAX_SLOTS)]);
    this.call('C_GetSlotList', 1, bytesOf(slots), bytesOf(count));
    const tokens = [...slots.subarray(0, Number(count[0]))].map((slot) => ({ slot, ...this.#tokenInfo(slot) }));
    const found = tokens.filter((token) => label === undefined || token.label === label);
    const [token] = found;
    if (token === undefined || found.length > 1) {
      const names = tokens.map((one) => JSON.stringify(one.label)).join(', ') || 'none';
      const wanted = label === undefined ? 'to sign with' : `labelled ${JSON.stringify(label)}`;
      throw new Error(`cannot choose a token: ${found.length} are ${wanted}; ${this.path} shows ${names}`);
    }
    const session = new BigUint64Array(1);
    this.call('C_OpenSession', token.slot, CKF_SERIAL_SESSION, null, null, bytesOf(session));
    return new Pkcs11Session(this, session[0] ?? 0n, token);
  }

  #tokenInfo(slot: bigint): { label: string; flags: number } {
    const info = Buffer.alloc(208);
    this.call('C_GetTokenInfo', slot, info);
    return { label: info.toString('utf8', 0, 32).trimEnd(), flags: Number(info.readBigUInt64LE(96)) };
  }

  [Symbol.dispose](): void {
    if (this.#mustFinalize) this.tryCall('C_Finalize', null);
  }
}

class Pkcs11Session {
  readonly #module: Pkcs11Module;
  readonly #session: bigint;
  readonly #token: { readonly label: string; readonly flags: number };

  constructor(module: Pkcs11Module, session: bigint, token: { label: string; flags: number }) {
    this.#module = module;
    this.#session = session;
    this.#token = token;
  }

  login(user: number, pin: Uint8Array | undefined): void {
    const { label, flags } = this.#token;
    const asksItself = (flags & CKF_PROTECTED_AUTHENTICATION_PATH) !== 0;
    if (pin === undefined && !asksItself) {
      if ((flags & CKF_LOGIN_REQUIRED) === 0) return;
      throw new Error(
        `cannot log in to token ${JSON.stringify(label)}: it wants a PIN; add &pin-source=/path/of/file to the URI, or pipe it in with --pin-stdin`,
      );
    }
    const code = this.#module.tryCall('C_Login', this.#session, user, pin ?? null, pin?.length ?? 0);
    if (code !== 0) throw new Pkcs11Error(`cannot log in to token ${JSON.stringify(label)}`, code);
  }

  findPrivateKey({ object, id }: Pkcs11Uri): bigint {
    const attributes: [number, Uint8Array][] = [[ATTRIBUTE.class, ulong(CKO_PRIVATE_KEY)]];
    if (object !== undefined) attributes.push([ATTRIBUTE.label, Buffer.from(object, 'utf8')]);
    if (id !== undefined) attributes.push([ATTRIBUTE.id, id]);
    const found = new BigUint64Array(2);
    const count = new BigUint64Array(1);
    this.#module.call('C_FindObjectsInit', this.#session, template(attributes), attributes.length);
    this.#module.call('C_FindObjects', this.#session, bytesOf(found), found.length, bytesOf(count));
    this.#module.call('C_FindObjectsFinal', this.#session);
    if (count[0] === 1n) return found[0] ?? 0n;
    const wanted = [
      ...(object === undefined ? [] : [`object=${object}`]),
      ...(id === undefined ? [] : [`id=${Buffer.from(id).toString('hex')}`]),
    ].join(' and ');
    throw new Error(
      `cannot choose a key in token ${JSON.stringify(this.#token.label)}: ${count[0] === 0n ? 'no' : 'more than one'} private key has ${wanted}`,
    );
  }

  sign(key: bigint, options: { data: Uint8Array; digest: Uint8Array; pin: Uint8Array | undefined }): Uint8Array {
    let input = options.data;
    const code = this.#module.tryCall('C_SignInit', this.#session, mechanism(CKM_SHA256_RSA_PKCS), key);
    if (code === CKR_MECHANISM_INVALID) {
      this.#module.call('C_SignInit', this.#session, mechanism(CKM_RSA_PKCS), key);
      input = Buffer.concat([SHA256_DIGEST_INFO, options.digest]);
    } else if (code !== 0) {
      throw new Pkcs11Error(`cannot sign with token ${JSON.stringify(this.#token.label)}`, code);
    }
    if (this.#asksEachTime(key)) this.login(CKU_CONTEXT_SPECIFIC, options.pin);
    const signature = Buffer.alloc(MAX_SIGNATURE_BYTES);
    const length = new BigUint64Array([BigInt(signature.length)]);
    this.#module.call('C_Sign', this.#session, input, input.length, signature, bytesOf(length));
    return signature.subarray(0, Number(length[0]));
  }

  /** CKA_ALWAYS_AUTHENTICATE: the PIN again for each signature, as smart cards want it for their signing key. */
  #asksEachTime(key: bigint): boolean {
    const value = new Uint8Array(1);
    const asked = template([[ATTRIBUTE.alwaysAuthenticate, value]]);
    return this.#module.tryCall('C_GetAttributeValue', this.#session, key, asked, 1) === 0 && value[0] === 1;
  }

  [Symbol.dispose](): void {
    // The session's end is the login's end, too.
    this.#module.tryCall('C_CloseSession', this.#session);
  }
}

function loadFunctions(path: string): ReadonlyMap<Pkcs11Function, (...args: Argument[]) => unknown> {
  let list: unknown;
  try {
    const getFunctionList = koffi.load(path, { deep: true }).func('uint64_t C_GetFunctionList(_Out_ void **list)');
    const out: unknown[] = [null];
    const code = Number(getFunctionList(out));
    if (code !== 0) throw new Pkcs11Error('C_GetFunctionList', code);
    list = out[0];
  } catch (error) {
    throw new Error(`cannot load PKCS #11 module ${path}: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  }
  const names = Object.keys(FUNCTIONS) as Pkcs11Function[];
  return new Map(
    names.map((name) => {
      const [place, parameters] = FUNCTIONS[name];
      const address: unknown = koffi.decode(list, 8 + place * 8, 'void *');
      const prototype = koffi.proto(`uint64_t (${parameters})`);
      return [name, (...args: Argument[]): unknown => koffi.call(address, prototype, ...args)];
    }),
  );
}

const bytesOf = (numbers: BigUint64Array): Uint8Array => new Uint8Array(numbers.buffer);
const ulong = (value: number): Uint8Array => bytesOf(new BigUint64Array([BigInt(value)]));
const mechanism = (type: number): Uint8Array => bytesOf(new BigUint64Array([BigInt(type), 0n, 0n]));

/** An array of CK_ATTRIBUTE. The values must outlive it, since it holds their addresses. */
function template(attributes: readonly (readonly [type: number, value: Uint8Array])[]): Uint8Array {
  return bytesOf(
    new BigUint64Array(attributes.flatMap(([type, value]) => [BigInt(type), addressOf(value), BigInt(value.length)])),
  );
}
