import assert from 'node:assert/strict';
import { generateKeyPairSync, type KeyObject } from 'node:crypto';
import { test } from 'node:test';
import { sha256, zeroPcr } from '../measure/pcr.ts';
import { encodePcrSignatures, type PcrSignature, policyKeyFingerprint, signPcr11 } from '../measure/pcr-signature.ts';
import {
  IMAGE_PCR,
  SealingError,
  type SealingFailure,
  sealSecret,
  selectPcrSignatures,
  unsealSecret,
} from './sealing.ts';
import { type SoftwareTpm, startSoftwareTpm } from './swtpm-fixture.ts';
import { Tpm } from './tpm.ts';

const SECRET = Buffer.from(sha256('a node unlock key'));
const POLICY_REF = 'ashlar-epoch-1';
const ENTER_INITRD = sha256('enter-initrd');
const LEAVE_INITRD = sha256('leave-initrd');

interface PolicyKey {
  readonly pem: string;
  readonly privateKey: KeyObject;
}

function policyKey(): PolicyKey {
  const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { pem: publicKey.export({ format: 'pem', type: 'spki' }).toString(), privateKey };
}

const fingerprint = (key: PolicyKey) => Buffer.from(policyKeyFingerprint(key.privateKey)).toString('hex');

const KEY = policyKey();
const POLICY = { policyKeyPem: KEY.pem, policyRef: POLICY_REF };

/** What a build puts into `.pcrsig` for an image that moves PCR 11 by these digests. */
function signImage(key: PolicyKey, digests: readonly Uint8Array[], policyRef = POLICY_REF): Buffer {
  const pcr11 = digests.reduce((pcr, digest) => sha256(pcr, digest), zeroPcr());
  return Buffer.from(encodePcrSignatures([signPcr11({ pcr11, policyRef, key: key.privateKey })]));
}

function signatures(json: Uint8Array, policyKeyPem = KEY.pem): PcrSignature[] {
  return selectPcrSignatures(json, { policyKeyPem, policyRef: POLICY_REF });
}

const IMAGE = [sha256('.linux'), sha256('the kernel')];
const IMAGE_SIGNATURES = signImage(KEY, [...IMAGE, ENTER_INITRD]);

/** A machine after the firmware, the stub and stage 1. */
async function bootMachine(machine: SoftwareTpm, image: readonly Uint8Array[] = IMAGE): Promise<Tpm> {
  await machine.restart();
  const tpm = new Tpm(machine.tcti);
  tpm.startup();
  tpm.extendPcr(7, sha256('SecureBoot=1'));
  for (const digest of [...image, ENTER_INITRD]) tpm.extendPcr(IMAGE_PCR, digest);
  return tpm;
}

/** Seals on a fresh machine, and restarts it. */
async function sealedMachine(): Promise<SoftwareTpm & { sealed: ReturnType<typeof sealSecret> }> {
  const machine = await startSoftwareTpm();
  using tpm = await bootMachine(machine);
  using rootKey = tpm.storageRootKey();
  return Object.assign(machine, { sealed: sealSecret(tpm, rootKey, SECRET, POLICY) });
}

const refusedAs = (failure: SealingFailure, message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof SealingError, String(error));
  assert.equal(error.failure, failure);
  assert.match(error.message, message);
  return true;
};

test('what is sealed on one boot is unsealed on the next', async () => {
  await using machine = await sealedMachine();
  using tpm = await bootMachine(machine);
  using rootKey = tpm.storageRootKey();
  assert.deepEqual(unsealSecret(tpm, rootKey, machine.sealed, POLICY, signatures(IMAGE_SIGNATURES)), SECRET);
});

test('another image of the same policy key unseals too', async () => {
  await using machine = await sealedMachine();
  const update = [sha256('.linux'), sha256('a newer kernel')];
  using tpm = await bootMachine(machine, update);
  using rootKey = tpm.storageRootKey();
  const updateSignatures = signatures(signImage(KEY, [...update, ENTER_INITRD]));
  assert.deepEqual(unsealSecret(tpm, rootKey, machine.sealed, POLICY, updateSignatures), SECRET);
});

test('after leave-initrd nothing unseals', async () => {
  await using machine = await sealedMachine();
  using tpm = await bootMachine(machine);
  using rootKey = tpm.storageRootKey();
  tpm.extendPcr(IMAGE_PCR, LEAVE_INITRD);
  assert.throws(
    () => unsealSecret(tpm, rootKey, machine.sealed, POLICY, signatures(IMAGE_SIGNATURES)),
    refusedAs('image-not-allowed', /PCR 11 is [0-9a-f]{64}, for which the image brings no signature/),
  );
});

test('an image signed by another policy key unseals nothing, even when its own key is trusted by mistake', async () => {
  await using machine = await sealedMachine();
  using tpm = await bootMachine(machine);
  using rootKey = tpm.storageRootKey();
  const foreign = policyKey();
  const theirs = signImage(foreign, [...IMAGE, ENTER_INITRD]);
  assert.throws(() => signatures(theirs), /no PCR 11 signature of policy key/);
  const relabelled = theirs.toString().replace(fingerprint(foreign), fingerprint(KEY));
  assert.throws(
    () => unsealSecret(tpm, rootKey, machine.sealed, POLICY, signatures(Buffer.from(relabelled))),
    refusedAs('image-not-allowed', /not of the policy key/),
  );
  const misled = { ...POLICY, policyKeyPem: foreign.pem };
  assert.throws(
    () => unsealSecret(tpm, rootKey, machine.sealed, misled, signatures(theirs, foreign.pem)),
    refusedAs('policy-not-met', /policy check failed/),
  );
});

