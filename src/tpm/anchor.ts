/**
 * The anchor: what the TPM itself remembers of the data volume, so that an older copy of the disk opens nothing.
 *
 *   version 1   u32
 *   share       32 bytes, part of the slot key and of the MAC's key
 *   current     MAC of the LUKS2 header
 *   next        MAC of the header that is being written, or zeros
 *
 * An NV index in the owner's range for each of two generations. It is read and written with an authorization value that
 * comes from the sealed node unlock key: whoever has unsealed that key has met the sealing policy, and nobody else reads
 * or writes. Giving the index the policy itself would say the same and cost three more commands at each boot (a policy
 * session is spent by its first use); and it could not be written for a PCR 7 that is only predicted. What keeps an old
 * key out is that each generation has a new key, hence a new authorization, and that only the owner's authorization
 * defines and undefines indices.
 */
export const ANCHOR_INDICES = [0x01a51a00, 0x01a51a01] as const;
export const ANCHOR_BYTES = 4 + 3 * 32;
export const SHARE_BYTES = 32;

const VERSION = 1;
const NONE = Buffer.alloc(32);

export interface Anchor {
  readonly share: Uint8Array;
  /** MAC of the header that counts. */
  readonly current: Uint8Array;
  /** MAC of the header that takes its place; undefined when none is being written. */
  readonly next: Uint8Array | undefined;
}

export function encodeAnchor({ share, current, next = NONE }: Anchor): Buffer {
  for (const [name, part] of Object.entries({ share, current, next })) {
    if (part.length !== 32) throw new RangeError(`cannot encode the anchor: ${name} has ${part.length} bytes, not 32`);
  }
  const version = Buffer.alloc(4);
  version.writeUInt32BE(VERSION);
  return Buffer.concat([version, share, current, next]);
}

/** Throws `RangeError` for another length or version. */
export function decodeAnchor(bytes: Uint8Array): Anchor {
  if (bytes.length !== ANCHOR_BYTES) {
    throw new RangeError(`cannot decode the anchor: it has ${bytes.length} bytes, not ${ANCHOR_BYTES}`);
  }
  const buffer = Buffer.from(bytes);
  const version = buffer.readUInt32BE();
  if (version !== VERSION) throw new RangeError(`cannot decode the anchor: its version is ${version}, not ${VERSION}`);
  const part = (index: number) => buffer.subarray(4 + 32 * index, 4 + 32 * (index + 1));
  return { share: part(0), current: part(1), next: part(2).equals(NONE) ? undefined : part(2) };
}
