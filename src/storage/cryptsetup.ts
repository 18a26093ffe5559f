/**
 * The one place that loads libcryptsetup (2.6 to 2.8, soname 12): making and opening LUKS2 volumes of one fixed shape
 * (`luks-metadata.ts` has the shape). Calls block; they belong in a Worker.
 *
 * Bound with RTLD_DEEPBIND, as libcryptsetup must use the libcrypto it was linked with and not the OpenSSL symbols that
 * Node.js exports. Locking is off: nobody else touches these devices, and the lock files would need /run/cryptsetup.
 */
import koffi from 'koffi';
import { CIPHER, CIPHER_MODE, HEADER_BYTES, KEY_BYTES, METADATA_BYTES, SECTOR_BYTES } from './luks-metadata.ts';

const LUKS2 = 'LUKS2';
/** The inputs are keys of full entropy: iterations add nothing, and Argon2 needs memory a small node lacks. */
const PBKDF_ITERATIONS = 1000;
const PBKDF_NO_BENCHMARK = 2;
const SECTOR_512 = 512;
/** struct crypt_pbkdf_type. */
const KEY_DERIVATION = {
  type: 'pbkdf2',
  hash: 'sha256',
  timeMs: 0,
  iterations: PBKDF_ITERATIONS,
  maxMemoryKb: 0,
  parallelThreads: 0,
  flags: PBKDF_NO_BENCHMARK,
} as const;

type NativeArgument = number | bigint | string | Uint8Array | null | object;
type NativeFunction = (...args: NativeArgument[]) => unknown;

/** Something libcryptsetup refused; `errno` is positive, the message holds what the library said. */
export class CryptsetupError extends Error {
  override readonly name = 'CryptsetupError';
  readonly errno: number;

  constructor(action: string, errno: number, said: readonly string[]) {
    super(`cannot ${action}: ${said.length > 0 ? said.join(' ') : `libcryptsetup error ${errno}`}`);
    this.errno = errno;
  }
}

const EPERM = 1;

/** True when no key slot opens with the given key. */
export function isWrongKey(error: unknown): boolean {
  return error instanceof CryptsetupError && error.errno === EPERM;
}

/** A key slot's number and the key that opens it. */
export interface SlotKey {
  readonly slot: number;
  readonly key: Uint8Array;
}

/** struct crypt_pbkdf_type and struct crypt_params_luks2. */
function parameterStructs() {
  const pbkdf = koffi.struct({
    type: 'const char *',
    hash: 'const char *',
    timeMs: 'uint32_t',
    iterations: 'uint32_t',
    maxMemoryKb: 'uint32_t',
    parallelThreads: 'uint32_t',
    flags: 'uint32_t',
  });
  const luks2 = koffi.struct({
    pbkdf: koffi.pointer(pbkdf),
    integrity: 'const char *',
    integrityParameters: 'void *',
    dataAlignment: 'size_t',
    dataDevice: 'const char *',
    sectorSize: 'uint32_t',
    label: 'const char *',
    subsystem: 'const char *',
  });
  return { pbkdf, luks2 };
}

/** The library with its messages; dispose it when done. */
class Cryptsetup implements Disposable {
  readonly #library = koffi.load('libcryptsetup.so.12', { deep: true });
  readonly #callback: bigint;
  readonly #said: string[] = [];

