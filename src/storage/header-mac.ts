/**
 * The MAC of a LUKS2 header, made with a key that only this TPM in this state gives away, and kept in the TPM. Pure.
 *
 *   key   HKDF-SHA256(node unlock key ‖ share, salt = partition UUID, "ashlar/header-mac/1")
 *   MAC   HMAC-SHA256(key, length ‖ part, …)   parts: one header copy without what differs between copies, then the key
 *                                              slots' areas, ascending by slot
 *
 * It covers the exact bytes of the JSON and the sequence number, so neither another header of our own shape nor an older
 * one of our own making passes. It covers the areas of the slots in use, so nobody can change key material and let the
 * node find out; unused areas are not covered, since the next generation's is written there before it counts.
 */
import { createHmac, hkdfSync, timingSafeEqual } from 'node:crypto';
import { uuidBytes } from './data-key.ts';
import { type AcceptedHeader, authenticatedParts } from './luks-header.ts';

/** A checked header, in memory. */
export interface DataHeader {
  readonly bytes: Uint8Array;
  readonly accepted: AcceptedHeader;
}

/** Wipe it after use. */
export function deriveHeaderMacKey(nodeUnlockKey: Uint8Array, share: Uint8Array, partitionUuid: string): Buffer {
  for (const [name, part] of Object.entries({ 'the node unlock key': nodeUnlockKey, 'the share': share })) {
    if (part.length !== 32) throw new RangeError(`cannot derive the MAC key: ${name} has ${part.length} bytes, not 32`);
  }
  const input = Buffer.concat([nodeUnlockKey, share]);
  const key = hkdfSync('sha256', input, uuidBytes(partitionUuid), 'ashlar/header-mac/1', 32);
  input.fill(0);
  return Buffer.from(key);
}

export function headerMac(key: Uint8Array, { bytes, accepted }: DataHeader): Buffer {
  const mac = createHmac('sha256', key);
  for (const part of authenticatedParts(bytes, accepted)) {
    const length = Buffer.alloc(8);
    length.writeBigUInt64BE(BigInt(part.length));
    mac.update(length).update(part);
  }
  return mac.digest();
}

/** Which of the anchor's MACs a header has; undefined when neither. */
export function matchHeader(
  mac: Uint8Array,
  anchor: { readonly current: Uint8Array; readonly next: Uint8Array | undefined },
): 'current' | 'next' | undefined {
  if (timingSafeEqual(mac, anchor.current)) return 'current';
  if (anchor.next !== undefined && timingSafeEqual(mac, anchor.next)) return 'next';
  return undefined;
}
