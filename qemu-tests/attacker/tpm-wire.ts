/**
 * A TPM spoken to as an attacker does: bytes into the device and bytes out of it, with none of the node's own code between
 * that could refuse first (TPM 2.0 Library, Parts 1 to 3).
 */
import { randomBytes } from 'node:crypto';
import { openSync, readSync, writeSync } from 'node:fs';

const TAG = { noSessions: 0x8001, sessions: 0x8002 } as const;
export const HANDLE = { owner: 0x40000001, null: 0x40000007, password: 0x40000009 } as const;
const COMMAND = {
  evictControl: 0x120,
  nvUndefineSpace: 0x122,
  nvDefineSpace: 0x12a,
  nvRead: 0x14e,
  pcrReset: 0x13d,
  load: 0x157,
  unseal: 0x15e,
  loadExternal: 0x167,
  policyAuthorize: 0x16a,
  startAuthSession: 0x176,
  verifySignature: 0x177,
  policyPcr: 0x17f,
  pcrRead: 0x17e,
  pcrExtend: 0x182,
} as const;
const SESSION_POLICY = 1;
const ALG = { sha256: 0x000b, null: 0x0010, rsassa: 0x0014 } as const;
const KEEP_SESSION = 1;
const RESPONSE_BYTES = 4096;
const HEADER_BYTES = 10;

/** The TPM's answer to what it did not do. */
export class RefusedByTpm extends Error {
  override readonly name = 'RefusedByTpm';
  /** TPM_RC. */
  readonly code: number;

  constructor(command: string, code: number) {
    super(`${command} 0x${code.toString(16)}`);
    this.code = code;
  }
}

const u8 = (value: number) => Buffer.of(value);
const u16 = (value: number) => Buffer.of(value >> 8, value & 0xff);
const u32 = (value: number) => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};
const sized = (bytes: Uint8Array) => Buffer.concat([u16(bytes.length), bytes]);
/** One authorization: of a password when the session is that of passwords, else of a policy session. */
const authorization = (session: number, password: Uint8Array = Buffer.alloc(0)) =>
  Buffer.concat([
    u32(session),
    sized(Buffer.alloc(0)),
    u8(session === HANDLE.password ? 0 : KEEP_SESSION),
    sized(password),
  ]);

/** Sends a command, and gives the response. */
export type Transmit = (command: Uint8Array) => Buffer;

/** Through the kernel's device, which is closed when this process ends. */
export function transmitToDevice(path: string): Transmit {
  const device = openSync(path, 'r+');
  return (command) => {
    writeSync(device, command);
    const response = Buffer.alloc(RESPONSE_BYTES);
    return response.subarray(0, readSync(device, response));
  };
}

export class TpmWire {
  readonly #transmit: Transmit;

  constructor(transmit: Transmit) {
    this.#transmit = transmit;
  }

  pcrRead(index: number): string {
    return this.#send('pcrRead', [], [selection([index])])
      .subarray(-32)
      .toString('hex');
  }

  pcrExtend(index: number, digest: Uint8Array): void {
    this.#send('pcrExtend', [index], [u32(1), u16(ALG.sha256), digest], [HANDLE.password]);
  }

  pcrReset(index: number): void {
    this.#send('pcrReset', [index], [], [HANDLE.password]);
  }

  /** The contents of the index; read by the index's own authorization or the owner's, both with an empty password. */
  nvRead(index: number, by: 'index' | 'owner' | { policySession: number }, size: number): Buffer {
    const session = typeof by === 'string' ? HANDLE.password : by.policySession;
    const authorized = by === 'owner' ? HANDLE.owner : index;
    return this.#send('nvRead', [authorized, index], [u16(size), u16(0)], [session]).subarray(2);
  }

  nvUndefine(index: number): void {
    this.#send('nvUndefineSpace', [HANDLE.owner, index], [], [HANDLE.password]);
  }