test('a signature with another policyRef is not used', () => {
  assert.throws(
    () => signatures(signImage(KEY, IMAGE, 'ashlar-epoch-2')),
    /no PCR 11 signature of policy key .* "ashlar-epoch-1"/,
  );
});

test('a change of Secure Boot is refused, naming PCR 7 and both values', async () => {
  await using machine = await sealedMachine();
  using tpm = await bootMachine(machine);
  tpm.extendPcr(7, sha256('another dbx'));
  using rootKey = tpm.storageRootKey();
  assert.throws(
    () => unsealSecret(tpm, rootKey, machine.sealed, POLICY, signatures(IMAGE_SIGNATURES)),
    refusedAs('pcr-7-changed', /^PCR 7 is [0-9a-f]{64}, the key was sealed to [0-9a-f]{64}: Secure Boot/),
  );
});

for (const index of [12, 13, 15]) {
  test(`PCR ${index} other than zero is refused by name, when sealing and when unsealing`, async () => {
    await using machine = await sealedMachine();
    using tpm = await bootMachine(machine);
    tpm.extendPcr(index, sha256('injected'));
    using rootKey = tpm.storageRootKey();
    const refused = refusedAs('pcr-not-zero', new RegExp(`^PCR ${index} is [0-9a-f]{64}, expected 0: `));
    assert.throws(() => unsealSecret(tpm, rootKey, machine.sealed, POLICY, signatures(IMAGE_SIGNATURES)), refused);
    assert.throws(() => sealSecret(tpm, rootKey, SECRET, POLICY), refused);
  });
}

test('the TPM itself refuses when PCR 12 moves, without our check', async () => {
  await using machine = await sealedMachine();
  using tpm = await bootMachine(machine);
  using rootKey = tpm.storageRootKey();
  tpm.extendPcr(12, sha256('injected'));
  // Reads zeros where there are none: what an interposer on the bus could answer to an unauthenticated read.
  const lied = new Proxy(tpm, {
    get(target, property) {
      if (property === 'readPcrs') {
        return (indices: readonly number[]) => target.readPcrs(indices).set(12, Buffer.alloc(32));
      }
      const value: unknown = Reflect.get(target, property, target);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
  assert.throws(
    () => unsealSecret(lied, rootKey, machine.sealed, POLICY, signatures(IMAGE_SIGNATURES)),
    refusedAs('policy-not-met', /policy check failed/),
  );
});

test('another TPM is refused as another TPM', async () => {
  await using machine = await sealedMachine();
  await using other = await startSoftwareTpm();
  using tpm = await bootMachine(other);
  using rootKey = tpm.storageRootKey();
  assert.throws(
    () => unsealSecret(tpm, rootKey, machine.sealed, POLICY, signatures(IMAGE_SIGNATURES)),
    refusedAs('another-tpm', /this TPM has/),
  );
  const renamed = { ...machine.sealed, storageRootKeyName: rootKey.name };
  assert.throws(
    () => unsealSecret(tpm, rootKey, renamed, POLICY, signatures(IMAGE_SIGNATURES)),
    refusedAs('another-tpm', /does not recognise the sealed key/),
  );
});

test('a TPM in lockout still unseals', async () => {
  await using machine = await sealedMachine();
  machine.tool('tpm2_createprimary', '-Q', '-C', 'o', '-p', 'right', '-c', 'guarded.ctx');
  machine.tool('tpm2_flushcontext', '-t');
  for (let attempt = 0; attempt < 8; attempt += 1) {
    try {
      machine.tool('tpm2_create', '-Q', '-C', 'guarded.ctx', '-P', 'wrong', '-u', 'x.pub', '-r', 'x.priv');
    } catch {
      machine.tool('tpm2_flushcontext', '-t');
    }
  }
  using tpm = await bootMachine(machine);
  assert.equal(tpm.lockout().active, true);
  using rootKey = tpm.storageRootKey();
  assert.deepEqual(unsealSecret(tpm, rootKey, machine.sealed, POLICY, signatures(IMAGE_SIGNATURES)), SECRET);
});

test('nothing is sealed while PCR 7 is zero', async () => {
  await using machine = await startSoftwareTpm();
  using tpm = new Tpm(machine.tcti);
  using rootKey = tpm.storageRootKey();
  assert.throws(() => sealSecret(tpm, rootKey, SECRET, POLICY), refusedAs('policy-not-met', /PCR 7 is 0/));
});

test('a malformed signature document is refused', () => {
  for (const text of ['', '[]', '{"sha256":[{}]}', '{"sha1":[]}', 'x'.repeat(2 ** 20 + 1)]) {
    assert.throws(() => signatures(Buffer.from(text)), /cannot decode PCR signatures/);
  }
});
