import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { authenticodeDigest } from '../../src/formats/authenticode.ts';
import { encodeCertificateList, encodeHashList } from '../../src/formats/efi-signature-list.ts';
import { decodeEventLog } from '../../src/formats/event-log.ts';
import { predictUnseal, type SealedTo, type UnsealChange } from '../../src/measure/predict-unseal.ts';
import { type Keys, loadKeys, rotatePolicyKey } from '../mkimage/keys.ts';
import { makeKeys, type SealedMachine, sealedMachine } from './sealed-machine-for-tests.ts';

let directory: string;
let machine: SealedMachine;
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-predict-'));
  machine = await sealedMachine(directory);
});
after(() => rm(directory, { recursive: true }));

function predict(change: Partial<UnsealChange> = {}, sealedTo: Partial<SealedTo> = {}) {
  const log = decodeEventLog(machine.eventLog);
  return predictUnseal({ ...machine.sealedTo, ...sealedTo }, log, { uki: machine.uki, ...change });
}

/** The checks that failed, by name, with what they say. */
function failures(prediction: ReturnType<typeof predict>): Record<string, string> {
  assert.equal(
    prediction.unseals,
    prediction.checks.every(({ passed }) => passed),
  );
  for (const { passed, wayOut } of prediction.checks) assert.equal(passed, wayOut === undefined);
  return Object.fromEntries(
    prediction.checks
      .filter(({ passed }) => !passed)
      .map(({ name, detail, wayOut }) => [name, `${detail} → ${wayOut}`]),
  );
}

describe('the data will open', () => {
  test('with the same image, on a board that measures more than the specification asks', () => {
    assert.deepEqual(failures(predict()), {});
  });

  test('with another image of the same policy key and Secure Boot key', () => {
    assert.deepEqual(failures(predict({ uki: machine.build({ cmdline: 'quiet splash' }) })), {});
  });

  test('with an image of a later epoch, which also opens the epochs before', () => {
    assert.deepEqual(failures(predict({ uki: machine.build({ epoch: 5 }) })), {});
  });

  test('after a change of dbx to which it was sealed before', () => {
    const dbx = encodeHashList(machine.keys.ownerGuid, [Buffer.alloc(32, 7)]);
    const { pcr7 } = predict({ dbx });
    const value = Buffer.from(pcr7?.value ?? []).toString('hex');
    assert.deepEqual(failures(predict({ dbx }, { pcr7: value })), {});
  });
});

describe('the data that waits for a state to come', () => {
  const dbx = () => encodeHashList(machine.keys.ownerGuid, [Buffer.alloc(32, 7)]);
  const waiting = (pcr7: string): SealedTo['waiting'] => ({ ...machine.sealedTo, pcr7 });

  test('will open after that change, and without it', () => {
    const value = Buffer.from(predict({ dbx: dbx() }).pcr7?.value ?? []).toString('hex');
    assert.deepEqual(failures(predict({ dbx: dbx() }, { waiting: waiting(value) })), {});
    assert.deepEqual(failures(predict({}, { waiting: waiting(value) })), {});
  });

  test('will not open after another change', () => {
    const prediction = predict({ dbx: dbx() }, { waiting: waiting('ab'.repeat(32)) });
    assert.deepEqual(Object.keys(failures(prediction)), ['pcr7']);
  });
});

describe('after a change of the policy key', () => {
  let next: Keys;
  before(async () => {
    await rotatePolicyKey(join(directory, 'machine-keys'), join(directory, 'next-keys'));
    next = await loadKeys(join(directory, 'next-keys'));
  });

  test('the data opens under an image that the former key approves, too', () => {
    assert.deepEqual(failures(predict({ uki: machine.build({ keys: next }) })), {});
  });

  test('a node that does not give its key leaves the signature unchecked, and that does not pass', () => {
    const failed = failures(predict({ uki: machine.build({ keys: next }) }, { policyKeyPem: undefined }));
    assert.match(failed['policy'] ?? '', /neither the image .* nor the node gives the policy key/);
  });

  test('another key that the node gives as that one is not believed', () => {
    const { policyPublicKeyPem } = next;
    const failed = failures(predict({ uki: machine.build({ keys: next }) }, { policyKeyPem: policyPublicKeyPem }));
    assert.deepEqual(Object.keys(failed), ['policy']);
    const nonsense = failures(predict({ uki: machine.build({ keys: next }) }, { policyKeyPem: 'no key' }));
    assert.deepEqual(Object.keys(nonsense), ['policy']);
  });

  test('the data does not open under an image of the new key alone', () => {
    const alone = { ...next, formerPolicyKeys: [] };
    const failed = failures(predict({ uki: machine.build({ keys: alone }) }));
    assert.match(failed['policy'] ?? '', /the data is sealed to .*mkimage keys rotate-policy/);
  });
});

