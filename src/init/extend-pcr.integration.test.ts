import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { connect } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import { startSoftwareTpm } from '../tpm/swtpm-fixture.ts';
import { extendPcr, measure, pcrExtendCommand, responseCode } from './extend-pcr.ts';

const hasSwtpm = spawnSync('swtpm', ['--version']).status === 0;

/** One command to a TPM over its raw socket. */
function exchange(path: string, command: Uint8Array): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const socket = connect(path, () => socket.write(command));
    socket.once('data', (answer: Buffer) => {
      socket.destroy();
      resolve(answer);
    });
    socket.once('error', reject);
  });
}

test('a TPM takes the command, and its register is then the hash of old value and digest', {
  skip: hasSwtpm ? false : 'swtpm is not installed',
}, async () => {
  await using tpm = await startSoftwareTpm();
  const path = join(tpm.directory, 'socket');
  let expected = Buffer.alloc(32);
  for (const digest of [randomBytes(32), createHash('sha256').update('enter-initrd').digest()]) {
    assert.equal(responseCode(await exchange(path, pcrExtendCommand(11, digest))), 0);
    expected = createHash('sha256').update(expected).update(digest).digest();
    assert.match(tpm.tool('tpm2_pcrread', 'sha256:11').toLowerCase(), new RegExp(`0x${expected.toString('hex')}`));
  }
  // A register that a program at this locality may not extend.
  assert.notEqual(responseCode(await exchange(path, pcrExtendCommand(17, Buffer.alloc(32)))), 0);
});

test('a machine without a TPM is told apart from one whose TPM fails', async () => {
  assert.equal(await extendPcr(11, Buffer.alloc(32), '/nonexistent/tpm0'), false);
  await assert.rejects(extendPcr(11, Buffer.alloc(32), '/dev/null'), /cannot read the TPM's answer: 0 bytes/);
});

test('a TPM that was there and is gone does not pass for none', async () => {
  const extend = (pcr: number, digest: Uint8Array) => extendPcr(pcr, digest, '/nonexistent/tpm0');
  await measure(11, Buffer.alloc(32), { hasTpm: false, extend });
  await assert.rejects(measure(11, Buffer.alloc(32), { hasTpm: true, extend }), /PCR 11: there is no \/dev\/tpm0/);
});

test('an answer that is cut is no success', () => {
  assert.throws(() => responseCode(Buffer.from('8002000000', 'hex')));
  assert.throws(() => responseCode(Buffer.from('80020000001300000000', 'hex')));
});
