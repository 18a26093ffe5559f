import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { NV } from '../formats/tpm-nv-public.ts';
import { type SoftwareTpm, startSoftwareTpm } from './swtpm-fixture.ts';
import { Tpm } from './tpm.ts';
import { isTpmError, TPM_RC } from './tpm-error.ts';

const OWNED = NV.ownerRead | NV.ownerWrite | NV.noDictionaryAttackProtection;
const EMPTY = new Uint8Array();

let machine: SoftwareTpm;
before(async () => {
  machine = await startSoftwareTpm();
});
after(async () => {
  await machine[Symbol.asyncDispose]();
});

test('an index is defined, written, read back and gone; tpm2_nvread and tpm2_nvreadpublic agree', () => {
  const index = 0x01a51a00;
  const content = randomBytes(100);
  {
    using tpm = new Tpm(machine.tcti);
    assert.equal(tpm.nvOpen(index), undefined);
    using nv = tpm.nvDefine({ index, attributes: OWNED, authPolicy: EMPTY, sizeBytes: 100 });
    assert.throws(
      () => tpm.nvRead(nv, 100, { by: 'owner' }),
      (error) => isTpmError(error, TPM_RC.nvUninitialized),
    );
    tpm.nvWrite(nv, content, { by: 'owner' });
    assert.deepEqual(tpm.nvRead(nv, 100, { by: 'owner' }), content);
    assert.deepEqual(tpm.nvRead(nv, 7, { by: 'owner', offset: 90 }), content.subarray(90, 97));
    assert.throws(
      () => tpm.nvRead(nv, 11, { by: 'owner', offset: 90 }),
      (error) => isTpmError(error, TPM_RC.nvRange),
    );
  }
  machine.tool('tpm2_nvread', '-C', 'o', '-o', 'nv.bin', '0x1a51a00');
  assert.deepEqual(readFileSync(join(machine.directory, 'nv.bin')), content);
  const shown = machine.tool('tpm2_nvreadpublic', '0x1a51a00');
  {
    using tpm = new Tpm(machine.tcti);
    const nv = tpm.nvOpen(index);
    assert.ok(nv);
    assert.deepEqual(tpm.nvReadPublic(nv), { ...nv.publicArea, name: nv.name });
    assert.match(shown, new RegExp(`name: ${Buffer.from(nv.name).toString('hex')}`));
    assert.match(shown, new RegExp(`value: 0x${nv.publicArea.attributes.toString(16).toUpperCase()}`));
    tpm.nvUndefine(nv);
    assert.equal(tpm.nvOpen(index), undefined);
  }
});

test('more than one command carries is read and written in parts', () => {
  using tpm = new Tpm(machine.tcti);
  const content = randomBytes(1900);
  using nv = tpm.nvDefine({ index: 0x01500001, attributes: OWNED, authPolicy: EMPTY, sizeBytes: 2000 });
  tpm.nvWrite(nv, content, { by: 'owner', offset: 100 });
  assert.deepEqual(tpm.nvRead(nv, 1900, { by: 'owner', offset: 100 }), content);
  tpm.nvUndefine(nv);
});

test('a counter counts up and starts above every counter before it', () => {
  using tpm = new Tpm(machine.tcti);
  const attributes = OWNED | NV.counter;
  const count = (): bigint => {
    using nv = tpm.nvDefine({ index: 0x01500002, attributes, authPolicy: EMPTY, sizeBytes: 8 });
    tpm.nvIncrement(nv, { by: 'owner' });
    const first = tpm.nvRead(nv, 8, { by: 'owner' }).readBigUInt64BE();
    tpm.nvIncrement(nv, { by: 'owner' });
    assert.equal(tpm.nvRead(nv, 8, { by: 'owner' }).readBigUInt64BE(), first + 1n);
    tpm.nvUndefine(nv);
    return first;
  };
  const first = count();
  assert.ok(count() > first + 1n);
});

