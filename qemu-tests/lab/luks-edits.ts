/**
 * A LUKS2 header as somebody with the disk rewrites it: any change of its JSON, with checksums that are right again. That
 * takes no key (LUKS2 On-Disk Format Specification 1.1, §2.2: the checksum is a hash, and protects from accidents only).
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { HEADER_BYTES, METADATA_BYTES } from '../../src/storage/luks-metadata.ts';
import type { Machine } from '../machine/machine.ts';
import { partitionOf } from './disk-edits.ts';

const BINARY_HEADER_BYTES = 4096;
const CHECKSUM = { offset: 448, bytes: 64 } as const;

/** What tests look at and change; the rest stays as it is. */
export interface LuksJson {
  keyslots: Record<string, { area: { offset: string; size: string }; [field: string]: unknown }>;
  segments: Record<string, Record<string, unknown>>;
  tokens: Record<string, Record<string, unknown>>;
  digests: Record<string, { keyslots: string[]; segments: string[]; [field: string]: unknown }>;
  config: Record<string, unknown>;
}

/** The header of the machine's data partition, key slots included. */
export async function readLuksHeader(machine: Machine): Promise<Buffer> {
  return machine.readDisk((await partitionOf(machine, 'DATA')).offset, HEADER_BYTES);
}

export async function writeLuksHeader(machine: Machine, header: Uint8Array): Promise<void> {
  assert.equal(header.length, HEADER_BYTES);
  await machine.writeDisk((await partitionOf(machine, 'DATA')).offset, header);
}

/** The metadata of the first copy. */
export function luksJson(header: Uint8Array): LuksJson {
  const area = Buffer.from(header).subarray(BINARY_HEADER_BYTES, METADATA_BYTES);
  return JSON.parse(area.toString('utf8', 0, area.indexOf(0))) as LuksJson;
}

/** The header with both copies' metadata changed, and valid. */
export function withLuksJson(header: Uint8Array, change: (json: LuksJson) => void): Buffer {
  const json = luksJson(header);
  change(json);
  const text = Buffer.from(JSON.stringify(json));
  assert.ok(text.length < METADATA_BYTES - BINARY_HEADER_BYTES, 'the changed metadata must fit its area');
  const changed = Buffer.from(header);
  for (const start of [0, METADATA_BYTES]) {
    const copy = changed.subarray(start, start + METADATA_BYTES);
    copy.fill(0, BINARY_HEADER_BYTES).set(text, BINARY_HEADER_BYTES);
    copy.fill(0, CHECKSUM.offset, CHECKSUM.offset + CHECKSUM.bytes);
    copy.set(createHash('sha256').update(copy).digest(), CHECKSUM.offset);
  }
  return changed;
}
