import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { decodeSignatureLists } from '../../src/formats/efi-signature-list.ts';
import { skipWithout } from '../../src/formats/fixtures.ts';
import { type Enrolment, makeEnrolment, readEnrolmentFiles, writeEnrolmentFiles } from './enrolment-files.ts';
import { generateKeys, loadPublicKeys, type PublicKeys } from './keys.ts';
import { parseSigner } from './signer.ts';

let directory: string;
let keys: PublicKeys;
let enrolment: Enrolment;
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-enrolment-'));
  await generateKeys(join(directory, 'keys'), { isDevelopment: false });
  keys = await loadPublicKeys(join(directory, 'keys'));
  enrolment = await makeEnrolment({ keys, signers: signers(), timestamp: new Date('2026-01-02T03:04:05Z') });
});
after(() => rm(directory, { recursive: true }));

const signers = () => ({
  pk: parseSigner(join(directory, 'keys/PK.key')),
  kek: parseSigner(join(directory, 'keys/KEK.key')),
});

describe('the exported files', () => {
  it('equal those of sign-efi-sig-list, but for names of signature algorithms', {
    skip: skipWithout('sign-efi-sig-list'),
  }, async () => {
    const path = (name: string) => join(directory, name);
    await writeFile(path('PK.esl'), enrolment.lists.PK);
    const key = ['-c', join(keys.directory, 'PK.crt'), '-k', join(keys.directory, 'PK.key')];
    const args = ['-t', '2026-01-02 03:04:05', ...key, 'PK', path('PK.esl'), path('theirs.auth')];
    execFileSync('sign-efi-sig-list', args, { stdio: 'pipe', env: { ...process.env, TZ: 'UTC' } });
    const [ours, theirs] = [Buffer.from(enrolment.auth.PK), await readFile(path('theirs.auth'))];
    // Time and type before, lists after; between them the PKCS #7, whose signature is the same.
    assert.deepEqual(ours.subarray(0, 16), theirs.subarray(0, 16));
    assert.deepEqual(ours.subarray(20, 40), theirs.subarray(20, 40));
    const lists = Buffer.from(enrolment.lists.PK);
    assert.deepEqual(ours.subarray(-lists.length), theirs.subarray(-lists.length));
    const signatureOf = (auth: Buffer) => auth.subarray(-lists.length - 256, -lists.length);
    assert.deepEqual(signatureOf(ours), signatureOf(theirs));
  });

  it('hold a signature that openssl finds good, over what firmware checks', {
    skip: skipWithout('openssl'),
  }, async () => {
    const path = (name: string) => join(directory, name);
    const length = Buffer.from(enrolment.auth.db).readUInt32LE(16);
    const signedData = enrolment.auth.db.subarray(40, 16 + length);
    // openssl wants the ContentInfo that firmware does not.
    const inner = Buffer.concat([Buffer.from('a082', 'hex'), uint16(signedData.length), signedData]);
    const oid = Buffer.from('06092a864886f70d010702', 'hex');
    const body = Buffer.concat([oid, inner]);
    await writeFile(path('db.p7'), Buffer.concat([Buffer.from('3082', 'hex'), uint16(body.length), body]));
    const guid = Buffer.from('cbb219d73a3d9645a3bcdad00e67656f', 'hex');
    const attributes = Buffer.from('27000000', 'hex');
    const time = enrolment.auth.db.subarray(0, 16);
    const signed = Buffer.concat([Buffer.from('db', 'utf16le'), guid, attributes, time, enrolment.lists.db]);
    await writeFile(path('db.signed'), signed);
    const args = ['smime', '-verify', '-binary', '-inform', 'DER', '-in', path('db.p7'), '-content', path('db.signed')];
    execFileSync('openssl', [...args, '-CAfile', join(keys.directory, 'KEK.crt'), '-purpose', 'any'], {
      stdio: 'pipe',
    });
  });

  it('appear all at once in a new directory, and are read back for an image of the same db', async () => {
    const out = join(directory, 'out');
    await writeEnrolmentFiles(enrolment, out);
    assert.deepEqual((await readdir(out)).sort(), ['KEK.auth', 'KEK.esl', 'PK.auth', 'PK.esl', 'db.auth', 'db.esl']);
    await assert.rejects(writeEnrolmentFiles(enrolment, out), /it is there already/);
    assert.deepEqual((await readEnrolmentFiles(out, keys.dbCertificatePem)).db, Buffer.from(enrolment.auth.db));
    await assert.rejects(readEnrolmentFiles(out, keys.kekCertificatePem), /never start it again/);
  });

  it('trust Microsoft only when its certificate was given, under the owner that marks it', async () => {
    const owners = (lists: Uint8Array) =>
      decodeSignatureLists(lists).flatMap(({ signatures }) => signatures.map(({ ownerGuid }) => ownerGuid));
    assert.deepEqual(owners(enrolment.lists.db), [keys.ownerGuid]);
    const others = join(directory, 'others');
    await generateKeys(others, { isDevelopment: false });
    const certificate = await readFile(join(others, 'db.crt'), 'utf8');
    const options = { keys, signers: signers(), timestamp: new Date() };
    const both = await makeEnrolment({ ...options, microsoftPems: [certificate] });
    assert.deepEqual(owners(both.lists.db), [keys.ownerGuid, '77fa9abd-0359-4d32-bd60-28f4e78f784b']);
    const [, second] = decodeSignatureLists(both.lists.db);
    assert.deepEqual(second?.signatures[0]?.data, Buffer.from(new X509Certificate(certificate).raw));
    assert.deepEqual(both.lists.KEK, enrolment.lists.KEK, 'and Microsoft may not change db or dbx');
  });

  it('are refused when a key signs that is not the certificate’s', async () => {
    const wrong = { ...signers(), kek: parseSigner(join(directory, 'keys/PK.key')) };
    await assert.rejects(
      makeEnrolment({ keys, signers: wrong, timestamp: new Date() }),
      /cannot use signature enrolment\/db from file .*PK\.key: it does not verify; .*by the key of certificate "CN=Ashlar KEK"/,
    );
  });
});

function uint16(value: number): Uint8Array {
  return Uint8Array.of(value >> 8, value & 0xff);
}