  constructor() {
    const log = koffi.proto('void (int level, const char *message, void *user)');
    this.#callback = koffi.register((_level: number, message: string) => {
      this.#said.push(message.trim());
    }, koffi.pointer(log));
    this.bind('void crypt_set_log_callback(void *cd, void *log, void *user)')(null, this.#callback, null);
    this.call('switch off locking', 'int crypt_metadata_locking(void *cd, int enable)', null, 0);
  }

  bind(prototype: string): NativeFunction {
    return this.#library.func(prototype);
  }

  /** Calls a function that returns a negative errno; gives its result. */
  call(action: string, prototype: string, ...args: NativeArgument[]): number {
    this.#said.length = 0;
    const result = Number(this.bind(prototype)(...args));
    if (result < 0) throw new CryptsetupError(action, -result, this.#said);
    return result;
  }

  [Symbol.dispose](): void {
    this.bind('void crypt_set_log_callback(void *cd, void *log, void *user)')(null, null, null);
    koffi.unregister(this.#callback);
  }
}

/** A LUKS2 header in a file, and the device its data is on. */
export class LuksVolume implements Disposable {
  readonly #cryptsetup: Cryptsetup;
  readonly #structs = parameterStructs();
  readonly #handle = Buffer.alloc(8);
  readonly #path: string;

  private constructor(cryptsetup: Cryptsetup, headerPath: string, dataPath: string) {
    this.#cryptsetup = cryptsetup;
    this.#path = dataPath;
    const prototype = 'int crypt_init_data_device(void *cd, const char *header, const char *data)';
    this.#call('open', prototype, this.#handle, headerPath, dataPath);
  }

  static #open(headerPath: string, dataPath: string): LuksVolume {
    const cryptsetup = new Cryptsetup();
    try {
      return new LuksVolume(cryptsetup, headerPath, dataPath);
    } catch (error) {
      cryptsetup[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * Makes the header of a new volume in a file; what the file holds is lost. The volume key is made by the library and
   * stays in it. Add key slots next.
   *
   * @param uuid also the partition's
   */
  static format(headerPath: string, dataPath: string, { uuid, label }: { uuid: string; label: string }): LuksVolume {
    const volume = LuksVolume.#open(headerPath, dataPath);
    try {
      volume.#format(uuid, label);
      return volume;
    } catch (error) {
      volume[Symbol.dispose]();
      throw error;
    }
  }

  /** Reads the header of an existing volume. Only for headers that `luks-header.ts` has accepted. */
  static load(headerPath: string, dataPath: string): LuksVolume {
    const volume = LuksVolume.#open(headerPath, dataPath);
    try {
      volume.#call(
        'load the LUKS2 header of',
        'int crypt_load(void *cd, const char *type, void *parameters)',
        ...[volume.#device, LUKS2, null],
      );
      return volume;
    } catch (error) {
      volume[Symbol.dispose]();
      throw error;
    }
  }

  /** Adds a key slot. `volumeKey` may be absent only for a volume that was just formatted: then the library has it. */
  addSlot({ slot, key }: SlotKey, volumeKey?: Uint8Array): void {
    const kdf = koffi.as(KEY_DERIVATION, koffi.pointer(this.#structs.pbkdf));
    this.#call('set the key derivation of', 'int crypt_set_pbkdf_type(void *cd, void *pbkdf)', this.#device, kdf);
    this.#call(
      `add key slot ${slot} to`,
      'int crypt_keyslot_add_by_volume_key(void *cd, int slot, void *volumeKey, size_t volumeKeySize, void *key, size_t keySize)',
      this.#device,
      slot,
      volumeKey ?? null,
      volumeKey?.length ?? 0,
      key,
      key.length,
    );
  }

  /** Removes a key slot and its key material. Remove its tokens first. */
  removeSlot(slot: number): void {
    this.#call(`remove key slot ${slot} of`, 'int crypt_keyslot_destroy(void *cd, int slot)', this.#device, slot);
  }

  removeToken(id: number): void {
    const prototype = 'int crypt_token_json_set(void *cd, int token, const char *json)';
    this.#call(`remove token ${id} of`, prototype, this.#device, id, null);
  }

  setToken(id: number, token: object): void {
    const prototype = 'int crypt_token_json_set(void *cd, int token, const char *json)';
    this.#call(`write token ${id} of`, prototype, this.#device, id, JSON.stringify(token));
  }

  /** The volume key, from a key slot. Wipe it after use. Throws `CryptsetupError` ({@link isWrongKey}). */
  volumeKey({ slot, key }: SlotKey): Buffer {
    const volumeKey = Buffer.alloc(KEY_BYTES);
    const size = Buffer.alloc(8);
    size.writeBigUInt64LE(BigInt(volumeKey.length));
    this.#call(
      `open key slot ${slot} of`,
      'int crypt_volume_key_get(void *cd, int slot, void *volumeKey, void *volumeKeySize, void *key, size_t keySize)',
      this.#device,
      slot,
      volumeKey,
      size,
      key,
      key.length,
    );
    return volumeKey;
  }

  /** Opens the data as `/dev/mapper/NAME`. */
  activate(name: string, volumeKey: Uint8Array): void {
    this.#call(
      'activate',
      'int crypt_activate_by_volume_key(void *cd, const char *name, void *volumeKey, size_t volumeKeySize, uint32_t flags)',
      this.#device,
      name,
      volumeKey,
      volumeKey.length,
      0,
    );
  }

  [Symbol.dispose](): void {
    if (this.#device !== 0n) this.#cryptsetup.bind('void crypt_free(void *cd)')(this.#device);
    this.#handle.fill(0);
    this.#cryptsetup[Symbol.dispose]();
  }

  get #device(): bigint {
    return this.#handle.readBigUInt64LE();
  }

  #call(action: string, prototype: string, ...args: NativeArgument[]): void {
    this.#cryptsetup.call(`${action} ${this.#path}`, prototype, ...args);
  }

  #format(uuid: string, label: string): void {
    this.#call(
      'set the metadata size of',
      'int crypt_set_metadata_size(void *cd, uint64_t metadata, uint64_t keyslots)',
      this.#device,
      METADATA_BYTES,
      HEADER_BYTES - 2 * METADATA_BYTES,
    );
    const offsetPrototype = 'int crypt_set_data_offset(void *cd, uint64_t sectors)';
    this.#call('set the data offset of', offsetPrototype, this.#device, HEADER_BYTES / SECTOR_512);
    // The parameters' strings and nested struct live as long as the call: koffi copies them for it.
    this.#call(
      'format',
      'int crypt_format(void *cd, const char *type, const char *cipher, const char *mode, const char *uuid, void *volumeKey, size_t volumeKeySize, void *parameters)',
      this.#device,
      LUKS2,
      CIPHER,
      CIPHER_MODE,
      uuid,
      null,
      KEY_BYTES,
      koffi.as(
        {
          pbkdf: KEY_DERIVATION,
          integrity: null,
          integrityParameters: null,
          dataAlignment: 0,
          dataDevice: null,
          sectorSize: SECTOR_BYTES,
          label,
          subsystem: null,
        },
        koffi.pointer(this.#structs.luks2),
      ),
    );
  }
}

/** Closes `/dev/mapper/NAME`. */
export function deactivateVolume(name: string): void {
  using cryptsetup = new Cryptsetup();
  cryptsetup.call(`close ${name}`, 'int crypt_deactivate(void *cd, const char *name)', null, name);
}
