import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import fc from 'fast-check';
import { openDataVolume } from './data-volume.ts';
import { type FixtureVolume, fixtureTpm2Token, madeHeader, makeVolume } from './data-volume-fixture.ts';
import { editedHeader, hasLeftovers } from './header-edit.ts';
import { acceptHeader, copyRange, type HeaderCopy, isolateAcceptedCopy } from './luks-header.ts';
import { HEADER_BYTES, LuksHeaderError, METADATA_BYTES } from './luks-metadata.ts';
import { sealedGenerations } from './luks-tokens.ts';

const { bytes: HEADER, uuid: UUID } = madeHeader();
const JSON_START = 4096;

type Json = { [key: string]: Json } | Json[] | string | number | boolean | null;

function jsonOf(header: Uint8Array): Json {
  const text = Buffer.from(header.subarray(JSON_START, METADATA_BYTES)).toString('utf8');
  return JSON.parse(text.slice(0, text.indexOf('\0'))) as Json;
}

/** Writes a copy's checksum again, as an attacker with the disk can. */
function sum(header: Buffer, copy: HeaderCopy): void {
  const [start, end] = copyRange(copy);
  header.fill(0, start + 448, start + 512);
  createHash('sha256')
    .update(header.subarray(start, end))
    .digest()
    .copy(header, start + 448);
}

/** The header with other JSON text in both copies, with good checksums. */
function withText(text: string): Buffer {
  const header = Buffer.from(HEADER);
  for (const copy of ['primary', 'secondary'] as const) {
    const [start, end] = copyRange(copy);
    header.fill(0, start + JSON_START, end);
    header.write(text, start + JSON_START);
    sum(header, copy);
  }
  return header;
}

type JsonObject = { [key: string]: Json };

/** The object at a path like `segments/0`. */
function at(root: Json, path: string): JsonObject {
  let found = root;
  for (const key of path === '' ? [] : path.split('/')) found = (found as JsonObject)[key] ?? null;
  return found as JsonObject;
}

/** The header with one value of its metadata replaced, removed (`undefined`) or added. */
function withValue(path: string, value: Json | undefined): Buffer {
  const json = structuredClone(jsonOf(HEADER));
  const slash = path.lastIndexOf('/');
  const parent = at(json, path.slice(0, Math.max(0, slash)));
  const key = path.slice(slash + 1);
  if (value === undefined) delete parent[key];
  else parent[key] = value;
  return withText(JSON.stringify(json));
}

const accept = (bytes: Uint8Array) => acceptHeader(bytes, { uuid: UUID });
const refused = (message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof LuksHeaderError, String(error));
  assert.match(error.message, message);
  return true;
};

test('the header that we make is accepted, with its tokens', () => {
  const { stale, tokens } = accept(HEADER);
  assert.equal(stale, undefined);
  assert.deepEqual(tokens.map(({ type }) => type).sort(), ['ashlar-recovery', 'ashlar-tpm2', 'ashlar-tpm2']);
});

test('the same header, written by the mutation code of this test, is accepted', () => {
  accept(withText(JSON.stringify(jsonOf(HEADER))));
});

const ORIGINAL = jsonOf(HEADER);

/** The header of a node that is being resealed. */
function withBothGenerations(volume: FixtureVolume): Buffer {
  const bytes = readFileSync(volume.path).subarray(0, HEADER_BYTES);
  const header = { bytes, accepted: accept(bytes) };
  using opened = openDataVolume(volume.path, header, { slot: 0, key: volume.slotKey }, { path: volume.directory });
  const token = fixtureTpm2Token('b', 2);
  const add = { place: 'b' as const, slotKey: Buffer.alloc(32, 1), tokens: [token, token] };
  const { volumeKey } = opened;
  return Buffer.from(editedHeader(header, volume.path, { add, volumeKey }, { path: volume.directory }).bytes);
}

