/** The real TPM software: what the Worker answers, judged by node:crypto and by tpm2-tools. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { decodeAttest, decodeTpmPublicKey, decodeTpmSignature, verifyTpmSignature } from '../formats/tpm-attest.ts';
import { objectName } from '../formats/tpm-public-area.ts';
import { qualifyingData, quotedPcrs } from '../measure/evidence.ts';
import { makeCredential } from '../measure/make-credential.ts';
import { sha256 } from '../measure/pcr.ts';
import { type SoftwareTpm, startSoftwareTpm } from '../tpm/swtpm-fixture.ts';
import { type AttestMessage, runAttestTask } from './attest-tpm.ts';

let swtpm: SoftwareTpm;
before(async () => {
  swtpm = await startSoftwareTpm();
});
after(() => swtpm[Symbol.asyncDispose]());

const text = (bytes: Uint8Array) => Buffer.from(bytes).toString('base64');
const read = (base64: string) => Buffer.from(base64, 'base64');

function expectType<T extends AttestMessage['type']>(message: AttestMessage, type: T): AttestMessage & { type: T } {
  assert.equal(message.type, type, JSON.stringify(message));
  return message as AttestMessage & { type: T };
}

function readIdentity() {
  return expectType(runAttestTask({ kind: 'identity', tpm: swtpm.tcti }), 'identity').identity;
}

function attestWith(change: { akName?: Uint8Array; tlsSpki?: Uint8Array; nonce?: Uint8Array } = {}) {
  const identity = readIdentity();
  const secret = randomBytes(32);
  const akName = change.akName ?? objectName(read(identity.akPublic));
  const { credentialBlob, encryptedSecret } = makeCredential(read(identity.ekPublic), akName, secret);
  const [nonce, tlsSpki] = [change.nonce ?? randomBytes(32), change.tlsSpki ?? Buffer.from('spki')];
  const answer = runAttestTask({
    kind: 'attest',
    tpm: swtpm.tcti,
    ekKind: identity.ekKind,
    nonce: text(nonce),
    credentialBlob: text(credentialBlob),
    encryptedSecret: text(encryptedSecret),
    tlsSpki: text(tlsSpki),
  });
  return { answer, identity, secret, nonce, tlsSpki };
}

test('a quote is of the attestation key, binds nonce, secret and TLS key, and covers the values beside it', () => {
  swtpm.tool('tpm2_pcrextend', `7:sha256=${'ab'.repeat(32)}`);
  const { answer, identity, secret, nonce, tlsSpki } = attestWith();
  const { attestation } = expectType(answer, 'attestation');
  const attest = decodeAttest(read(attestation.quote));
  const isSigned = verifyTpmSignature(
    decodeTpmPublicKey(read(identity.akPublic)),
    decodeTpmSignature(read(attestation.signature)),
    read(attestation.quote),
  );
  assert.ok(isSigned);
  assert.deepEqual(Buffer.from(attest.extraData), Buffer.from(qualifyingData({ nonce, secret, tlsSpki })));
  const values = quotedPcrs.map((index) => Buffer.from(attestation.pcrs[index] ?? '', 'hex'));
  assert.deepEqual(Buffer.from(attest.quote?.pcrDigest ?? []), Buffer.from(sha256(...values)));
  assert.notEqual(attestation.pcrs[7], '00'.repeat(32));
});

test('the keys are the same each time, and nothing stays in the TPM', () => {
  const before = ['handles-transient', 'handles-persistent', 'handles-loaded-session'].map((kind) =>
    swtpm.tool('tpm2_getcap', kind),
  );
  assert.deepEqual(readIdentity(), readIdentity());
  expectType(attestWith().answer, 'attestation');
  const afterwards = ['handles-transient', 'handles-persistent', 'handles-loaded-session'].map((kind) =>
    swtpm.tool('tpm2_getcap', kind),
  );
  assert.deepEqual(afterwards, before);
});

test('a credential for another key than the attestation key is refused as the fault of who sent it', () => {
  const { answer } = attestWith({ akName: Buffer.concat([Uint8Array.of(0, 11), randomBytes(32)]) });
  const refused = expectType(answer, 'refused');
  assert.ok(refused.isCredential);
  assert.match(refused.message, /not for this TPM and its attestation key/);
});

test('bytes that are no credential are refused, and the TPM attests the next one', () => {
  const { ekKind } = readIdentity();
  for (const size of [68, 256]) {
    const garbage = { credentialBlob: text(randomBytes(68)), encryptedSecret: text(randomBytes(size)) };
    const task = { nonce: text(randomBytes(32)), tlsSpki: text(randomBytes(91)), ...garbage };
    expectType(runAttestTask({ kind: 'attest', tpm: swtpm.tcti, ekKind, ...task }), 'refused');
  }
  expectType(attestWith().answer, 'attestation');
});

test('a certified endorsement key is preferred, and its certificate told without its padding', () => {
  const certificate = Buffer.concat([Uint8Array.of(0x30, 0x82, 0x01, 0x00), randomBytes(256)]);
  swtpm.tool('tpm2_nvdefine', '0x01C00002', '-C', 'o', '-s', '300', '-a', 'ownerwrite|ownerread|authread|no_da');
  const padded = Buffer.concat([certificate, Buffer.alloc(300 - certificate.length, 0xff)]);
  writeFileSync(join(swtpm.directory, 'certificate'), padded);
  swtpm.tool('tpm2_nvwrite', '0x01C00002', '-C', 'o', '-i', 'certificate');
  const identity = readIdentity();
  assert.equal(identity.ekKind, 'rsa-2048');
  assert.deepEqual(identity.ekCertificates.map(read), [certificate]);
});

test('a TPM that is not there is a refusal with its name, and not the fault of a credential', () => {
  const refused = expectType(runAttestTask({ kind: 'identity', tpm: 'swtpm:path=/nowhere' }), 'refused');
  assert.equal(refused.isCredential, false);
  assert.notEqual(refused.message, '');
});
