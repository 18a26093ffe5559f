/**
 * TPM2_PCR_Extend by hand: one fixed command to /dev/tpm0 (TPM 2.0 part 3, §22.2).
 *
 * PID 1 extends PCRs at moments when nothing else may run yet: in the initramfs, which does not carry tpm2-tss (it would
 * grow the measured file for one command), and before untrusted input is parsed. A PCR extend needs no key and keeps no
 * secret, so a password session with an empty password is all the authorisation there is. Everything else that speaks
 * to the TPM goes through src/tpm in a process of its own.
 */
import { type FileHandle, open } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';

const TPM_ST_SESSIONS = 0x8002;
const TPM_CC_PCR_EXTEND = 0x0000_0182;
const TPM_RS_PW = 0x4000_0009;
const TPM_ALG_SHA256 = 0x000b;
const COMMAND_BYTES = 65;
const RESPONSE_HEADER_BYTES = 10;
const TPM_RC_RETRY = 0x922;
const ATTEMPTS = 5;
/** An extend takes milliseconds; a discrete TPM that makes a key for someone else is busy for seconds. */
const DEADLINE_MS = 15_000;

/** The command's bytes for the SHA-256 bank. `digest` has 32 bytes. */
export function pcrExtendCommand(pcr: number, digest: Uint8Array): Uint8Array {
  if (digest.length !== 32) throw new RangeError(`cannot extend PCR ${pcr}: the digest has ${digest.length} bytes`);
  const command = Buffer.alloc(COMMAND_BYTES);
  command.writeUInt16BE(TPM_ST_SESSIONS, 0);
  command.writeUInt32BE(COMMAND_BYTES, 2);
  command.writeUInt32BE(TPM_CC_PCR_EXTEND, 6);
  command.writeUInt32BE(pcr, 10);
  command.writeUInt32BE(9, 14); // size of the authorisation area: handle, empty nonce, attributes, empty password
  command.writeUInt32BE(TPM_RS_PW, 18);
  command.writeUInt32BE(1, 27); // one digest
  command.writeUInt16BE(TPM_ALG_SHA256, 31);
  command.set(digest, 33);
  return command;
}

/** The response code of a TPM's answer; 0 is success. */
export function responseCode(response: Uint8Array): number {
  const bytes = Buffer.from(response.buffer, response.byteOffset, response.byteLength);
  if (bytes.length < RESPONSE_HEADER_BYTES || bytes.readUInt32BE(2) !== bytes.length)
    throw new Error(`cannot read the TPM's answer: ${bytes.length} bytes are not one response`);
  return bytes.readUInt32BE(6);
}

/**
 * Extends a PCR of the SHA-256 bank.
 *
 * @returns false when the machine has no TPM. Throws when it has one that does not do it: then what is measured later
 *   would mean something else, and nothing may be unsealed.
 */
export async function extendPcr(pcr: number, digest: Uint8Array, device = '/dev/tpm0'): Promise<boolean> {
  let tpm: FileHandle;
  try {
    tpm = await open(device, 'r+');
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return false;
    throw new Error(`cannot extend PCR ${pcr}: ${device} does not open`, { cause: error });
  }
  try {
    for (let attempt = 1; ; attempt += 1) {
      await tpm.write(pcrExtendCommand(pcr, digest));
      const response = Buffer.alloc(4096);
      const { bytesRead } = await tpm.read(response, 0, response.length, null);
      const code = responseCode(response.subarray(0, bytesRead));
      if (code === 0) return true;
      // RETRY means that the TPM did nothing and wants the same command again.
      if (code !== TPM_RC_RETRY || attempt === ATTEMPTS)
        throw new Error(`cannot extend PCR ${pcr}: the TPM answered 0x${code.toString(16)}`);
    }
  } finally {
    await tpm.close();
  }
}

export interface MeasureOptions {
  /** Stage 1 found a TPM: then there has to be one. */
  readonly hasTpm: boolean;
  /** @default `extendPcr` */
  readonly extend?: (pcr: number, digest: Uint8Array) => Promise<boolean>;
  /** @default 15 000 */
  readonly deadlineMs?: number;
}

/**
 * Extends a PCR as `extendPcr` does, or throws: also when the TPM that the machine started with is gone, which must not
 * pass for a machine without one, and when it does not answer.
 */
export async function measure(
  pcr: number,
  digest: Uint8Array,
  { hasTpm, extend = extendPcr, deadlineMs = DEADLINE_MS }: MeasureOptions,
): Promise<void> {
  const answered = new AbortController();
  try {
    const outcome = await Promise.race([
      extend(pcr, digest),
      sleep(deadlineMs, 'late' as const, { signal: answered.signal }),
    ]);
    if (outcome === 'late') throw new Error(`cannot extend PCR ${pcr}: no answer of the TPM within ${deadlineMs} ms`);
    if (!outcome && hasTpm)
      throw new Error(`cannot extend PCR ${pcr}: there is no /dev/tpm0, though this machine started with a TPM`);
  } finally {
    answered.abort();
  }
}
