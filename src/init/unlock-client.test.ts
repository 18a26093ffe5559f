import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, constants, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { type UnlockOptions, UnlockRefusedError, unlockData } from './unlock-client.ts';

const directory = mkdtempSync(join(tmpdir(), 'ashlar-unlock-'));
after(() => rmSync(directory, { recursive: true }));

const RESULT = { state: 'opened', partition: '/dev/vda4', device: '/dev/mapper/ashlar-data', warnings: [], pcrs: {} };

/** Options with a Worker of this source: what the real one does when its surroundings fail can't be had otherwise. */
function withWorker(name: string, body: string, deadlineMs = 10_000): UnlockOptions {
  const workerPath = join(directory, `${name}.js`);
  writeFileSync(workerPath, `const { parentPort: port, workerData } = require('node:worker_threads'); ${body}`);
  return {
    systemDisk: '/dev/vdb',
    system: { partitionUuid: 'p', policyKeyPem: 'k', formerPolicyKeyPems: [], sealing: { policyRef: 'r' } },
    parameters: { recovery: { publicKeyPem: 'x' } },
    hasTpm: true,
    workerPath,
    deadlineMs,
    // Of the machine that runs the tests nothing is extended.
    capping: { extend: async () => true },
  };
}

/** Options whose caps are noted in `caps`. */
function noteCaps(options: UnlockOptions): { options: UnlockOptions; caps: number[] } {
  const caps: number[] = [];
  const extend = async (pcr: number) => caps.push(pcr) > 0;
  return { options: { ...options, capping: { extend } }, caps };
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

test('the Worker is told the disk that stage 1 read', async () => {
  const body = "port.postMessage({ type: 'refused', refusal: 'failed', message: workerData.systemDisk });";
  await assert.rejects(unlock(withWorker('disk', body)), { message: '/dev/vdb' });
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

test('a Worker stuck in native code is left behind at the deadline, with PCR 11 capped', async () => {
  const fifo = join(directory, 'stuck');
  execFileSync('mkfifo', [fifo]);
  // Opening a FIFO that nobody writes to blocks in the kernel, where terminate() does not reach.
  const body = `require('node:fs').readFileSync(${JSON.stringify(fifo)});`;
  const { options, caps } = noteCaps(withWorker('stuck', body, 500));
  const outcome = unlock(options).then(
    () => 'opened',
    (error: unknown) => error,
  );
  try {
    const first = await Promise.race([outcome, sleep(5_000, 'still waiting')]);
    assert.ok(first instanceof UnlockRefusedError && first.refusal === 'deadline', String(first));
    assert.deepEqual(caps, [11]);
  } finally {
    closeSync(openSync(fifo, constants.O_RDWR));
    await outcome;
  }
});

test('what fails before the Worker runs is capped, too', async () => {
  const { options, caps } = noteCaps(withWorker('missing', ''));
  await assert.rejects(unlock({ ...options, workerPath: join(directory, 'absent.js') }), /ENOENT/);
  assert.deepEqual(caps, [11]);
});

test('a Worker that says how it ended has capped, unless its TPM failed', async () => {
  const refused = (refusal: string) => post({ type: 'refused', refusal, message: 'm' });
  for (const [name, body, expected] of [
    ['caps-opened', post({ type: 'opened', result: RESULT }), []],
    ['caps-refused', refused('wrong-key'), []],
    ['caps-failed', refused('tpm-failed'), [11]],
  ] as const) {
    const { options, caps } = noteCaps(withWorker(name, body));
    await unlock(options).catch(() => undefined);
    assert.deepEqual(caps, expected, name);
  }
});

test('a cap that fails, hangs or finds no TPM is no refusal but an error: only a restart is safe', async () => {
  const options = withWorker('uncapped', "throw new Error('no such library');");
  for (const [capping, expected] of [
    [{ extend: async () => false }, /there is no \/dev\/tpm0, though this machine started with a TPM/],
    [{ extend: () => Promise.reject(new Error('the TPM answered 0x101')) }, /closed: the TPM answered 0x101/],
    [{ extend: () => new Promise<boolean>(() => undefined), deadlineMs: 50 }, /no answer of the TPM within 50 ms/],
  ] as const) {
    await assert.rejects(
      unlock({ ...options, capping }),
      (error) =>
        error instanceof Error &&
        !(error instanceof UnlockRefusedError) &&
        expected.test(error.message) &&
        /no such library/.test(String(error.cause)),
    );
  }
  await assert.rejects(
    unlock({ ...options, hasTpm: false, capping: { extend: async () => false } }),
    /no such library/,
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
