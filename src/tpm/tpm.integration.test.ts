import assert from 'node:assert/strict';
import { createHash, generateKeyPairSync, sign } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { encodeSized } from '../formats/tpm-structures.ts';
import { sha256 } from '../measure/pcr.ts';
import { pcrSignatureInput } from '../measure/pcr-signature.ts';
import { encodeRsaPolicyKey } from '../measure/policy.ts';
import { type SoftwareTpm, startSoftwareTpm } from './swtpm-fixture.ts';
import { STORAGE_ROOT_KEY_HANDLE, Tpm } from './tpm.ts';
import { isTpmError, TPM_RC, TpmError } from './tpm-error.ts';
import { retryWhileBusy } from './tss.ts';

let machine: SoftwareTpm;
before(async () => {
  machine = await startSoftwareTpm();
});
after(async () => {
  await machine[Symbol.asyncDispose]();
});

function openTpm(): Tpm {
  const tpm = new Tpm(machine.tcti);
  tpm.startup();
  return tpm;
}

test('startup is harmless when the firmware has already started the TPM', () => {
  using tpm = openTpm();
  tpm.startup();
  assert.equal(tpm.manufacturer(), 'IBM');
});

test('the allocated PCR banks and the lockout state are read', () => {
  using tpm = openTpm();
  assert.equal(tpm.pcrBanks().find(({ hash }) => hash === 0x0b)?.pcrs.length, 24);
  const { counter, active } = tpm.lockout();
  assert.deepEqual({ counter, active }, { counter: 0, active: false });
});

test('extending a PCR gives the value that tpm2_pcrread reads', () => {
  const digest = createHash('sha256').update('x').digest();
  let expected: Buffer;
  {
    using tpm = openTpm();
    const earlier = tpm.readPcrs([16]).get(16) ?? Buffer.alloc(0);
    tpm.extendPcr(16, digest);
    expected = createHash('sha256').update(earlier).update(digest).digest();
    assert.deepEqual(tpm.readPcrs([16]).get(16), expected);
  }
  assert.match(machine.tool('tpm2_pcrread', 'sha256:16').toLowerCase(), new RegExp(expected.toString('hex')));
});

test('more PCRs than one answer holds are read', () => {
  using tpm = openTpm();
  assert.equal(tpm.readPcrs(Array.from({ length: 24 }, (_, index) => index)).size, 24);
});

test('the storage root key is persistent, keeps its name, and tpm2_readpublic agrees', () => {
  let name: string;
  {
    using tpm = openTpm();
    using first = tpm.storageRootKey();
    using second = tpm.storageRootKey();
    assert.deepEqual(first.name, second.name);
    assert.equal(second.warning, undefined);
    name = Buffer.from(second.name).toString('hex');
  }
  const read = machine.tool('tpm2_readpublic', '-c', `0x${STORAGE_ROOT_KEY_HANDLE.toString(16)}`);
  assert.match(read, new RegExp(`name: ${name}`));
  assert.match(read, /fixedtpm\|fixedparent\|sensitivedataorigin\|userwithauth\|noda\|restricted\|decrypt/);
});

test('another key at the well-known handle is not used, and said', async () => {
  await using other = await startSoftwareTpm();
  other.tool('tpm2_createprimary', '-Q', '-C', 'o', '-G', 'rsa2048', '-c', 'primary.ctx');
  other.tool('tpm2_evictcontrol', '-Q', '-C', 'o', '-c', 'primary.ctx', '0x81000001');
  other.tool('tpm2_flushcontext', '-t');
  using tpm = new Tpm(other.tcti);
  using rootKey = tpm.storageRootKey();
  assert.match(rootKey.warning ?? '', /0x81000001/);
  using session = tpm.encryptedSession(rootKey);
  assert.equal(tpm.random(32, session).length, 32);
});

test('slots are released: far more sessions and objects than a TPM has can be used one after the other', () => {
  using tpm = openTpm();
  for (let round = 0; round < 10; round += 1) {
    using rootKey = tpm.storageRootKey();
    using _encrypted = tpm.encryptedSession(rootKey);
    using _policy = tpm.policySession(rootKey);
  }
});

