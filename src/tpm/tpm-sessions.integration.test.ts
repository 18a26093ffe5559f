import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { NV, nvName } from '../formats/tpm-nv-public.ts';
import { policyNv, policyOr, policyPcr, policySecret } from '../measure/policy.ts';
import { type SoftwareTpm, startSoftwareTpm } from './swtpm-fixture.ts';
import { Tpm, type TpmHandle } from './tpm.ts';
import { tapTpm } from './tpm-bus-fixture.ts';
import { isTpmError, TPM_RC } from './tpm-error.ts';

const EMPTY = new Uint8Array();
const OWNED = NV.ownerRead | NV.ownerWrite | NV.noDictionaryAttackProtection;
const ENDORSEMENT_HIERARCHY_NAME = Buffer.from('4000000b', 'hex');

let machine: SoftwareTpm;
before(async () => {
  machine = await startSoftwareTpm();
});
after(async () => {
  await machine[Symbol.asyncDispose]();
});

/** The digest that tpm2-tools' commands come to, each given `-S session -L file`. */
function toolDigest(...commands: readonly (readonly [string, ...string[]])[]): Buffer {
  machine.tool('tpm2_startauthsession', '-S', 'session');
  try {
    for (const [name, ...args] of commands) machine.tool(name, '-S', 'session', '-L', 'digest', ...args);
  } finally {
    machine.tool('tpm2_flushcontext', 'session');
  }
  return readFileSync(join(machine.directory, 'digest'));
}

function trialDigest(tpm: Tpm, assertPolicy: (session: TpmHandle) => void): Buffer {
  using session = tpm.trialSession();
  assertPolicy(session);
  return tpm.policyDigest(session);
}

test('PolicySecret of the endorsement hierarchy is what tpm2_policysecret and the offline computation say', () => {
  const expected = toolDigest(['tpm2_policysecret', '-c', 'endorsement']);
  const policyRef = Buffer.from('reference');
  using tpm = new Tpm(machine.tcti);
  assert.deepEqual(
    trialDigest(tpm, (session) => tpm.policySecret(session, 'endorsement')),
    expected,
  );
  assert.deepEqual(Buffer.from(policySecret(ENDORSEMENT_HIERARCHY_NAME)), expected);
  assert.deepEqual(
    trialDigest(tpm, (session) => tpm.policySecret(session, 'endorsement', { policyRef })),
    Buffer.from(policySecret(ENDORSEMENT_HIERARCHY_NAME, { policyRef })),
  );
});

test('PolicyOR is what tpm2_policyor and the offline computation say, and only for one of its branches', () => {
  const empty = new Map([15, 16].map((pcr) => [pcr, Buffer.alloc(32)]));
  const branches = [policyPcr(empty), policySecret(ENDORSEMENT_HIERARCHY_NAME)];
  for (const [index, branch] of branches.entries()) writeFileSync(join(machine.directory, `branch-${index}`), branch);
  const list = 'sha256:branch-0,branch-1';
  const expected = toolDigest(['tpm2_policysecret', '-c', 'endorsement'], ['tpm2_policyor', '-l', list]);
  assert.deepEqual(Buffer.from(policyOr(branches)), expected);
  using tpm = new Tpm(machine.tcti);
  using rootKey = tpm.storageRootKey();
  using session = tpm.policySession(rootKey);
  tpm.policyPcr(session, [15, 16]);
  tpm.policyOr(session, branches);
  assert.deepEqual(tpm.policyDigest(session), expected);
  using other = tpm.policySession(rootKey);
  tpm.policyPcr(other, [15]);
  assert.throws(
    () => tpm.policyOr(other, branches),
    (error) => isTpmError(error, TPM_RC.value),
  );
  assert.throws(() => tpm.policyOr(other, branches.slice(1)), /PolicyOR of 1 branches: two to eight/);
});

