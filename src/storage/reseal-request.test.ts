import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import fc from 'fast-check';
import { HEADER_BYTES, REQUEST_OFFSET } from './luks-metadata.ts';
import {
  decodeResealRequest,
  encodeResealRequest,
  isResealRequested,
  keepRequestKey,
  REQUEST_BYTES,
  requestReseal,
} from './reseal-request.ts';

const KEY = Buffer.alloc(32, 5);
const PCR7 = 'ab'.repeat(32);
const directory = mkdtempSync(join(tmpdir(), 'ashlar-reseal-'));
after(() => rmSync(directory, { recursive: true }));

const reasonOf = (decoded: unknown) => (typeof decoded === 'string' ? decoded : assert.fail('it counts'));

test('a request survives its block', () => {
  const reason = fc
    .string({ unit: 'binary', minLength: 1, maxLength: 200 })
    .filter((text) => /^\P{Cc}{1,200}$/u.test(text));
  fc.assert(
    fc.property(reason, fc.boolean(), (text, isPredicted) => {
      if (text.length > 200) return;
      const request = { reason: text, ...(isPredicted ? { pcr7: PCR7 } : {}) };
      const block = encodeResealRequest(request, 7, KEY);
      assert.equal(block.length, REQUEST_BYTES);
      assert.deepEqual(decodeResealRequest(block, 7, KEY), { ...request, reason: text.toWellFormed() });
    }),
  );
});

test('no bit of a request can be changed, and none taken for another generation or key', () => {
  const block = encodeResealRequest({ reason: 'r', pcr7: PCR7 }, 7, KEY);
  const used = block.findLastIndex((byte) => byte !== 0) + 1;
  fc.assert(
    fc.property(fc.nat(used * 8 - 1), (bit) => {
      const changed = Buffer.from(block);
      changed.writeUInt8(changed.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
      assert.equal(typeof decodeResealRequest(changed, 7, KEY), 'string');
    }),
  );
  assert.match(reasonOf(decodeResealRequest(block, 8, KEY)), /it was done, or is an old one/);
  assert.match(reasonOf(decodeResealRequest(block, 7, Buffer.alloc(32))), /not authentic/);
});

test('whatever a block holds, it is no request or a reason', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: REQUEST_BYTES }), (bytes) => {
      const decoded = decodeResealRequest(bytes, 7, KEY);
      assert.equal(typeof decoded, bytes.every((byte) => byte === 0) ? 'undefined' : 'string');
    }),
  );
});

test('a reason or PCR 7 that is not as it should be is refused before it is written', () => {
  for (const request of [
    { reason: '' },
    { reason: 'a\nb' },
    { reason: 'x'.repeat(201) },
    { reason: 'x', pcr7: 'AB' },
  ]) {
    assert.throws(() => encodeResealRequest(request, 1, KEY), /request\.(reason|pcr7)/);
  }
});

test('the running node writes a request where the next boot looks, with a key that is its own', async () => {
  const partition = join(directory, 'partition');
  writeFileSync(partition, Buffer.alloc(HEADER_BYTES + 4096));
  await assert.rejects(requestReseal(directory, { reason: 'x' }), /this node's data is not sealed to a TPM/);
  for (const generation of [6, 7]) await keepRequestKey(directory, { partition, generation, key: KEY });
  assert.equal(statSync(join(directory, 'node/reseal-key.json')).mode & 0o777, 0o600);
  assert.equal(await isResealRequested(directory), false);
  await requestReseal(directory, { reason: 'first' });
  await requestReseal(directory, { reason: 'second', pcr7: PCR7 });
  assert.equal(await isResealRequested(directory), true);
  const block = readFileSync(partition).subarray(REQUEST_OFFSET, HEADER_BYTES);
  assert.deepEqual(decodeResealRequest(block, 7, KEY), { reason: 'second', pcr7: PCR7 });
});
