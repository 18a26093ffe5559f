/** MakeCredential is software and in measure/; whether a TPM agrees is seen here, on a real one (swtpm). */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { objectName } from '../formats/tpm-public-area.ts';
import { decodeSized } from '../formats/tpm-structures.ts';
import { makeCredential } from '../measure/make-credential.ts';
import { type SoftwareTpm, startSoftwareTpm } from './swtpm-fixture.ts';

let machine: SoftwareTpm;
before(async () => {
  machine = await startSoftwareTpm();
});
after(async () => {
  await machine[Symbol.asyncDispose]();
});

const path = (name: string): string => join(machine.directory, name);
const read = (name: string): Uint8Array => readFileSync(path(name));

/** An endorsement key and an attestation key below it, made by tpm2-tools. */
function createKeys(kind: 'rsa' | 'ecc'): { ekPublicArea: Uint8Array; akName: Uint8Array } {
  machine.tool('tpm2_createek', '-Q', '-G', kind, '-c', `${kind}-ek.ctx`, '-u', `${kind}-ek.pub`);
  machine.tool(
    'tpm2_createak',
    ...['-Q', '-C', `${kind}-ek.ctx`, '-G', 'ecc', '-g', 'sha256', '-s', 'ecdsa'],
    ...['-c', `${kind}-ak.ctx`, '-u', `${kind}-ak.pub`, '-n', `${kind}-ak.name`],
  );
  machine.tool('tpm2_flushcontext', '-t');
  return {
    ekPublicArea: decodeSized(read(`${kind}-ek.pub`), 'TPM2B_PUBLIC'),
    akName: read(`${kind}-ak.name`),
  };
}

/** The file of tpm2-tools: magic, version, TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET. */
function toolFile(credential: { credentialBlob: Uint8Array; encryptedSecret: Uint8Array }): Uint8Array {
  const sized = (bytes: Uint8Array) => Buffer.concat([Uint8Array.of(bytes.length >> 8, bytes.length & 255), bytes]);
  const head = Buffer.from('badcc0de00000001', 'hex');
  return Buffer.concat([head, sized(credential.credentialBlob), sized(credential.encryptedSecret)]);
}

function activateWithTools(kind: 'rsa' | 'ecc', file: string): Uint8Array {
  machine.tool('tpm2_startauthsession', '--policy-session', '-S', 'session.ctx');
  machine.tool('tpm2_policysecret', '-Q', '-S', 'session.ctx', '-c', 'endorsement');
  try {
    machine.tool(
      'tpm2_activatecredential',
      ...['-Q', '-c', `${kind}-ak.ctx`, '-C', `${kind}-ek.ctx`, '-P', 'session:session.ctx'],
      ...['-i', file, '-o', 'secret.out'],
    );
  } finally {
    machine.tool('tpm2_flushcontext', 'session.ctx');
    machine.tool('tpm2_flushcontext', '-t');
  }
  return read('secret.out');
}

for (const kind of ['rsa', 'ecc'] as const) {
  test(`a TPM opens with tpm2_activatecredential what was made in software for its ${kind} endorsement key`, () => {
    const { ekPublicArea, akName } = createKeys(kind);
    const secret = randomBytes(32);
    writeFileSync(path('credential'), toolFile(makeCredential(ekPublicArea, akName, secret)));
    assert.deepEqual(activateWithTools(kind, 'credential'), secret);
  });

  test(`a TPM refuses a credential of its ${kind} endorsement key that is for another attestation key`, () => {
    const { ekPublicArea, akName } = createKeys(kind);
    const otherName = objectName(akName);
    writeFileSync(path('credential'), toolFile(makeCredential(ekPublicArea, otherName, randomBytes(32))));
    assert.throws(() => activateWithTools(kind, 'credential'), /integrity check failed|0x1[0-9a-f]*df/i);
  });
}
