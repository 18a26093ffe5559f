/**
 * The JSON of a LUKS2 header that Ashlar accepts (specification 1.1, 3): nothing optional, nothing unknown. Pure.
 *
 *   slot 0   generation A of the node's key      tokens 0, 1
 *   slot 1   the recovery key                    token 2
 *   slot 2   generation B of the node's key      tokens 3, 4
 *
 * Slot 1 is always there, and at least one of the others; both are only while a node is resealed.
 */
import {
  type Check,
  type Checked,
  dictionary,
  exactly,
  integer,
  list,
  object,
  oneOf,
  ShapeError,
  text,
} from '../formats/json-shape.ts';
import { type DataToken, decodeToken, GENERATION, PLACES, RECOVERY_SLOT, TOKEN_ID } from './luks-tokens.ts';

export const CIPHER = 'aes';
export const CIPHER_MODE = 'xts-plain64';
/** Two AES-256 keys of XTS. */
export const KEY_BYTES = 64;
export const SECTOR_BYTES = 4096;
/** One copy of binary header and JSON. */
export const METADATA_BYTES = 16 * 1024;
/** All before the data: room for seven key slots, so that a slot can be replaced without a moment without one. */
export const HEADER_BYTES = 2 * 1024 * 1024;
/** The last block before the data is no key slot's: a request to reseal waits there (`reseal-request.ts`). */
export const REQUEST_OFFSET = HEADER_BYTES - 4096;
/** Where areas of key slots may lie. */
export const SLOT_AREAS = { start: 2 * METADATA_BYTES, end: REQUEST_OFFSET } as const;

const JSON_BYTES = METADATA_BYTES - 4096;
const ENCRYPTION = `${CIPHER}-${CIPHER_MODE}`;
/** 4000 stripes of the key, in whole blocks. */
const SLOT_AREA_BYTES = Math.ceil((KEY_BYTES * 4000) / 4096) * 4096;

/** A header that is not opened. The message says what is wrong with it. */
export class LuksHeaderError extends Error {
  override readonly name = 'LuksHeaderError';
}

/** Where a key slot's key material lies, in bytes from the start of the partition. */
export interface SlotArea {
  readonly slot: number;
  readonly offset: number;
  readonly size: number;
}

/** A 64-bit number as LUKS2 writes it: decimal text. */
function decimal(expected: number): Check<number> {
  return (value, path) => {
    if (value !== `${expected}`) throw new ShapeError(path, `must be "${expected}", not ${JSON.stringify(value)}`);
    return expected;
  };
}

const base64 = text({ min: 1, max: 1024, pattern: /^[A-Za-z0-9+/]+={0,2}$/ });
const pbkdf2 = {
  type: oneOf('pbkdf2'),
  hash: oneOf('sha256'),
  iterations: integer({ min: 1000, max: 10_000_000 }),
  salt: base64,
};

const keyslot = object({
  type: oneOf('luks2'),
  key_size: exactly(KEY_BYTES),
  af: object({ type: oneOf('luks1'), stripes: exactly(4000), hash: oneOf('sha256') }),
  area: object({
    type: oneOf('raw'),
    offset: text({ max: 16, pattern: /^[1-9][0-9]*$/ }),
    size: text({ max: 16, pattern: /^[1-9][0-9]*$/ }),
    encryption: oneOf(ENCRYPTION),
    key_size: exactly(KEY_BYTES),
  }),
  kdf: object(pbkdf2),
});

const metadata = object({
  keyslots: dictionary(/^[012]$/, keyslot, { max: 3 }),
  tokens: (value: unknown) => value,
  segments: object({
    '0': object({
      type: oneOf('crypt'),
      offset: decimal(HEADER_BYTES),
      size: oneOf('dynamic'),
      iv_tweak: oneOf('0'),
      encryption: oneOf(ENCRYPTION),
      sector_size: exactly(SECTOR_BYTES),
    }),
  }),
  digests: object({
    '0': object({
      ...pbkdf2,
      keyslots: list(oneOf('0', '1', '2'), { max: 3 }),
      segments: list(oneOf('0'), { max: 1 }),
      digest: base64,
    }),
  }),
  config: object({ json_size: decimal(JSON_BYTES), keyslots_size: decimal(HEADER_BYTES - 2 * METADATA_BYTES) }),
});

