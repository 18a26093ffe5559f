import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { InitRefusal } from '../rpc/init-protocol.ts';
import { createSealingService } from './sealing-service.ts';

const dataDirectory = mkdtempSync(join(tmpdir(), 'ashlar-sealing-'));
mkdirSync(join(dataDirectory, 'node'));
after(() => rmSync(dataDirectory, { recursive: true }));

const uid = process.getuid?.() ?? 0;
const sealing = {
  policyRef: 'ashlar-epoch-1',
  policyKeyFingerprint: 'ab'.repeat(32),
  pcr7: 'cd'.repeat(32),
  generation: 1,
  anchor: 'ok',
  resealed: '',
};

test('a request is where the next unlock looks for it, private, and is told until then', async () => {
  const service = createSealingService({ sealing, dataDirectory, uid });
  assert.deepEqual(await service.sealing(), { ...sealing, resealRequested: false });
  await service.requestReseal({ reason: 'new dbx', pcr7: 'ef'.repeat(32) });
  const path = join(dataDirectory, 'node/reseal.json');
  assert.deepEqual(JSON.parse(readFileSync(path, 'utf8')), { reason: 'new dbx', pcr7: 'ef'.repeat(32) });
  assert.equal(statSync(path).mode & 0o777, 0o600);
  assert.equal((await service.sealing()).resealRequested, true);
  await service.requestReseal({ reason: 'and a new epoch' });
  assert.deepEqual(JSON.parse(readFileSync(path, 'utf8')), { reason: 'and a new epoch' });
});

test('data that is not sealed has nothing to tell or to renew', async () => {
  const service = createSealingService({ sealing: undefined, dataDirectory, uid });
  const refused = (error: unknown) => error instanceof InitRefusal && error.code === 'UNAVAILABLE';
  await assert.rejects(service.sealing(), refused);
  await assert.rejects(service.requestReseal({ reason: 'x' }), refused);
});
