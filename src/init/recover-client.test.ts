import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, constants, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { InitRefusal } from '../rpc/init-protocol.ts';
import type { DataPartitionRequest } from '../storage/data-partition.ts';
import { createRecovery, type RecoveryOptions } from './recover-client.ts';
import { isRecoverable } from './recovery-mode.ts';

const directory = mkdtempSync(join(tmpdir(), 'ashlar-recover-'));
after(() => rmSync(directory, { recursive: true }));

const SECRET = Buffer.alloc(32, 0x5a);
const PARAMS = { recoverySecret: SECRET.toString('base64') };
const STATE = {
  volumeUuid: '6e7a3b6c-0000-4000-8000-000000000001',
  recoveryKeyFingerprint: `SHA256:${'R'.repeat(43)}`,
  encryptedRecoveryKey: 'AAAA',
};

function withWorker(name: string, body: string, options: Partial<RecoveryOptions> = {}) {
  const workerPath = join(directory, `${name}.js`);
  writeFileSync(workerPath, `const { parentPort: port, workerData } = require('node:worker_threads'); ${body}`);
  const request = { systemDisk: '/dev/vda' } as DataPartitionRequest;
  const why = { refusal: 'another-tpm', message: 'this data partition belongs to another TPM' };
  return createRecovery({ request, ...why, workerPath, deadlineMs: 10_000, pauseMs: 0, ...options });
}

const refusedWith = (code: string, message: RegExp) => (error: unknown) =>
  error instanceof InitRefusal && error.code === code && message.test(error.message);

test('the state is what the volume says, with why it is closed', async () => {
  const recovery = withWorker('state', `port.postMessage({ type: 'state', state: ${JSON.stringify(STATE)} });`);
  const { refusal, message, ...state } = await recovery.state();
  assert.deepEqual(state, STATE);
  assert.deepEqual([refusal, message], ['another-tpm', 'this data partition belongs to another TPM']);
});

test('the key reaches the Worker as bytes, and the summary comes back', async () => {
  const seen = join(directory, 'seen');
  const body = `require('node:fs').writeFileSync(${JSON.stringify(seen)}, workerData.recoveryKey);
    port.postMessage({ type: 'recovered', summary: workerData.request.systemDisk });`;
  assert.deepEqual(await withWorker('recovers', body).recover(PARAMS), { summary: '/dev/vda' });
  assert.deepEqual(readFileSync(seen), SECRET);
});

test('a key that does not open the slot is refused in the words of the storage, and the next one waits', async () => {
  const body = "port.postMessage({ type: 'refused', message: 'the recovery slot does not open' });";
  const recovery = withWorker('refuses', body, { pauseMs: 200 });
  await assert.rejects(recovery.recover(PARAMS), refusedWith('UNAVAILABLE', /slot does not open/));
  await assert.rejects(recovery.recover(PARAMS), refusedWith('BUSY', /ask again in \d+ ms/));
  await sleep(250);
  await assert.rejects(recovery.recover(PARAMS), refusedWith('UNAVAILABLE', /slot does not open/));
});

test('two recoveries never write to one disk', async () => {
  const body = "setTimeout(() => port.postMessage({ type: 'recovered', summary: 'done' }), 200);";
  const recovery = withWorker('slow', body);
  const first = recovery.recover(PARAMS);
  await assert.rejects(recovery.recover(PARAMS), refusedWith('BUSY', /runs already/));
  assert.deepEqual(await first, { summary: 'done' });
});

test('a Worker that dies or never answers is an error, not a wait', async () => {
  await assert.rejects(withWorker('exits', 'process.exit(3);').recover(PARAMS), /ended with 3/);
  const forever = 'setInterval(() => undefined, 1000);';
  await assert.rejects(
    withWorker('hangs', forever, { deadlineMs: 200 }).recover(PARAMS),
    refusedWith('UNAVAILABLE', /not be recovered within 0.2 s/),
  );
});

test('a Worker that is stuck in the disk may still write, so no second one begins', async () => {
  const fifo = join(directory, 'stuck');
  execFileSync('mkfifo', [fifo]);
  const recovery = withWorker('stuck', `require('node:fs').readFileSync(${JSON.stringify(fifo)});`, {
    deadlineMs: 200,
  });
  await assert.rejects(recovery.recover(PARAMS), refusedWith('UNAVAILABLE', /within 0.2 s/));
  await assert.rejects(recovery.recover(PARAMS), refusedWith('BUSY', /runs already/));
  // Lets the thread go, whether it waits there or not.
  closeSync(openSync(fifo, constants.O_RDWR | constants.O_NONBLOCK));
});

test('only what sealing anew puts right is recoverable, and only with a TPM that can vouch', () => {
  for (const refusal of ['another-tpm', 'pcr-7-changed']) assert.ok(isRecoverable(refusal, { hasTpm: true }), refusal);
  for (const refusal of ['pcr-not-zero', 'secure-boot-off', 'tpm-failed', 'deadline', 'filesystem-damaged', 'failed'])
    assert.ok(!isRecoverable(refusal, { hasTpm: true }), refusal);
  assert.ok(!isRecoverable('another-tpm', { hasTpm: false }));
});