test('a signature is verified in the TPM, with the key name that tpm2_loadexternal gives', () => {
  const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const pem = publicKey.export({ format: 'pem', type: 'spki' }).toString();
  let name: string;
  {
    using tpm = openTpm();
    using key = tpm.loadExternal(encodeRsaPolicyKey(publicKey));
    name = Buffer.from(key.name).toString('hex');
    const policy = Buffer.alloc(32, 7);
    const digest = (reference: string) => sha256(pcrSignatureInput(policy, reference));
    const signature = sign('sha256', pcrSignatureInput(policy, 'ashlar-epoch-1'), privateKey);
    assert.ok(tpm.verifySignature(key, digest('ashlar-epoch-1'), signature).length > 0);
    assert.throws(
      () => tpm.verifySignature(key, digest('ashlar-epoch-2'), signature),
      (error) => isTpmError(error, TPM_RC.signature),
    );
  }
  writeFileSync(join(machine.directory, 'key.pem'), pem);
  machine.tool('tpm2_loadexternal', '-Q', '-C', 'o', '-G', 'rsa', '-u', 'key.pem', '-c', 'key.ctx', '-n', 'key.name');
  machine.tool('tpm2_flushcontext', '-t');
  assert.equal(readFileSync(join(machine.directory, 'key.name'), 'hex'), name);
});

test('a sealed object is loaded and explained by tpm2-tools', () => {
  const authPolicy = Buffer.alloc(32, 3);
  {
    using tpm = openTpm();
    using rootKey = tpm.storageRootKey();
    using session = tpm.encryptedSession(rootKey);
    const sealed = tpm.seal(rootKey, session, { secret: Buffer.alloc(32, 5), authPolicy });
    writeFileSync(join(machine.directory, 'sealed.pub'), encodeSized(sealed.publicArea));
    writeFileSync(join(machine.directory, 'sealed.priv'), encodeSized(sealed.privateArea));
  }
  const load = ['-C', '0x81000001', '-u', 'sealed.pub', '-r', 'sealed.priv', '-c', 'sealed.ctx'];
  machine.tool('tpm2_load', '-Q', ...load);
  const read = machine.tool('tpm2_readpublic', '-c', 'sealed.ctx');
  machine.tool('tpm2_flushcontext', '-t');
  assert.match(read, /value: fixedtpm\|fixedparent\|noda\n/);
  assert.match(read, new RegExp(`authorization policy: ${authPolicy.toString('hex')}`));
});

test('a refusal is an error with the layer and the text of tpm2-tss', () => {
  using tpm = openTpm();
  using rootKey = tpm.storageRootKey();
  using session = tpm.encryptedSession(rootKey);
  const sealed = tpm.seal(rootKey, session, { secret: Buffer.alloc(32), authPolicy: Buffer.alloc(32, 9) });
  using object = tpm.load(rootKey, sealed);
  using policy = tpm.policySession(rootKey);
  assert.throws(
    () => tpm.unseal(object, policy),
    (error) => {
      assert.ok(error instanceof TpmError);
      assert.match(
        error.message,
        /^cannot Unseal: TPM_RC_POLICY_FAIL, session 1, from the TPM: a policy check failed \(0x99d\)$/,
      );
      return isTpmError(error, TPM_RC.policyFail);
    },
  );
});

test('a TPM that is not there is an error that names it', () => {
  assert.throws(() => new Tpm('device:/dev/ashlar-no-such-tpm'), /cannot open TPM device:\/dev\/ashlar-no-such-tpm: /);
});

test('a busy TPM is asked again with growing pauses, and not for ever', () => {
  const pauses: number[] = [];
  const answers = [TPM_RC.retry, TPM_RC.yielded, TPM_RC.testing, 0];
  assert.equal(
    retryWhileBusy(
      () => answers.shift() ?? 0,
      (ms) => pauses.push(ms),
    ),
    0,
  );
  assert.deepEqual(pauses, [5, 10, 20]);
  assert.equal(
    retryWhileBusy(
      () => TPM_RC.retry,
      () => undefined,
    ),
    TPM_RC.retry,
  );
  assert.equal(
    retryWhileBusy(
      () => 0x99d,
      () => assert.fail('a refusal is final'),
    ),
    0x99d,
  );
});
