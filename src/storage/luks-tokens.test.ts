import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ShapeError } from '../formats/json-shape.ts';
import { fixtureTpm2Token } from './data-volume-fixture.ts';
import { decodeToken, sealedGenerations } from './luks-tokens.ts';

const token = fixtureTpm2Token('a', 3);
assert.ok(token.type === 'ashlar-tpm2');

test('a sealed key is read from either copy, and from none whose checksum is wrong', () => {
  const damaged = { ...token, privateArea: 'AAAA' };
  for (const tokens of [
    [token, token],
    [damaged, token],
    [token, damaged],
  ]) {
    assert.deepEqual(
      sealedGenerations(tokens).map(({ place, number }) => [place, number]),
      [['a', 3]],
    );
  }
  assert.deepEqual(sealedGenerations([damaged, damaged]), []);
});

test('the checksum covers everything that a token says', () => {
  for (const changed of [
    { keyslots: ['2'] },
    { generation: 4 },
    { policyRef: 'ashlar-epoch-2' },
    { storageRootKeyName: `000b${'00'.repeat(32)}` },
    { pcr7: '00'.repeat(32) },
    { publicArea: 'AAAA' },
  ]) {
    assert.deepEqual(sealedGenerations([{ ...token, ...changed }]), [], Object.keys(changed).join());
  }
});

test('the newest generation comes first', () => {
  const other = fixtureTpm2Token('b', 4);
  const numbers = (tokens: Parameters<typeof sealedGenerations>[0]) =>
    sealedGenerations(tokens).map(({ number }) => number);
  assert.deepEqual(numbers([token, token, other, other]), [4, 3]);
  assert.deepEqual(numbers([fixtureTpm2Token('a', 5), other]), [5, 4]);
});

test('a token of another type, version or slot is refused by name', () => {
  assert.deepEqual(decodeToken(JSON.parse(JSON.stringify(token)), 'tokens.0'), token);
  for (const changed of [
    { type: 'luks2-keyring' },
    { version: 1 },
    { keyslots: ['1'] },
    { generation: 0 },
    { more: 1 },
  ]) {
    assert.throws(() => decodeToken({ ...token, ...changed }, 'tokens.0'), ShapeError, Object.keys(changed).join());
  }
});