test('a header with both generations is accepted, the newer first; with one removed, the other is left', () => {
  using volume = makeVolume();
  const bytes = withBothGenerations(volume);
  const accepted = accept(bytes);
  assert.deepEqual(
    sealedGenerations(accepted.tokens).map(({ place, number }) => [place, number]),
    [
      ['b', 2],
      ['a', 1],
    ],
  );
  assert.deepEqual(
    accepted.slotAreas.map(({ slot }) => slot),
    [0, 1, 2],
  );
  const change = { remove: ['a' as const], volumeKey: new Uint8Array(64) };
  const left = editedHeader({ bytes, accepted }, volume.path, change, { path: volume.directory });
  assert.deepEqual(
    sealedGenerations(left.accepted.tokens).map(({ place }) => place),
    ['b'],
  );
  assert.equal(hasLeftovers(left), false);
});

const MUTATIONS: readonly [name: string, path: string, value: Json | undefined][] = [
  ['a null cipher of the segment', 'segments/0/encryption', 'cipher_null-ecb'],
  ['another cipher of the segment', 'segments/0/encryption', 'aes-cbc-essiv:sha256'],
  ['a linear segment', 'segments/0/type', 'linear'],
  ['a second segment', 'segments/1', { ...at(ORIGINAL, 'segments/0'), offset: '8388608' }],
  ['a segment of fixed size', 'segments/0/size', '4096'],
  ['a segment elsewhere', 'segments/0/offset', '8388608'],
  ['a segment with 512 byte sectors', 'segments/0/sector_size', 512],
  ['a segment with another tweak', 'segments/0/iv_tweak', '8'],
  ['a segment with integrity', 'segments/0/integrity', { type: 'none' }],
  ['a segment with flags', 'segments/0/flags', ['in-reencryption']],
  ['no segment', 'segments/0', undefined],
  ['a third key slot', 'keyslots/2', at(ORIGINAL, 'keyslots/1')],
  ['a fourth key slot', 'keyslots/3', at(ORIGINAL, 'keyslots/1')],
  ['a token of a place that has no slot', 'tokens/4', at(ORIGINAL, 'tokens/1')],
  ['a missing recovery slot', 'keyslots/1', undefined],
  ['a reencryption slot', 'keyslots/0/type', 'reencrypt'],
  ['a slot with a null cipher', 'keyslots/0/area/encryption', 'cipher_null-ecb'],
  ['a slot with a short key', 'keyslots/0/key_size', 32],
  ['a slot with argon2', 'keyslots/0/kdf/type', 'argon2id'],
  ['a slot with costly iterations', 'keyslots/0/kdf/iterations', 2 ** 31],
  ['a slot with a priority', 'keyslots/0/priority', 0],
  ['a slot area over the metadata', 'keyslots/0/area/offset', '4096'],
  ['a slot area over the data', 'keyslots/0/area/offset', '2031616'],
  ['slot areas that overlap', 'keyslots/0/area/offset', at(ORIGINAL, 'keyslots/1/area')['offset']],
  ['requirements', 'config/requirements', { mandatory: ['online-reencrypt'] }],
  ['flags', 'config/flags', ['allow-discards']],
  ['another size of the slots', 'config/keyslots_size', '4096'],
  ['a digest without the recovery slot', 'digests/0/keyslots', ['0']],
  ['a digest that names one slot twice', 'digests/0/keyslots', ['0', '0']],
  ['a digest without the segment', 'digests/0/segments', []],
  ['a second digest', 'digests/1', at(ORIGINAL, 'digests/0')],
  ['a foreign token', 'tokens/3', { type: 'luks2-keyring', keyslots: ['0'], key_description: 'x' }],
  ['a third sealed key', 'tokens/3', at(ORIGINAL, 'tokens/0')],
  ['one sealed key only', 'tokens/1', undefined],
  ['no recovery token', 'tokens/2', undefined],
  ['a sealed token for the recovery slot', 'tokens/0/keyslots', ['1']],
  ['an unknown key at the top', 'extra', {}],
];