/** Checks the JSON of a header copy. Throws `LuksHeaderError`. */
export function acceptMetadata(area: Uint8Array): { readonly tokens: DataToken[]; readonly slotAreas: SlotArea[] } {
  const end = area.indexOf(0);
  if (end === -1) throw new LuksHeaderError('its JSON does not end');
  const bytes = area.subarray(0, end);
  let parsed: unknown;
  try {
    parsed = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch (error) {
    throw new LuksHeaderError('its metadata is not JSON', { cause: error });
  }
  // JSON.parse keeps the last of two equal keys and libcryptsetup might keep the other: only our own spelling passes.
  try {
    const accepted = metadata(parsed, '');
    requireNoDuplicates(Buffer.from(bytes).toString('utf8'), parsed);
    const slotAreas = acceptSlots(accepted);
    return { tokens: acceptTokens(accepted.tokens, new Set(slotAreas.map(({ slot }) => slot))), slotAreas };
  } catch (error) {
    if (!(error instanceof ShapeError)) throw error;
    throw new LuksHeaderError(`in its metadata, ${error.message}`, { cause: error });
  }
}

/** As many keys in the text as in the parsed value: counted, since a second equal key vanishes in parsing. */
function requireNoDuplicates(source: string, parsed: unknown): void {
  let inText = 0;
  JSON.stringify(parsed, (_key, value: unknown) => {
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) inText -= Object.keys(value).length;
    return value;
  });
  for (const _ of source.matchAll(/"(?:[^"\\]|\\.)*"\s*:/g)) inText += 1;
  if (inText !== 0) throw new ShapeError('', 'has a key twice');
}

function acceptSlots({ keyslots, digests }: Checked<typeof metadata>): SlotArea[] {
  const areas = Object.entries(keyslots).map(([name, { area }]) => ({
    slot: Number(name),
    offset: Number(area.offset),
    size: Number(area.size),
  }));
  const slots = new Set(areas.map(({ slot }) => slot));
  if (!slots.has(RECOVERY_SLOT) || slots.size < 2) {
    throw new ShapeError('keyslots', `are ${[...slots].join(', ')}, not ${RECOVERY_SLOT} and one or two of the node`);
  }
  for (const { offset, size } of areas) {
    const isInside = offset >= SLOT_AREAS.start && offset + size <= SLOT_AREAS.end;
    if (size !== SLOT_AREA_BYTES || offset % 4096 !== 0 || !isInside) {
      throw new ShapeError('keyslots', `have an area of ${size} bytes at ${offset}`);
    }
  }
  const byOffset = areas.toSorted((a, b) => a.offset - b.offset);
  for (const [index, { offset, size }] of byOffset.entries()) {
    const next = byOffset[index + 1];
    if (next !== undefined && offset + size > next.offset) throw new ShapeError('keyslots', 'have areas that overlap');
  }
  const { keyslots: bound, segments } = digests['0'];
  const isEachBound = bound.length === slots.size && bound.every((name) => slots.has(Number(name)));
  if (!isEachBound || new Set(bound).size !== bound.length || segments.length !== 1) {
    throw new ShapeError('digests.0', 'must bind each key slot and the segment, once');
  }
  return areas.toSorted((a, b) => a.slot - b.slot);
}

/** Each token at its number, for the slots that there are. */
function acceptTokens(value: unknown, slots: ReadonlySet<number>): DataToken[] {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ShapeError('tokens', 'must be an object');
  }
  const found = new Map<number, DataToken>();
  for (const [id, token] of Object.entries(value)) {
    if (!/^[0-4]$/.test(id)) throw new ShapeError(`tokens.${JSON.stringify(id.slice(0, 20))}`, 'is no token of ours');
    found.set(Number(id), decodeToken(token, `tokens.${id}`));
  }
  const isUnsealed = found.get(GENERATION.a.tokenIds[0])?.type === 'ashlar-unsealed';
  const expected = new Map<number, readonly [type: DataToken['type'], slot: number]>();
  expected.set(TOKEN_ID.recovery, ['ashlar-recovery', RECOVERY_SLOT]);
  for (const place of PLACES) {
    const { slot, tokenIds } = GENERATION[place];
    if (!slots.has(slot)) continue;
    if (isUnsealed) expected.set(tokenIds[0], ['ashlar-unsealed', slot]);
    else for (const id of tokenIds) expected.set(id, ['ashlar-tpm2', slot]);
  }
  for (const [id, [type, slot]] of expected) {
    const token = found.get(id);
    if (token?.type === type && token.keyslots[0] === `${slot}`) continue;
    throw new ShapeError(`tokens.${id}`, `must be of type ${type} for key slot ${slot}`);
  }
  if (found.size !== expected.size)
    throw new ShapeError('tokens', `must be numbered ${[...expected.keys()].join(', ')}`);
  return [...found].toSorted(([a], [b]) => a - b).map(([, token]) => token);
}
