import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, constants, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { InitRefusal } from '../rpc/init-protocol.ts';
import { type Attestor, type AttestorOptions, createAttestor } from './attest-client.ts';

const directory = mkdtempSync(join(tmpdir(), 'ashlar-attest-'));
after(() => rmSync(directory, { recursive: true }));

const PARAMS = { nonce: 'bm9uY2U=', credentialBlob: 'YmxvYg==', encryptedSecret: 'c2VjcmV0' };

/** Answers a task as the real Worker does, with the task in the place of the quote. */
const GOOD = `
  const { kind, ...rest } = workerData;
  const identity = { ekKind: 'ecc-p256', ekPublic: 'ZWs=', ekCertificates: [], akPublic: 'YWs=' };
  const attestation = { quote: JSON.stringify(rest), signature: '', pcrs: {} };
  port.postMessage(kind === 'identity' ? { type: 'identity', identity } : { type: 'attestation', attestation });`;

/** An attestor with a Worker of this source: what the real one does when its surroundings fail can't be had otherwise. */
function withWorker(name: string, body: string, options: Partial<AttestorOptions> = {}): Attestor {
  const workerPath = join(directory, `${name}.js`);
  writeFileSync(workerPath, `const { parentPort: port, workerData } = require('node:worker_threads'); ${body}`);
  return createAttestor({
    hasTpm: true,
    tlsSpki: Buffer.from('spki'),
    tpm: 'swtpm:path=none',
    workerPath,
    deadlineMs: 10_000,
    restMinMs: 0,
    ...options,
  });
}

const refusedWith = (code: string, message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof InitRefusal, String(error));
  assert.equal(error.code, code);
  assert.match(error.message, message);
  return true;
};

test('the quote is bound to the TLS key that init knows, whatever its client says', async () => {
  const attestor = withWorker('good', GOOD);
  const { quote } = await attestor.attest({ ...PARAMS, tlsSpki: 'b3RoZXI=' } as typeof PARAMS);
  const task: Record<string, string> = JSON.parse(quote);
  assert.deepEqual(task, { ...PARAMS, tlsSpki: 'c3BraQ==', ekKind: 'ecc-p256', tpm: 'swtpm:path=none' });
});

test('the keys are read from the TPM once, and not given out with how they were made', async () => {
  const attestor = withWorker('once', GOOD);
  assert.deepEqual(await attestor.attestationIdentity(), { ekPublic: 'ZWs=', ekCertificates: [], akPublic: 'YWs=' });
  writeFileSync(join(directory, 'once.js'), "throw new Error('asked again');");
  assert.equal((await attestor.attestationIdentity()).akPublic, 'YWs=');
});

test('the TPM is lent to one request at a time, and rests as long as it worked', async () => {
  const slow = `setTimeout(() => { ${GOOD} }, workerData.kind === 'attest' ? 300 : 0);`;
  const attestor = withWorker('slow', slow);
  await attestor.attestationIdentity();
  const first = attestor.attest(PARAMS);
  await assert.rejects(attestor.attest(PARAMS), refusedWith('BUSY', /works for another caller/));
  await first;
  const restMs = await attestor.attest(PARAMS).then(
    () => assert.fail('it did not rest'),
    (error: Error) => Number(/rests for (\d+) ms/.exec(error.message)?.[1]),
  );
  await sleep(restMs + 1);
  await attestor.attest(PARAMS);
});

test('a request that fails also ends in a rest', async () => {
  const body = "port.postMessage({ type: 'refused', isCredential: false, message: 'TPM_RC_FAILURE' });";
  const attestor = withWorker('fails', body, { restMinMs: 60_000 });
  await assert.rejects(attestor.attestationIdentity(), refusedWith('UNAVAILABLE', /TPM_RC_FAILURE/));
  await assert.rejects(attestor.attestationIdentity(), refusedWith('BUSY', /rests/));
});

test('a credential that the TPM does not accept is the fault of who sent it', async () => {
  const body = `if (workerData.kind === 'identity') { ${GOOD} } else
    port.postMessage({ type: 'refused', isCredential: true, message: 'it is for another TPM' });`;
  await assert.rejects(withWorker('credential', body).attest(PARAMS), refusedWith('INVALID', /another TPM/));
});

test('a Worker that dies is an error, not a wait', async () => {
  await assert.rejects(
    withWorker('throws', "throw new Error('no such library');").attestationIdentity(),
    /no such library/,
  );
  await assert.rejects(withWorker('exits', 'process.exit(3);').attestationIdentity(), /ended with 3/);
});

test('a TPM that does not answer is given up at the deadline, and nobody else is stuck beside it', async () => {
  const fifo = join(directory, 'stuck');
  execFileSync('mkfifo', [fifo]);
  // Opening a FIFO that nobody writes to blocks in the kernel, where terminate() does not reach.
  const body = `require('node:fs').readFileSync(${JSON.stringify(fifo)});`;
  const attestor = withWorker('stuck', body, { deadlineMs: 2000 });
  await assert.rejects(attestor.attestationIdentity(), refusedWith('UNAVAILABLE', /did not answer within 2 s/));
  await assert.rejects(attestor.attestationIdentity(), refusedWith('BUSY', /works for another caller/));
  // Lets the thread go, whether it waits there or not.
  closeSync(openSync(fifo, constants.O_RDWR | constants.O_NONBLOCK));
});

test('a machine without a TPM says so', async () => {
  const attestor = withWorker('none', GOOD, { hasTpm: false });
  await assert.rejects(attestor.attestationIdentity(), refusedWith('UNAVAILABLE', /has no TPM/));
});
