import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import fc from 'fast-check';
import { FormatError } from './byte-reader.ts';
import { decodeSignatureLists, dummyDbx, encodeCertificateList, encodeHashList } from './efi-signature-list.ts';
import { mutations, skipWithout } from './fixtures.ts';
import { createCertificate, decodePem } from './x509.ts';

const directory = mkdtempSync(join(tmpdir(), 'ashlar-esl-'));
after(() => rmSync(directory, { recursive: true }));
const owner = '12345678-1234-4234-8234-123456789abc';
const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const name = { commonName: 'KEK' };
const certificatePem = createCertificate({
  subject: name,
  publicKey,
  issuer: { name, key: privateKey },
  serialNumber: Uint8Array.of(1),
  notBefore: new Date('2025-01-01T00:00:00Z'),
  notAfter: new Date('2035-01-01T00:00:00Z'),
  isCa: true,
  usages: [],
});

describe('EFI signature lists', () => {
  it('equal those of cert-to-efi-sig-list', { skip: skipWithout('cert-to-efi-sig-list') }, () => {
    const certificate = join(directory, 'kek.crt');
    const list = join(directory, 'kek.esl');
    writeFileSync(certificate, certificatePem);
    execFileSync('cert-to-efi-sig-list', ['-g', owner, certificate, list], { stdio: 'pipe' });
    assert.deepEqual(Buffer.from(encodeCertificateList(owner, certificatePem)), readFileSync(list));
  });

  it('are read back, several in one variable', () => {
    const [first, second, ...rest] = decodeSignatureLists(
      Buffer.concat([encodeCertificateList(owner, certificatePem), dummyDbx()]),
    );
    assert.deepEqual(rest, []);
    assert.equal(first?.type, 'x509');
    assert.equal(first.signatures[0]?.ownerGuid, owner);
    assert.deepEqual(Buffer.from(first.signatures[0].data), Buffer.from(decodePem('CERTIFICATE', certificatePem)));
    assert.equal(second?.type, 'sha256');
    assert.equal(dummyDbx().length, 76);
  });

  it('keep every hash', () => {
    fc.assert(
      fc.property(
        fc.array(fc.uint8Array({ minLength: 32, maxLength: 32 }), { minLength: 1, maxLength: 9 }),
        (digests) => {
          const [list] = decodeSignatureLists(encodeHashList(owner, digests));
          assert.deepEqual(
            list?.signatures.map(({ data }) => Buffer.from(data)),
            digests.map((digest) => Buffer.from(digest)),
          );
        },
      ),
      { seed: 14, numRuns: 50 },
    );
  });

  it('are refused with a FormatError when malformed', () => {
    for (const bytes of mutations(dummyDbx(), { seed: 15, count: 2000 })) {
      try {
        decodeSignatureLists(bytes);
      } catch (error) {
        assert.ok(error instanceof FormatError, String(error));
      }
    }
  });
});
