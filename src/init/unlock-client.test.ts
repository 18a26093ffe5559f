import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { type UnlockOptions, UnlockRefusedError, unlockData } from './unlock-client.ts';

const directory = mkdtempSync(join(tmpdir(), 'ashlar-unlock-'));
after(() => rmSync(directory, { recursive: true }));

const RESULT = { state: 'opened', partition: '/dev/vda4', device: '/dev/mapper/ashlar-data', warnings: [], pcrs: {} };

/** Options with a Worker of this source: what the real one does when its surroundings fail can't be had otherwise. */
function withWorker(name: string, body: string, deadlineMs = 10_000): UnlockOptions {
  const workerPath = join(directory, `${name}.js`);
  writeFileSync(workerPath, `const { parentPort: port, workerData } = require('node:worker_threads'); ${body}`);
  return {
    system: { partitionUuid: 'p', policyKeyPem: 'k', sealing: { policyRef: 'r' } },
    parameters: { recovery: { publicKeyPem: 'x' } },
    workerPath,
    deadlineMs,
  };
}

function unlock(options: UnlockOptions, events: string[] = [], signal = new AbortController().signal) {
  return unlockData(options, { signal, onEvent: (text) => events.push(text) });
}

const post = (message: object) => `port.postMessage(${JSON.stringify(message)});`;

test('reports are passed on and the result is returned', async () => {
  const events: string[] = [];
  const body = post({ type: 'report', text: 'creating' }) + post({ type: 'opened', result: RESULT });
  assert.deepEqual(await unlock(withWorker('good', body), events), RESULT);
  assert.deepEqual(events, ['creating']);
});

test('a TPM is required unless the parameters say otherwise', async () => {
  const body = "port.postMessage({ type: 'refused', refusal: 'failed', message: String(workerData.isTpmRequired) });";
  const options = withWorker('parameters', body);
  await assert.rejects(unlock(options), { message: 'true' });
  const parameters = { ...options.parameters, tpm: { required: false } };
  await assert.rejects(unlock({ ...options, parameters }), { message: 'false' });
});

test('a refusal keeps its code and its message', async () => {
  const body = post({ type: 'refused', refusal: 'pcr-not-zero', message: 'PCR 12 is …' });
  await assert.rejects(
    unlock(withWorker('refused', body)),
    (error) =>
      error instanceof UnlockRefusedError && error.refusal === 'pcr-not-zero' && error.message === 'PCR 12 is …',
  );
});

test('a Worker that dies is an error, not a wait', async () => {
  await assert.rejects(unlock(withWorker('throws', "throw new Error('no such library');")), /no such library/);
  await assert.rejects(unlock(withWorker('exits', 'process.exit(3);')), /the worker ended with 3/);
});

test('a Worker that blocks for ever is ended at the deadline', async () => {
  const body = 'Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);';
  await assert.rejects(
    unlock(withWorker('blocks', body, 200)),
    (error) => error instanceof UnlockRefusedError && error.refusal === 'deadline',
  );
});

test('an abort ends the Worker with the reason of the signal', async () => {
  const reason = new Error('power button');
  const body = "port.on('message', () => undefined);";
  await assert.rejects(unlock(withWorker('aborted', body), [], AbortSignal.abort(reason)), reason);
});

test('the Worker can have no other program run than the two it needs', async () => {
  const body = `${post({ type: 'run', program: '/bin/true', args: [] })} port.on('message', () => undefined);`;
  await assert.rejects(unlock(withWorker('program', body)), /cannot run \/bin\/true for the unlock worker/);
});

test('the Worker learns how a program ended and what it wrote', async () => {
  const body =
    post({ type: 'run', program: '/usr/sbin/e2fsck', args: ['-p', join(directory, 'absent')] }) +
    "port.once('message', (end) => port.postMessage({ type: 'refused', refusal: 'failed', message: JSON.stringify(end) }));";
  await assert.rejects(unlock(withWorker('run', body)), /^UnlockRefusedError: \{"code":8,"output":".*No such file/);
});