for (const [name, path, value] of MUTATIONS) {
  test(`${name} is refused, even with good checksums`, () => {
    assert.throws(() => accept(withValue(path, value)), refused(/^in its metadata, \S/));
  });
}

test('a key that is there twice is refused', () => {
  const text = JSON.stringify(jsonOf(HEADER)).replace('"segments":', '"segments":{},"segments":');
  assert.throws(() => accept(withText(text)), refused(/a key twice/));
});

test('whatever value is put anywhere in the metadata, it is refused or the header is as before', () => {
  const paths: string[] = [];
  const collect = (value: Json, path: string) => {
    if (path !== '') paths.push(path);
    if (typeof value !== 'object' || value === null) return;
    for (const [key, inner] of Object.entries(value)) collect(inner as Json, path === '' ? key : `${path}/${key}`);
  };
  collect(ORIGINAL, '');
  // Values that may differ: salts, digests, iterations, areas and what the tokens carry.
  const isFree = (path: string) => /^tokens|\/(salt|digest|iterations|offset)$/.test(path);
  fc.assert(
    fc.property(fc.constantFrom(...paths), fc.jsonValue({ maxDepth: 2 }), (path, value) => {
      const bytes = withValue(path, value as Json);
      try {
        accept(bytes);
      } catch (error) {
        assert.ok(error instanceof LuksHeaderError, String(error));
        return;
      }
      assert.ok(isFree(path) || JSON.stringify(jsonOf(bytes)) === JSON.stringify(ORIGINAL), path);
    }),
    { numRuns: 300 },
  );
});

test('a flipped bit in one copy makes the other count', () => {
  fc.assert(
    fc.property(
      fc.constantFrom('primary' as const, 'secondary' as const),
      fc.nat(METADATA_BYTES * 8 - 1),
      (copy, bit) => {
        const header = Buffer.from(HEADER);
        const at = copyRange(copy)[0] + (bit >> 3);
        header[at] = (header[at] ?? 0) ^ (1 << (bit & 7));
        const accepted = accept(header);
        assert.equal(accepted.stale, copy);
        assert.notEqual(accepted.copy, copy);
      },
    ),
  );
});

test('a header with both copies damaged is refused with both reasons', () => {
  const header = Buffer.from(HEADER);
  header.fill(0, 0, 16);
  header.fill(0xff, METADATA_BYTES + 5000, METADATA_BYTES + 5010);
  assert.throws(
    () => accept(header),
    refused(/both copies are damaged \(primary: there is no LUKS2 magic; secondary: its checksum/),
  );
});

test('an empty partition is refused', () => {
  assert.throws(() => accept(Buffer.alloc(HEADER_BYTES)), refused(/both copies are damaged/));
});

test('two whole copies that differ under one sequence number are refused', () => {
  const header = Buffer.from(HEADER);
  header.write('other', METADATA_BYTES + 24);
  header[METADATA_BYTES + JSON_START + 3000] = 1;
  sum(header, 'secondary');
  assert.throws(() => accept(header), refused(/two copies differ/));
});

test('of two whole copies the newer counts', () => {
  const header = Buffer.from(HEADER);
  header.writeBigUInt64BE(header.readBigUInt64BE(METADATA_BYTES + 16) + 1n, METADATA_BYTES + 16);
  sum(header, 'secondary');
  assert.deepEqual([accept(header).copy, accept(header).stale], ['secondary', 'primary']);
});

test('the header of another partition is refused', () => {
  const uuid = '99999999-2222-4333-8444-555555555555';
  assert.throws(() => acceptHeader(HEADER, { uuid }), refused(/its UUID is .* the partition's is/));
});

test('the isolated header holds the accepted copy and no other', () => {
  const accepted = accept(HEADER);
  const isolated = isolateAcceptedCopy(HEADER, accepted);
  assert.ok(isolated.subarray(METADATA_BYTES, 2 * METADATA_BYTES).every((byte) => byte === 0));
  assert.equal(accept(isolated).stale, 'secondary');
});
