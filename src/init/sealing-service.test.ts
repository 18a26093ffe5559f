import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { InitRefusal } from '../rpc/init-protocol.ts';
import { HEADER_BYTES, REQUEST_OFFSET } from '../storage/luks-metadata.ts';
import { decodeResealRequest, keepRequestKey } from '../storage/reseal-request.ts';
import { createSealingService } from './sealing-service.ts';

const dataDirectory = mkdtempSync(join(tmpdir(), 'ashlar-sealing-'));
after(() => rmSync(dataDirectory, { recursive: true }));

const sealing = {
  policyRef: 'ashlar-epoch-1',
  policyKeyFingerprint: 'ab'.repeat(32),
  policyKeyPem: 'PEM',
  pcr7: 'cd'.repeat(32),
  generation: 1,
  anchor: 'ok' as const,
};

test('a request is where the next unlock looks for it, and is told until then', async () => {
  const partition = join(dataDirectory, 'partition');
  const key = Buffer.alloc(32, 1);
  writeFileSync(partition, Buffer.alloc(HEADER_BYTES));
  await keepRequestKey(dataDirectory, { partition, generation: 1, key });
  const service = createSealingService({ sealing, dataDirectory });
  assert.deepEqual(await service.sealing(), { ...sealing, resealed: '', resealRequested: false });
  await service.requestReseal({ reason: 'new dbx', pcr7: 'ef'.repeat(32) });
  const left = () => decodeResealRequest(readFileSync(partition).subarray(REQUEST_OFFSET), 1, key);
  assert.deepEqual(left(), { reason: 'new dbx', pcr7: 'ef'.repeat(32) });
  assert.equal((await service.sealing()).resealRequested, true);
  await service.requestReseal({ reason: 'and a new epoch' });
  assert.deepEqual(left(), { reason: 'and a new epoch' });
  // As long as an operator's reason is with his name behind it.
  await service.requestReseal({ reason: `${'x'.repeat(200)} (operator ada)` });
  assert.deepEqual(left(), { reason: 'x'.repeat(200) });
});

test('data that is not sealed has nothing to tell or to renew', async () => {
  const service = createSealingService({ sealing: undefined, dataDirectory });
  const refused = (error: unknown) => error instanceof InitRefusal && error.code === 'UNAVAILABLE';
  await assert.rejects(service.sealing(), refused);
  await assert.rejects(service.requestReseal({ reason: 'x' }), refused);
});