test('PolicyNV is what tpm2_policynv and the offline computation say, and holds only while the index compares', () => {
  const index = 0x01500010;
  const operand = Buffer.from('0000000000000005', 'hex');
  let offline: Buffer;
  {
    using tpm = new Tpm(machine.tcti);
    using nv = tpm.nvDefine({ index, attributes: OWNED, authPolicy: EMPTY, sizeBytes: 8 });
    tpm.nvWrite(nv, Buffer.from('0000000000000007', 'hex'), { by: 'owner' });
    const name = tpm.nvReadPublic(nv).name;
    assert.deepEqual(name, nvName({ ...nv.publicArea, attributes: nv.publicArea.attributes | NV.written }));
    using rootKey = tpm.storageRootKey();
    using session = tpm.policySession(rootKey);
    tpm.policyNv(session, nv, { operand, comparison: 'greaterOrEqual' });
    offline = Buffer.from(policyNv(name, { operand, comparison: 0x0007 }));
    assert.deepEqual(tpm.policyDigest(session), offline);
    tpm.nvWrite(nv, Buffer.from('0000000000000004', 'hex'), { by: 'owner' });
    using refused = tpm.policySession(rootKey);
    assert.throws(
      () => tpm.policyNv(refused, nv, { operand, comparison: 'greaterOrEqual' }),
      (error) => isTpmError(error, TPM_RC.policy),
    );
    tpm.nvWrite(nv, Buffer.from('0000000000000007', 'hex'), { by: 'owner' });
  }
  writeFileSync(join(machine.directory, 'operand'), operand);
  assert.deepEqual(
    toolDigest(['tpm2_policynv', '-C', 'o', '-i', 'operand', `0x${index.toString(16)}`, 'uge']),
    offline,
  );
});

test('a secret behind PolicyOR opens by each branch, and by the second only for who knows the owner', async () => {
  await using owned = await startSoftwareTpm();
  using tpm = new Tpm(owned.tcti);
  using rootKey = tpm.storageRootKey();
  using session = tpm.encryptedSession(rootKey);
  const ownerAuth = randomBytes(32);
  tpm.hierarchyChangeAuth('owner', ownerAuth, session);
  const branches = [policyPcr(new Map([[16, Buffer.alloc(32)]])), policySecret(Buffer.from('40000001', 'hex'))];
  const secret = randomBytes(32);
  const sealed = tpm.seal(rootKey, session, { secret, authPolicy: policyOr(branches) });
  using object = tpm.load(rootKey, sealed);
  using policy = tpm.policySession(rootKey);
  tpm.policyPcr(policy, [16]);
  tpm.policyOr(policy, branches);
  assert.deepEqual(tpm.unseal(object, policy), secret);
  tpm.extendPcr(16, Buffer.alloc(32, 1));
  tpm.policySecret(policy, 'owner', { session });
  tpm.policyOr(policy, branches);
  assert.deepEqual(tpm.unseal(object, policy), secret);
  tpm.useAuth('owner', randomBytes(32));
  assert.throws(
    () => tpm.policySecret(policy, 'owner', { session }),
    (error) => isTpmError(error, TPM_RC.badAuth),
  );
});

test('no secret crosses the bus in clear: not what is sealed, unsealed, stored, read, drawn or authorized with', async () => {
  await using quiet = await startSoftwareTpm();
  await using bus = await tapTpm(quiet);
  const secrets = new Map<string, Uint8Array>();
  const secret = (what: string, bytes: Uint8Array = randomBytes(32)): Uint8Array => {
    secrets.set(what, Buffer.from(bytes));
    return bytes;
  };
  {
    using tpm = new Tpm(bus.tcti);
    using rootKey = tpm.storageRootKey();
    using session = tpm.encryptedSession(rootKey);
    const authPolicy = policyPcr(new Map([[16, Buffer.alloc(32)]]));
    const sealed = tpm.seal(rootKey, session, { secret: secret('sealed'), authPolicy });
    tpm.hierarchyChangeAuth('owner', secret('owner authorization'), session);
    const attributes = NV.policyRead | NV.ownerWrite | NV.authRead | NV.noDictionaryAttackProtection;
    const definition = {
      index: 0x01500011,
      attributes,
      authPolicy,
      sizeBytes: 32,
      auth: secret('index authorization'),
    };
    using nv = tpm.nvDefine(definition, session);
    tpm.nvWrite(nv, secret('stored'), { by: 'owner', session });
    using policy = tpm.policySession(rootKey);
    tpm.policyPcr(policy, [16]);
    assert.deepEqual(tpm.nvRead(nv, 32, { by: 'index', session: policy }), secrets.get('stored'));
    assert.deepEqual(tpm.nvRead(nv, 32, { by: 'index', session }), secrets.get('stored'));
    using object = tpm.load(rootKey, sealed);
    tpm.policyPcr(policy, [16]);
    assert.deepEqual(tpm.unseal(object, policy), secrets.get('sealed'));
    secret('random', tpm.random(32, session));
    tpm.nvUndefine(nv, session);
  }
  const transfers = await bus.transfers();
  assert.ok(transfers.length > 15);
  for (const [what, bytes] of secrets) {
    for (const { command, response } of transfers) {
      assert.ok(!Buffer.from(command).includes(bytes), `${what} in a command`);
      assert.ok(!Buffer.from(response).includes(bytes), `${what} in a response`);
    }
  }
});
