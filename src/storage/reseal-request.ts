/**
 * A request to reseal the data partition at the next boot.
 *
 *   running node ── key of the volume ──▶ last block before the data ── next boot, before PCR 15 moves ──▶ new generation
 *
 *   0    "ashlar-reseal-1" and a NUL
 *   16   u32 length of the JSON
 *   20   JSON, then HMAC-SHA256(key, all before it), then zeros
 *
 * It lies outside the file system, because a file could be read only after mounting: then the kernel and e2fsck would work
 * on what an attacker could have put on the disk while the TPM still unseals. It is authenticated with a key that comes
 * from the volume key, since a forged one could seal the node to a PCR 7 of the attacker's choice. It names the generation
 * that it replaces, so an old one that is put back counts for nothing.
 */
import { createHmac, timingSafeEqual } from 'node:crypto';
import { chmod, mkdir, open, readFile, rename } from 'node:fs/promises';
import { dirname } from 'node:path';
import { type Checked, exactly, integer, object, text } from '../formats/json-shape.ts';
import type { DataDevice } from './data-device.ts';
import { HEADER_BYTES, REQUEST_OFFSET } from './luks-metadata.ts';

export const REQUEST_BYTES = HEADER_BYTES - REQUEST_OFFSET;
const MAGIC = Buffer.from('ashlar-reseal-1\0', 'latin1');
const MAC_BYTES = 32;
const HEAD_BYTES = MAGIC.length + 4;

const hex32 = text({ min: 64, max: 64, pattern: /^[0-9a-f]{64}$/ });
const requestShape = object(
  {
    version: exactly(1),
    generation: integer({ min: 1, max: 2 ** 31 }),
    reason: text({ min: 1, max: 200, pattern: /^\P{Cc}+$/u }),
  },
  { pcr7: hex32 },
);
const keyFileShape = object({
  version: exactly(1),
  partition: text({ min: 6, max: 64, pattern: /^\/[A-Za-z0-9/._-]+$/ }),
  generation: integer({ min: 1, max: 2 ** 31 }),
  key: hex32,
});

type KeyFile = Checked<typeof keyFileShape>;

export interface ResealRequest {
  /** 1 to 200 characters without control characters; for the log. */
  readonly reason: string;
  /** The PCR 7 that the machine will have, lower-case hex; without it, the one it has at the next boot. */
  readonly pcr7?: string;
}

/** The block with a request for a generation. Throws `ShapeError` for a reason or PCR that is not as it should be. */
export function encodeResealRequest(request: ResealRequest, generation: number, key: Uint8Array): Buffer {
  const { reason, pcr7 } = request;
  const checked = requestShape({ version: 1, generation, reason, ...(pcr7 === undefined ? {} : { pcr7 }) }, 'request');
  const json = Buffer.from(JSON.stringify(checked));
  const block = Buffer.alloc(REQUEST_BYTES);
  MAGIC.copy(block);
  block.writeUInt32BE(json.length, MAGIC.length);
  json.copy(block, HEAD_BYTES);
  const end = HEAD_BYTES + json.length;
  macOf(key, block.subarray(0, end)).copy(block, end);
  return block;
}

/**
 * The request in a block.
 *
 * @returns undefined when there is none (the block is zero); a string says why one does not count
 */
export function decodeResealRequest(
  block: Uint8Array,
  generation: number,
  key: Uint8Array,
): ResealRequest | string | undefined {
  const bytes = Buffer.from(block);
  if (bytes.every((byte) => byte === 0)) return undefined;
  if (bytes.length !== REQUEST_BYTES || !bytes.subarray(0, MAGIC.length).equals(MAGIC)) return 'it is none of ours';
  const end = HEAD_BYTES + bytes.readUInt32BE(MAGIC.length);
  if (end + MAC_BYTES > bytes.length) return 'its length is wrong';
  if (!timingSafeEqual(macOf(key, bytes.subarray(0, end)), bytes.subarray(end, end + MAC_BYTES))) {
    return 'it is not authentic: it was not written by this node, or not to its end';
  }
  const request = requestShape(JSON.parse(bytes.toString('utf8', HEAD_BYTES, end)), 'request');
  if (request.generation !== generation) {
    return `it is for generation ${request.generation}, and generation ${generation} opened the volume: it was done, or is an old one`;
  }
  return { reason: request.reason, ...(request.pcr7 === undefined ? {} : { pcr7: request.pcr7 }) };
}

function macOf(key: Uint8Array, bytes: Uint8Array): Buffer {
  return createHmac('sha256', key).update(bytes).digest();
}

/** Keeps for the running node what {@link requestReseal} needs. `key` comes from the volume key. */
export async function keepRequestKey(
  dataDirectory: string,
  { partition, generation, key }: { partition: string; generation: number; key: Uint8Array },
): Promise<void> {
  const content: KeyFile = { version: 1, partition, generation, key: Buffer.from(key).toString('hex') };
  const text = `${JSON.stringify(content)}\n`;
  const path = keyPath(dataDirectory);
  await mkdir(dirname(path), { mode: 0o700, recursive: true });
  const kept = await readFile(path, 'utf8').catch(() => '');
  if (kept === text) return;
  const temporary = `${path}.new`;
  const file = await open(temporary, 'w', 0o600);
  try {
    await file.writeFile(text);
    await file.sync();
  } finally {
    await file.close();
  }
  await chmod(temporary, 0o600);
  await rename(temporary, path);
}

/**
 * Asks for the data partition to be resealed at the next boot: to the epoch of the image that boots then, and to the PCR 7
 * that the machine has then, or will have when `request.pcr7` says so. A second request replaces the first.
 *
 * @param dataDirectory where the data partition is mounted, `/data`
 *
 * Throws `ShapeError` for a request that is not as it should be, and an error when this node has no TPM to reseal to.
 */
export async function requestReseal(dataDirectory: string, request: ResealRequest): Promise<void> {
  const { partition, generation, key } = await readRequestKey(dataDirectory);
  const keyBytes = Buffer.from(key, 'hex');
  const block = encodeResealRequest(request, generation, keyBytes);
  keyBytes.fill(0);
  const device = await open(partition, 'r+');
  try {
    await device.write(block, 0, block.length, REQUEST_OFFSET);
    await device.sync();
  } finally {
    await device.close();
  }
}

/** Forgets a request. */
export function clearResealRequest(device: DataDevice): void {
  if (device.read(REQUEST_OFFSET, REQUEST_BYTES).every((byte) => byte === 0)) return;
  device.write(REQUEST_OFFSET, Buffer.alloc(REQUEST_BYTES));
}

/** True from {@link requestReseal} until a boot has carried it out. */
export async function isResealRequested(dataDirectory: string): Promise<boolean> {
  const { partition } = await readRequestKey(dataDirectory);
  const device = await open(partition, 'r');
  try {
    const { buffer } = await device.read(Buffer.alloc(REQUEST_BYTES), 0, REQUEST_BYTES, REQUEST_OFFSET);
    return buffer.some((byte) => byte !== 0);
  } finally {
    await device.close();
  }
}

async function readRequestKey(dataDirectory: string): Promise<KeyFile> {
  const path = keyPath(dataDirectory);
  let content: string;
  try {
    content = await readFile(path, 'utf8');
  } catch (error) {
    throw new Error(`cannot ask for resealing: this node's data is not sealed to a TPM (there is no ${path})`, {
      cause: error,
    });
  }
  return keyFileShape(JSON.parse(content), path);
}

function keyPath(dataDirectory: string): string {
  return `${dataDirectory}/node/reseal-key.json`;
}