describe('the data will not open', () => {
  test('when dbx changes: PCR 7 as it will be, and the reseal that helps, are named', () => {
    const dbx = encodeHashList(machine.keys.ownerGuid, [Buffer.alloc(32, 7)]);
    const prediction = predict({ dbx });
    const value = Buffer.from(prediction.pcr7?.value ?? []).toString('hex');
    const failed = failures(prediction);
    assert.deepEqual(Object.keys(failed), ['pcr7']);
    assert.match(failed['pcr7'] ?? '', new RegExp(`will be ${value} → before the change`));
    const { command } = prediction.checks.find(({ name }) => name === 'pcr7') ?? {};
    assert.equal(command, `ashlarctl node reseal NODE --pcr7 ${value}`);
    assert.notEqual(value, machine.sealedTo.pcr7);
  });

  test('when the machine was sealed to another state than the log of this boot gives', () => {
    assert.match(
      failures(predict({}, { pcr7: 'ab'.repeat(32) }))['pcr7'] ?? '',
      /event log of this boot gives .*reboot the node/,
    );
  });

  test('when the firmware does not run the image: its digest in dbx, or its signer not in db', async () => {
    const dbx = encodeHashList(machine.keys.ownerGuid, [authenticodeDigest(machine.uki)]);
    assert.match(failures(predict({ dbx }))['firmware'] ?? '', /is in dbx → sign the image/);
    const stranger = await makeKeys(join(directory, 'stranger'));
    const foreign = machine.build({
      keys: { ...machine.keys, dbKey: stranger.dbKey, dbCertificatePem: stranger.dbCertificatePem },
    });
    assert.match(failures(predict({ uki: foreign }))['firmware'] ?? '', /is not in db/);
    // Once db holds the stranger too, what differs is PCR 7.
    const db = Buffer.concat([
      machine.variables.db,
      encodeCertificateList(stranger.ownerGuid, stranger.dbCertificatePem),
    ]);
    assert.deepEqual(Object.keys(failures(predict({ uki: foreign, db }))), ['pcr7']);
  });

  test('when another policy key signed the image, or the same one for an older epoch', async () => {
    const other = await makeKeys(join(directory, 'other-policy'));
    const keys = { ...machine.keys, policyKey: other.policyKey, policyPublicKeyPem: other.policyPublicKeyPem };
    assert.match(failures(predict({ uki: machine.build({ keys }) }))['policy'] ?? '', /the data is sealed to/);
    assert.match(
      failures(predict({ uki: machine.build({ epoch: 1 }) }))['policy'] ?? '',
      /is signed for "ashlar-epoch-1", the data is sealed to "ashlar-epoch-2"/,
    );
  });

  test('when a signature is claimed for a key that did not make it', () => {
    const forged = Buffer.from(machine.uki);
    const text = forged.toString('latin1');
    // The last, which is of the epoch that counts.
    const at = text.lastIndexOf('"sig":"') + '"sig":"'.length;
    forged.write(text[at] === 'A' ? 'B' : 'A', at, 'latin1');
    assert.match(
      failures(predict({ uki: forged }))['policy'] ?? '',
      /signature for "ashlar-epoch-2" is not of the policy key/,
    );
  });
});

test('nothing is predicted for a log without PCR 7, or with Secure Boot off', () => {
  const log = decodeEventLog(machine.eventLog);
  const without = { ...log, entries: log.entries.filter(({ pcr }) => pcr !== 7) };
  assert.throws(() => predictUnseal(machine.sealedTo, without, { uki: machine.uki }), /no event of it/);
  const isSecureBoot = (data: Uint8Array) => Buffer.from(data).includes(Buffer.from('SecureBoot', 'utf16le'));
  const entries = log.entries.map((entry) =>
    isSecureBoot(entry.data)
      ? { ...entry, data: Buffer.concat([entry.data.subarray(0, -1), Uint8Array.of(0)]) }
      : entry,
  );
  assert.throws(() => predictUnseal(machine.sealedTo, { ...log, entries }, { uki: machine.uki }), /Secure Boot is off/);
});
