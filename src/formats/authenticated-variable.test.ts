import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { generateKeyPairSync, type KeyObject } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import {
  authenticatedWriteInput,
  authenticatedWriteProblem,
  certificatesOf,
  decodeAuthenticatedWrite,
  encodeEfiTime,
  signAuthenticatedWrite,
} from './authenticated-variable.ts';
import { FormatError } from './byte-reader.ts';
import { dummyDbx, efiGlobalVariable, efiImageSecurityDatabase, encodeCertificateList } from './efi-signature-list.ts';
import { mutations, skipWithout } from './fixtures.ts';
import { createCertificate, decodePem } from './x509.ts';

const directory = mkdtempSync(join(tmpdir(), 'ashlar-auth-'));
after(() => rmSync(directory, { recursive: true }));
const owner = '12345678-1234-4234-8234-123456789abc';

function authority(commonName: string): { certificatePem: string; key: KeyObject } {
  const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const certificatePem = createCertificate({
    subject: { commonName },
    publicKey,
    issuer: { name: { commonName }, key: privateKey },
    serialNumber: Uint8Array.of(1),
    notBefore: new Date('2025-01-01T00:00:00Z'),
    notAfter: new Date('2035-01-01T00:00:00Z'),
    isCa: true,
    usages: [],
  });
  return { certificatePem, key: privateKey };
}

const kek = authority('KEK');
const db = { name: 'db', vendorGuid: efiImageSecurityDatabase };
const content = encodeCertificateList(owner, kek.certificatePem);
const timestamp = encodeEfiTime(new Date('2025-02-03T04:05:06Z'));
const write = { ...db, timestamp, content };
const bytes = signAuthenticatedWrite(write, kek);

describe('an authenticated write', () => {
  it('is header, signature and content, and comes back as it went', () => {
    assert.equal(Buffer.from(bytes).toString('hex', 0, 16), 'e9070203040506000000000000000000');
    const length = Buffer.from(bytes).readUInt32LE(16);
    assert.equal(bytes.length, 16 + length + content.length);
    const decoded = decodeAuthenticatedWrite(bytes);
    assert.deepEqual(decoded.content, content);
    assert.deepEqual(decoded.timestamp, timestamp);
    assert.equal(decoded.signer?.subject, 'CN=KEK');
    assert.deepEqual(
      certificatesOf(decoded.lists).map((der) => Buffer.from(der)),
      [decodePem('CERTIFICATE', kek.certificatePem)],
    );
    assert.equal(authenticatedWriteProblem(db, decoded), undefined);
  });

  it('is of one variable: the same bytes are no write of another', () => {
    const decoded = decodeAuthenticatedWrite(bytes);
    assert.match(authenticatedWriteProblem({ ...db, name: 'dbx' }, decoded) ?? '', /not signed as a write of dbx/);
    assert.match(authenticatedWriteProblem({ ...db, vendorGuid: efiGlobalVariable }, decoded) ?? '', /not signed/);
  });

  it('is not signed any more when its content or time is changed', () => {
    const other = decodeAuthenticatedWrite(
      Buffer.concat([bytes.subarray(0, bytes.length - content.length), dummyDbx()]),
    );
    assert.match(authenticatedWriteProblem(db, other) ?? '', /not signed/);
    const later = new Uint8Array(bytes);
    later[6] = 7;
    assert.match(authenticatedWriteProblem(db, decodeAuthenticatedWrite(later)) ?? '', /not signed/);
  });

  it('is refused with a FormatError when malformed', () => {
    for (const mutation of mutations(bytes, { seed: 31, count: 3000 })) {
      try {
        decodeAuthenticatedWrite(mutation);
      } catch (error) {
        assert.ok(error instanceof FormatError, String(error));
      }
    }
    assert.throws(() => decodeAuthenticatedWrite(new Uint8Array(65 * 1024)), /over the limit/);
  });

  it('has the bytes to sign that sign-efi-sig-list has', { skip: skipWithout('sign-efi-sig-list') }, () => {
    const [list, bundle] = [join(directory, 'db.esl'), join(directory, 'db.bundle')];
    writeFileSync(list, content);
    execFileSync('sign-efi-sig-list', ['-o', '-t', '2025-02-03 04:05:06', 'db', list, bundle], {
      stdio: 'pipe',
      env: { ...process.env, TZ: 'UTC' },
    });
    assert.deepEqual(Buffer.from(authenticatedWriteInput(write)), readFileSync(bundle));
  });

  it('is read when sign-efi-sig-list made it, and found well signed', {
    skip: skipWithout('sign-efi-sig-list'),
  }, () => {
    const path = (name: string) => join(directory, name);
    writeFileSync(path('kek.crt'), kek.certificatePem);
    writeFileSync(path('kek.key'), kek.key.export({ type: 'pkcs8', format: 'pem' }));
    writeFileSync(path('db2.esl'), content);
    const args = ['-t', '2025-02-03 04:05:06', '-c', path('kek.crt'), '-k', path('kek.key')];
    execFileSync('sign-efi-sig-list', [...args, 'db', path('db2.esl'), path('db.auth')], {
      stdio: 'pipe',
      env: { ...process.env, TZ: 'UTC' },
    });
    const theirs = readFileSync(path('db.auth'));
    const decoded = decodeAuthenticatedWrite(theirs);
    assert.equal(authenticatedWriteProblem(db, decoded), undefined);
    assert.deepEqual(decoded.content, Buffer.from(content));
    assert.deepEqual(decoded.signature, decodeAuthenticatedWrite(bytes).signature);
  });
});
