import assert from 'node:assert/strict';
import { generateKeyPairSync, type KeyObject } from 'node:crypto';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { encodeEfiTime, enrolledVariables, signAuthenticatedWrite } from '../formats/authenticated-variable.ts';
import { signAuthenticode } from '../formats/authenticode.ts';
import { encodeCertificateList } from '../formats/efi-signature-list.ts';
import { minimalPe } from '../formats/fixtures.ts';
import type { EnrolmentFiles } from '../formats/secure-boot-enrolment.ts';
import { createCertificate } from '../formats/x509.ts';
import { readEnrolment, writeEnrolment } from './enrol-secure-boot.ts';

const owner = '12345678-1234-4234-8234-123456789abc';

function selfSigned(commonName: string): { certificatePem: string; key: KeyObject } {
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

const [pk, kek, db] = [selfSigned('PK'), selfSigned('KEK'), selfSigned('db')];
const timestamp = encodeEfiTime(new Date('2025-02-03T04:05:06Z'));
const [dbVariable, kekVariable, pkVariable] = enrolledVariables;
const listOf = ({ certificatePem }: { certificatePem: string }) => encodeCertificateList(owner, certificatePem);
const files: EnrolmentFiles = {
  db: signAuthenticatedWrite({ ...dbVariable, timestamp, content: listOf(db) }, kek),
  KEK: signAuthenticatedWrite({ ...kekVariable, timestamp, content: listOf(kek) }, pk),
  PK: signAuthenticatedWrite({ ...pkVariable, timestamp, content: listOf(pk) }, pk),
};

let directory: string;
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-enrol-'));
});
after(() => rm(directory, { recursive: true }));

/** An ESP with these keys, and a UKI unless told. */
async function espWith(uki: Uint8Array | undefined, names: readonly (keyof EnrolmentFiles)[] = ['db', 'KEK', 'PK']) {
  const esp = await mkdtemp(join(directory, 'esp-'));
  await mkdir(join(esp, 'EFI/ashlar/keys'), { recursive: true });
  await mkdir(join(esp, 'EFI/BOOT'), { recursive: true });
  for (const name of names) await writeFile(join(esp, `EFI/ashlar/keys/${name}.auth`), files[name]);
  if (uki !== undefined) await writeFile(join(esp, 'EFI/BOOT/BOOTX64.EFI'), uki);
  return esp;
}

describe('the enrolment on an ESP', () => {
  it('is taken when it lets the image on the same ESP start', async () => {
    const esp = await espWith(signAuthenticode(minimalPe(), db));
    const found = await readEnrolment(esp);
    assert.deepEqual(found.files.PK, Buffer.from(files.PK));
    assert.equal(found.certificates.db[0]?.subject, 'CN=db');
  });

  it('is refused when that image is unsigned, changed, signed by another key or not there', async () => {
    const changed = signAuthenticode(minimalPe(), db);
    changed[0x700] = (changed[0x700] ?? 0) ^ 1;
    for (const [uki, reason] of [
      [minimalPe(), /BOOTX64\.EFI would not start: it is not signed/],
      [changed, /BOOTX64\.EFI would not start: the image was changed/],
      [signAuthenticode(minimalPe(), kek), /db\.auth: the image is signed by "CN=KEK"/],
      [undefined, /the ESP has no EFI\/BOOT\/BOOTX64\.EFI/],
    ] as const) {
      await assert.rejects(readEnrolment(await espWith(uki)), reason);
    }
  });

  it('is asked for by name when a file is missing', async () => {
    const esp = await espWith(signAuthenticode(minimalPe(), db), ['db', 'PK']);
    await assert.rejects(readEnrolment(esp), /no EFI\/ashlar\/keys\/KEK\.auth; make it with: mkimage keys export-auth/);
  });
});

describe('writeEnrolment', () => {
  it('writes attributes and file of each variable in one piece', async () => {
    const efivars = await mkdtemp(join(directory, 'efivars-'));
    writeEnrolment(files, efivars);
    assert.deepEqual((await readdir(efivars)).sort(), [
      'KEK-8be4df61-93ca-11d2-aa0d-00e098032b8c',
      'PK-8be4df61-93ca-11d2-aa0d-00e098032b8c',
      'db-d719b2cb-3d3a-4596-a3bc-dad00e67656f',
    ]);
    const written = await readFile(join(efivars, 'db-d719b2cb-3d3a-4596-a3bc-dad00e67656f'));
    assert.deepEqual(written, Buffer.concat([Uint8Array.of(0x27, 0, 0, 0), files.db]));
  });

  it('stops before PK when an earlier variable is refused, so that the machine stays in Setup Mode', async () => {
    const efivars = await mkdtemp(join(directory, 'efivars-'));
    await mkdir(join(efivars, 'KEK-8be4df61-93ca-11d2-aa0d-00e098032b8c'));
    assert.throws(() => writeEnrolment(files, efivars), /the firmware refused KEK: EISDIR.*clear the keys/);
    assert.ok(!(await readdir(efivars)).some((name) => name.startsWith('PK-')));
  });
});