test('an index opens for its policy and for nothing else, by the policy that tpm2_policypcr computes', () => {
  machine.tool('tpm2_startauthsession', '-S', 'trial');
  machine.tool('tpm2_policypcr', '-S', 'trial', '-l', 'sha256:15', '-L', 'policy');
  machine.tool('tpm2_flushcontext', 'trial');
  using tpm = new Tpm(machine.tcti);
  using trial = tpm.trialSession();
  tpm.policyPcr(trial, [15]);
  const authPolicy = tpm.policyDigest(trial);
  assert.deepEqual(authPolicy, readFileSync(join(machine.directory, 'policy')));
  using rootKey = tpm.storageRootKey();
  const attributes = NV.policyRead | NV.ownerWrite | NV.noDictionaryAttackProtection;
  using nv = tpm.nvDefine({ index: 0x01500003, attributes, authPolicy, sizeBytes: 32 });
  tpm.nvWrite(nv, Buffer.alloc(32, 9), { by: 'owner' });
  assert.throws(
    () => tpm.nvRead(nv, 32, { by: 'owner' }),
    (error) => isTpmError(error, TPM_RC.nvAuthorization),
  );
  using session = tpm.policySession(rootKey);
  tpm.policyPcr(session, [15]);
  assert.deepEqual(tpm.nvRead(nv, 32, { by: 'index', session }), Buffer.alloc(32, 9));
  tpm.extendPcr(15, Buffer.alloc(32, 1));
  tpm.policyPcr(session, [15]);
  assert.throws(
    () => tpm.nvRead(nv, 32, { by: 'index', session }),
    (error) => isTpmError(error, TPM_RC.policyFail),
  );
});

test('an owned TPM obeys its owner only, and the value does not leave this process in clear', async () => {
  await using owned = await startSoftwareTpm();
  const ownerAuth = randomBytes(32);
  const definition = { index: 0x01500004, attributes: OWNED, authPolicy: EMPTY, sizeBytes: 8 };
  {
    using tpm = new Tpm(owned.tcti);
    assert.equal(tpm.ownership().ownerAuthSet, false);
    using rootKey = tpm.storageRootKey();
    using session = tpm.encryptedSession(rootKey);
    tpm.hierarchyChangeAuth('owner', ownerAuth, session);
    assert.equal(tpm.ownership().ownerAuthSet, true);
    assert.throws(() => tpm.nvDefine(definition), /would cross the bus in clear/);
    using nv = tpm.nvDefine(definition, session);
    tpm.nvWrite(nv, Buffer.alloc(8, 3), { by: 'owner', session });
  }
  {
    using tpm = new Tpm(owned.tcti);
    const rootKey = tpm.persistentStorageRootKey();
    assert.ok(rootKey);
    using session = tpm.encryptedSession(rootKey);
    const nv = tpm.nvOpen(definition.index);
    assert.ok(nv);
    assert.throws(
      () => tpm.nvUndefine(nv),
      (error) => isTpmError(error, TPM_RC.badAuth),
    );
    tpm.useAuth('owner', randomBytes(32));
    assert.throws(
      () => tpm.nvUndefine(nv, session),
      (error) => isTpmError(error, TPM_RC.badAuth),
    );
    tpm.useAuth('owner', ownerAuth);
    assert.deepEqual(tpm.nvRead(nv, 8, { by: 'owner', session }), Buffer.alloc(8, 3));
    tpm.nvUndefine(nv, session);
    tpm.evictControl(rootKey, 0x81000001, session);
    assert.equal(tpm.persistentStorageRootKey(), undefined);
    using primary = tpm.createStorageRootKey('ecc-p256', session);
    using again = tpm.evictControl(primary, 0x81000001, session);
    assert.ok(again.handle > 0);
    tpm.hierarchyChangeAuth('owner', EMPTY, session);
    assert.equal(tpm.ownership().ownerAuthSet, false);
  }
});

test('an index with a value of its own is used through an encrypted session', () => {
  using tpm = new Tpm(machine.tcti);
  using rootKey = tpm.storageRootKey();
  using session = tpm.encryptedSession(rootKey);
  const auth = randomBytes(32);
  const attributes = NV.authRead | NV.authWrite | NV.noDictionaryAttackProtection;
  const definition = { index: 0x01500005, attributes, authPolicy: EMPTY, sizeBytes: 4, auth };
  assert.throws(() => tpm.nvDefine(definition), /pass a session from encryptedSession/);
  using nv = tpm.nvDefine(definition, session);
  tpm.nvWrite(nv, Buffer.of(1, 2, 3, 4), { by: 'index', session });
  assert.deepEqual(tpm.nvRead(nv, 4, { by: 'index', session }), Buffer.of(1, 2, 3, 4));
  assert.throws(() => tpm.nvRead(nv, 4, { by: 'index' }), /would cross the bus in clear/);
  tpm.useAuth(nv, randomBytes(32));
  assert.throws(
    () => tpm.nvRead(nv, 4, { by: 'index', session }),
    (error) => isTpmError(error, TPM_RC.badAuth, TPM_RC.authFail),
  );
  tpm.nvUndefine(nv);
});
