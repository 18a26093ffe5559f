/**
 * What went over the bus between a machine and its TPM, from swtpm's log: every command and every response, as bytes. A
 * listener on the wires of a discrete TPM hears exactly this.
 *
 * It also tells what the PCRs are at any moment, whatever the system says of them: they begin as zeros and change only by
 * the extends that are in the recording.
 */
import { createHash } from 'node:crypto';
import { ByteReader } from '../../src/formats/byte-reader.ts';

export interface TpmExchange {
  readonly command: Buffer;
  /** Empty when the TPM had not answered yet. */
  readonly response: Buffer;
}

/** TPM_CC (TPM 2.0 Library Part 2, §6.5.2): those that a test looks for. */
export const TPM_CC = {
  nvUndefineSpace: 0x122,
  nvDefineSpace: 0x12a,
  nvWrite: 0x137,
  pcrEvent: 0x13c,
  pcrReset: 0x13d,
  startup: 0x144,
  nvRead: 0x14e,
  create: 0x153,
  unseal: 0x15e,
  startAuthSession: 0x176,
  pcrExtend: 0x182,
  eventSequenceComplete: 0x185,
} as const;

const HEADER_BYTES = 10;
const SUCCESS = 0;
const WITH_SESSIONS = 0x8002;
const STARTUP_CLEAR = 0;
const PCR_COUNT = 24;
/** Registers 17 to 22 begin as ones and are for dynamic launch; nothing here uses them. */
const FIRST_DYNAMIC = 17;
const LAST_DYNAMIC = 22;
const SHA256 = 0x000b;
/** By TPM_ALG_ID, in bytes. */
const DIGEST_BYTES: Readonly<Record<number, number>> = { 0x0004: 20, 0x000b: 32, 0x000c: 48, 0x000d: 64, 0x0012: 32 };

/** Reads swtpm's log (`--log level=20`); other lines than commands and responses are passed over. */
export function parseTpmRecording(log: string): TpmExchange[] {
  const exchanges: { command: Buffer; response: Buffer }[] = [];
  const blocks = log.matchAll(/^ *SWTPM_IO_(Read|Write): length (\d+)\n((?: (?:[0-9A-F]{2} )+\n?)*)/gm);
  for (const [, direction, length, hex] of blocks) {
    const bytes = Buffer.from((hex ?? '').replaceAll(/\s/g, ''), 'hex');
    // Half a message: swtpm is writing it just now.
    if (bytes.length !== Number(length)) continue;
    const last = exchanges.at(-1);
    if (direction === 'Read') exchanges.push({ command: bytes, response: Buffer.alloc(0) });
    else if (last !== undefined) last.response = bytes;
  }
  return exchanges;
}

export function commandCode({ command }: TpmExchange): number {
  return command.length < HEADER_BYTES ? 0 : command.readUInt32BE(6);
}

/** TPM_RC; 0 is success. Undefined while there is no response. */
export function responseCode({ response }: TpmExchange): number | undefined {
  return response.length < HEADER_BYTES ? undefined : response.readUInt32BE(6);
}

/**
 * The SHA-256 bank after these exchanges, lower-case hex by index, without registers 17 to 22.
 *
 * @throws Error at a command that changes PCRs in a way this does not follow: a wrong value would prove nothing
 */
export function replayExtends(exchanges: readonly TpmExchange[]): Record<string, string> {
  let values = freshPcrs();
  for (const exchange of exchanges) {
    if (responseCode(exchange) !== SUCCESS) continue;
    switch (commandCode(exchange)) {
      case TPM_CC.startup:
        if (exchange.command.readUInt16BE(HEADER_BYTES) === STARTUP_CLEAR) values = freshPcrs();
        break;
      case TPM_CC.pcrExtend:
        extend(values, readExtend(exchange.command));
        break;
      case TPM_CC.pcrEvent:
      case TPM_CC.pcrReset:
      case TPM_CC.eventSequenceComplete:
        throw new Error(`cannot replay the TPM's recording: command 0x${commandCode(exchange).toString(16)} is in it`);
    }
  }
  return Object.fromEntries([...values].map(([index, value]) => [String(index), value.toString('hex')]));
}

function freshPcrs(): Map<number, Buffer> {
  const indexes = Array.from({ length: PCR_COUNT }, (_, index) => index);
  return new Map(
    indexes.filter((index) => index < FIRST_DYNAMIC || index > LAST_DYNAMIC).map((index) => [index, Buffer.alloc(32)]),
  );
}

function extend(values: Map<number, Buffer>, { pcr, digest }: { pcr: number; digest: Uint8Array | undefined }): void {
  const before = values.get(pcr);
  if (before === undefined || digest === undefined) return;
  values.set(pcr, createHash('sha256').update(before).update(digest).digest());
}

/** TPM2_PCR_Extend: handle, authorization area, TPML_DIGEST_VALUES (Part 3, §22.2). */
function readExtend(command: Buffer): { pcr: number; digest: Uint8Array | undefined } {
  const reader = new ByteReader(command.subarray(HEADER_BYTES), 'TPM2_PCR_Extend');
  const u16 = (field: string) => Buffer.from(reader.take(2, field)).readUInt16BE(0);
  const u32 = (field: string) => Buffer.from(reader.take(4, field)).readUInt32BE(0);
  const pcr = u32('pcrHandle');
  if (command.readUInt16BE(0) === WITH_SESSIONS) reader.take(u32('authorizationSize'), 'authorizations');
  let digest: Uint8Array | undefined;
  for (let left = u32('digest count'); left > 0; left--) {
    const algorithm = u16('hashAlg');
    const size = DIGEST_BYTES[algorithm];
    if (size === undefined) throw new Error(`cannot replay the TPM's recording: hash 0x${algorithm.toString(16)}`);
    const bytes = reader.take(size, 'digest');
    if (algorithm === SHA256) digest = bytes;
  }
  return { pcr, digest };
}

/** Where `secret` appears in what went over the bus: `command 0x15e` or `response to 0x15e` of each exchange that has it. */
export function findInClear(exchanges: readonly TpmExchange[], secret: Uint8Array): string[] {
  if (secret.length < 16) throw new RangeError(`cannot look for ${secret.length} bytes: so few appear by chance`);
  return exchanges.flatMap((exchange) => {
    const code = `0x${commandCode(exchange).toString(16)}`;
    return [
      ...(exchange.command.includes(secret) ? [`command ${code}`] : []),
      ...(exchange.response.includes(secret) ? [`response to ${code}`] : []),
    ];
  });
}
