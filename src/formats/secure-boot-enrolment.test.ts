import assert from 'node:assert/strict';
import { generateKeyPairSync, type KeyObject, X509Certificate } from 'node:crypto';
import { describe, it } from 'node:test';
import {
  type EnrolledVariable,
  encodeEfiTime,
  enrolledVariables,
  signAuthenticatedWrite,
} from './authenticated-variable.ts';
import { dummyDbx, encodeCertificateList } from './efi-signature-list.ts';
import { checkEnrolment, type EnrolmentFiles } from './secure-boot-enrolment.ts';
import { createCertificate } from './x509.ts';

interface Authority {
  readonly commonName: string;
  readonly certificatePem: string;
  readonly key: KeyObject;
}

const owner = '12345678-1234-4234-8234-123456789abc';

function authority(commonName: string, issuer?: Authority): Authority {
  const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const by = issuer ?? { commonName, key: privateKey };
  const certificatePem = createCertificate({
    subject: { commonName },
    publicKey,
    issuer: { name: { commonName: by.commonName }, key: by.key },
    serialNumber: Uint8Array.of(commonName.length),
    notBefore: new Date('2025-01-01T00:00:00Z'),
    notAfter: new Date('2035-01-01T00:00:00Z'),
    isCa: issuer === undefined,
    usages: [],
  });
  return { commonName, certificatePem, key: privateKey };
}

const [pk, kek, db, stranger] = [authority('PK'), authority('KEK'), authority('db key'), authority('stranger')];
const leaf = authority('leaf of db', db);

function file(name: EnrolledVariable, signer: Authority, ...holds: Authority[]): Uint8Array {
  const variable = enrolledVariables.find((one) => one.name === name);
  assert.ok(variable);
  const content = Buffer.concat(holds.map(({ certificatePem }) => encodeCertificateList(owner, certificatePem)));
  const timestamp = encodeEfiTime(new Date('2025-02-03T04:05:06Z'));
  return signAuthenticatedWrite({ ...variable, timestamp, content }, signer);
}

const good: EnrolmentFiles = { PK: file('PK', pk, pk), KEK: file('KEK', pk, kek), db: file('db', kek, db) };
const signerOf = ({ certificatePem }: Authority) => new X509Certificate(certificatePem);

describe('checkEnrolment', () => {
  it('accepts PK by itself, KEK by PK, db by KEK or PK, and says what the machine will hold', () => {
    const held = checkEnrolment(good, signerOf(db));
    assert.deepEqual(
      [held.PK, held.KEK, held.db].map((certificates) => certificates.map(({ subject }) => subject)),
      [['CN=PK'], ['CN=KEK'], ['CN=db key']],
    );
    checkEnrolment({ ...good, db: file('db', pk, stranger, db) }, signerOf(db));
  });

  it('accepts an image whose certificate an authority in db issued', () => {
    checkEnrolment(good, signerOf(leaf));
  });

  it('refuses a db under which the image would not start', () => {
    assert.throws(
      () => checkEnrolment(good, signerOf(stranger)),
      /cannot enrol db\.auth: the image is signed by "CN=stranger" .* only "CN=db key" .* never start it again/,
    );
  });

  it('names the file that the wrong key signed', () => {
    for (const [files, reason] of [
      [{ PK: file('PK', stranger, pk) }, /PK\.auth: it is not signed by the key that it enrols/],
      [{ KEK: file('KEK', stranger, kek) }, /KEK\.auth: it is not signed by the key in PK\.auth/],
      [{ db: file('db', stranger, db) }, /db\.auth: it is not signed by a key in KEK\.auth/],
      [{ PK: file('PK', pk, pk, stranger) }, /PK\.auth: it holds 2 certificates, not one/],
      [{ db: file('KEK', kek, db) }, /db\.auth: it is not signed as a write of db/],
      [{ db: file('db', kek) }, /db\.auth: it holds no certificate/],
      [{ KEK: good.KEK.subarray(0, 60) }, /KEK\.auth: cannot decode/],
    ] as const) {
      assert.throws(() => checkEnrolment({ ...good, ...files }, signerOf(db)), reason);
    }
  });

  it('refuses lists that are no certificates', () => {
    const [variable] = enrolledVariables;
    const timestamp = encodeEfiTime(new Date());
    const hashes = signAuthenticatedWrite({ ...variable, timestamp, content: dummyDbx() }, kek);
    assert.throws(() => checkEnrolment({ ...good, db: hashes }, signerOf(db)), /db\.auth: it holds no certificate/);
  });
});
