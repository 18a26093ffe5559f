/** The attacker's tool must be able to do what the attacks try: here nothing stands in its way. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash, generateKeyPairSync } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { pcrSignatureInput, signPcr11 } from '../../src/measure/pcr-signature.ts';
import { encodeRsaPolicyKey, policyAuthorize, policyPcr, rsaPolicyKeyName } from '../../src/measure/policy.ts';
import { runProcess } from '../../tools/host/run-process.ts';
import { manufactureTpm, withTpmOnHost } from '../machine/software-tpm.ts';
import { RefusedByTpm, TpmWire } from './tpm-wire.ts';

const SRK = 0x81000001;
const INDEX = 0x01a51a0f;

async function onTpm(use: (wire: TpmWire, tcti: string, directory: string) => Promise<void>): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'ashlar-wire-'));
  try {
    await manufactureTpm(join(directory, 'tpm'), join(directory, 'authority'));
    const places = { directory, logPath: join(directory, 'log'), trafficPath: join(directory, 'traffic') };
    await withTpmOnHost(join(directory, 'tpm'), places, async (tcti) => {
      const wire = new TpmWire((command) => spawnSync('tpm2_send', ['-T', tcti], { input: command }).stdout);
      await use(wire, tcti, directory);
    });
  } finally {
    await rm(directory, { recursive: true });
  }
}

const refusedWith = (code: number) => (error: unknown) => error instanceof RefusedByTpm && error.code === code;

test('it extends and reads PCRs, and resets those that may be reset', async () => {
  await onTpm(async (wire) => {
    const digest = createHash('sha256').update('x').digest();
    wire.pcrExtend(16, digest);
    assert.equal(wire.pcrRead(16), createHash('sha256').update(Buffer.alloc(32)).update(digest).digest('hex'));
    wire.pcrReset(16);
    assert.equal(wire.pcrRead(16), '0'.repeat(64));
    assert.throws(() => wire.pcrReset(11), refusedWith(0x907));
  });
});

test('it defines, reads and undefines NV indexes of an owner without a password', async () => {
  await onTpm(async (wire, tcti) => {
    wire.nvDefine(INDEX, 8);
    await runProcess(
      'tpm2_nvwrite',
      ['-T', tcti, '-C', `0x${INDEX.toString(16)}`, '-i', '-', `0x${INDEX.toString(16)}`],
      {
        input: '12345678',
      },
    );
    assert.equal(wire.nvRead(INDEX, 'index', 8).toString(), '12345678');
    wire.nvUndefine(INDEX);
    assert.throws(() => wire.nvUndefine(INDEX), RefusedByTpm);
  });
});

test('it unseals by a signed policy, which ends when PCR 11 moves on', async () => {
  await onTpm(async (wire, tcti, directory) => {
    const path = (name: string) => join(directory, name);
    const tpm2 = async (command: string, ...args: string[]) => {
      await runProcess(`tpm2_${command}`, ['-T', tcti, ...args]);
      await runProcess('tpm2_flushcontext', ['-T', tcti, '--transient-object']);
    };
    const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
    const keyName = rsaPolicyKeyName(publicKey);
    const policyRef = Buffer.from('ashlar-epoch-1');
    const zero = (...pcrs: number[]) => new Map(pcrs.map((pcr) => [pcr, new Uint8Array(32)]));
    await writeFile(path('policy'), policyPcr(zero(7), policyAuthorize(keyName, policyRef)));
    await writeFile(path('secret'), 'the secret');
    await tpm2('createprimary', '-C', 'o', '-G', 'ecc', '-c', path('srk'));
    await tpm2('evictcontrol', '-C', 'o', '-c', path('srk'), `0x${SRK.toString(16)}`);
    const creation = ['-L', path('policy'), '-i', path('secret'), '-u', path('pub'), '-r', path('priv')];
    await tpm2('create', '-C', `0x${SRK.toString(16)}`, ...creation, '-a', 'fixedtpm|fixedparent|noda');

    const sizedContent = async (name: string) => (await readFile(path(name))).subarray(2);
    const sealed = { publicArea: await sizedContent('pub'), privateArea: await sizedContent('priv') };
    const signed = signPcr11({ pcr11: new Uint8Array(32), policyRef: policyRef.toString(), key: privateKey });
    const attempt = () => {
      const session = wire.policySession();
      wire.policyPcr(session, [11]);
      const digest = createHash('sha256').update(pcrSignatureInput(signed.policy, signed.policyRef)).digest();
      const key = { publicArea: encodeRsaPolicyKey(publicKey), keyName, policy: signed.policy, policyRef };
      wire.policyAuthorize(session, key, digest, signed.signature);
      wire.policyPcr(session, [7]);
      return wire.unseal(wire.load(SRK, sealed), session);
    };
    assert.equal(attempt().toString(), 'the secret');
    await runProcess('tpm2_flushcontext', ['-T', tcti, '--transient-object']);
    wire.pcrExtend(11, createHash('sha256').update('leave-initrd').digest());
    assert.throws(
      attempt,
      (error: Error) => error instanceof RefusedByTpm && error.message.startsWith('policyAuthorize'),
    );
  });
});

test('it needs the owner for what is the owner’s', async () => {
  await onTpm(async (wire, tcti) => {
    await runProcess('tpm2_changeauth', ['-T', tcti, '-c', 'o', 'a password']);
    assert.throws(() => wire.nvDefine(INDEX, 8), refusedWith(0x9a2));
    assert.throws(() => wire.evict(SRK), RefusedByTpm);
  });
});