  /** Defines an index that anybody reads and writes with its empty password. */
  nvDefine(index: number, size: number): void {
    const attributes = 0x0004_0004; // AUTHREAD, AUTHWRITE
    const publicArea = Buffer.concat([u32(index), u16(ALG.sha256), u32(attributes), sized(Buffer.alloc(0)), u16(size)]);
    this.#send('nvDefineSpace', [HANDLE.owner], [sized(Buffer.alloc(0)), sized(publicArea)], [HANDLE.password]);
  }

  /** Removes the persistent object, so that one of the caller's could take its place. */
  evict(persistent: number): void {
    this.#send('evictControl', [HANDLE.owner, persistent], [u32(persistent)], [HANDLE.password]);
  }

  load(parent: number, sealed: { publicArea: Uint8Array; privateArea: Uint8Array }): number {
    const answer = this.#send(
      'load',
      [parent],
      [sized(sealed.privateArea), sized(sealed.publicArea)],
      [HANDLE.password],
    );
    return answer.readUInt32BE(0);
  }

  unseal(object: number, policySession: number): Buffer {
    return this.#send('unseal', [object], [], [policySession]).subarray(2);
  }

  policySession(): number {
    const nonce = sized(randomBytes(16));
    const rest = [nonce, u16(0), u8(SESSION_POLICY), u16(ALG.null), u16(ALG.sha256)];
    return this.#send('startAuthSession', [HANDLE.null, HANDLE.null], rest).readUInt32BE(0);
  }

  policyPcr(session: number, pcrs: readonly number[]): void {
    this.#send('policyPcr', [session], [u16(0), selection(pcrs)]);
  }

  /** PolicyAuthorize with a signature of the policy key, whatever the session's digest is. */
  policyAuthorize(
    session: number,
    signed: { publicArea: Uint8Array; keyName: Uint8Array; policy: Uint8Array; policyRef: Uint8Array },
    digest: Uint8Array,
    signature: Uint8Array,
  ): void {
    const key = this.#send('loadExternal', [], [u16(0), sized(signed.publicArea), u32(HANDLE.owner)]).readUInt32BE(0);
    const rsassa = Buffer.concat([u16(ALG.rsassa), u16(ALG.sha256), sized(signature)]);
    const ticket = this.#send('verifySignature', [key], [sized(digest), rsassa]);
    this.#send(
      'policyAuthorize',
      [session],
      [...[sized(signed.policy), sized(signed.policyRef), sized(signed.keyName), ticket]],
    );
  }

  /** @returns what follows the response's header and, with sessions, the size of its parameters */
  #send(
    name: keyof typeof COMMAND,
    handles: readonly number[],
    parameters: readonly Uint8Array[],
    sessions: readonly number[] = [],
  ): Buffer {
    const area = Buffer.concat(sessions.map((session) => authorization(session)));
    const body = Buffer.concat([
      ...handles.map(u32),
      ...(sessions.length === 0 ? [] : [u32(area.length), area]),
      ...parameters,
    ]);
    const tag = sessions.length === 0 ? TAG.noSessions : TAG.sessions;
    const head = [u16(tag), u32(HEADER_BYTES + body.length), u32(COMMAND[name])];
    const response = this.#transmit(Buffer.concat([...head, body]));
    const code = response.readUInt32BE(6);
    if (code !== 0) throw new RefusedByTpm(name, code);
    const answer = response.subarray(HEADER_BYTES);
    // A loaded object's handle stands before the size of the parameters.
    if (sessions.length === 0 || name === 'load') return answer;
    return answer.subarray(4, 4 + answer.readUInt32BE(0));
  }
}

/** TPML_PCR_SELECTION of the SHA-256 bank. */
function selection(pcrs: readonly number[]): Buffer {
  const bitmap = Buffer.alloc(3);
  for (const pcr of pcrs) bitmap.writeUInt8((bitmap[pcr >> 3] ?? 0) | (1 << (pcr & 7)), pcr >> 3);
  return Buffer.concat([u32(1), u16(ALG.sha256), u8(3), bitmap]);
}
