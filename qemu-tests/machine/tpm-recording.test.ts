import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { runProcess } from '../../tools/host/run-process.ts';
import { manufactureTpm, withTpmOnHost } from './software-tpm.ts';
import {
  commandCode,
  findInClear,
  parseTpmRecording,
  replayExtends,
  responseCode,
  TPM_CC,
  type TpmExchange,
} from './tpm-recording.ts';

const digest = (text: string) => createHash('sha256').update(text).digest();

/** A TPM, what tpm2-tools did with it in `use`, and the recording of that. */
async function recorded(use: (tcti: string) => Promise<void>): Promise<TpmExchange[]> {
  const directory = await mkdtemp(join(tmpdir(), 'ashlar-recording-'));
  try {
    await manufactureTpm(join(directory, 'tpm'), join(directory, 'authority'));
    const trafficPath = join(directory, 'traffic.log');
    await withTpmOnHost(join(directory, 'tpm'), { directory, logPath: join(directory, 'tpm.log'), trafficPath }, use);
    return parseTpmRecording(await readFile(trafficPath, 'utf8'));
  } finally {
    await rm(directory, { recursive: true });
  }
}

test('the recording tells the PCRs that the TPM itself reports', async () => {
  let reported = '';
  const exchanges = await recorded(async (tcti) => {
    for (const [pcr, text] of [
      [7, 'one'],
      [7, 'two'],
      [11, 'three'],
    ] as const) {
      await runProcess('tpm2_pcrextend', ['-T', tcti, `${pcr}:sha256=${digest(text).toString('hex')}`]);
    }
    reported = (await runProcess('tpm2_pcrread', ['-T', tcti, 'sha256:7,11,12'])).stdout;
  });
  const values = replayExtends(exchanges);
  for (const pcr of ['7', '11', '12']) {
    const value = new RegExp(`^\\s+${pcr}\\s*: 0x([0-9A-F]{64})`, 'm').exec(reported)?.[1];
    assert.equal(values[pcr], value?.toLowerCase(), `PCR ${pcr}`);
  }
  assert.notEqual(values['7'], values['11']);
});

test('what goes to the TPM in the clear is found, and what does not is not', async () => {
  const sent = digest('sent');
  const exchanges = await recorded(async (tcti) => {
    await runProcess('tpm2_pcrextend', ['-T', tcti, `16:sha256=${sent.toString('hex')}`]);
  });
  assert.deepEqual(findInClear(exchanges, sent), [`command 0x${TPM_CC.pcrExtend.toString(16)}`]);
  assert.deepEqual(findInClear(exchanges, digest('kept')), []);
});

test('a new start of the TPM begins the PCRs anew, and a failed command changes none', () => {
  const success = Buffer.from('80010000000a00000000', 'hex');
  const failure = Buffer.from('80010000000a00000101', 'hex');
  const startup = { command: Buffer.from('80010000000c000001440000', 'hex'), response: success };
  const head = Buffer.from('80020000004100000182', 'hex');
  const body = Buffer.from('0000000700000009400000090000000000' + '00000001000b', 'hex');
  const extended = { command: Buffer.concat([head, body, digest('x')]), response: success };
  const value = createHash('sha256').update(Buffer.alloc(32)).update(digest('x')).digest('hex');
  assert.equal(replayExtends([startup, extended])['7'], value);
  assert.equal(replayExtends([extended, startup, extended])['7'], value);
  assert.equal(replayExtends([startup, { ...extended, response: failure }])['7'], '0'.repeat(64));
});

test('a message that swtpm has not written to its end is not read', () => {
  const log =
    ' SWTPM_IO_Read: length 12\n 80 01 00 00 00 0C 00 00 01 44 00 00 \n SWTPM_IO_Write: length 10\n 80 01 00 \n';
  const [exchange, ...others] = parseTpmRecording(log);
  assert.ok(exchange !== undefined && others.length === 0);
  assert.equal(commandCode(exchange), TPM_CC.startup);
  assert.equal(responseCode(exchange), undefined);
});
