import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash, generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import {
  attachSignature,
  authenticodeDigest,
  authenticodeSignatureInput,
  signAuthenticode,
  verifyAuthenticode,
} from './authenticode.ts';
import { FormatError } from './byte-reader.ts';
import { decodeSignatureLists } from './efi-signature-list.ts';
import { minimalPe, mutations, skipWithout } from './fixtures.ts';
import { buildUki, decodePe } from './pe.ts';
import { createCertificate } from './x509.ts';

const directory = mkdtempSync(join(tmpdir(), 'ashlar-authenticode-'));
after(() => rmSync(directory, { recursive: true }));

function signer(commonName: string) {
  const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const name = { commonName };
  const certificatePem = createCertificate({
    subject: name,
    publicKey,
    issuer: { name, key: privateKey },
    serialNumber: Uint8Array.of(1),
    notBefore: new Date('2025-01-01T00:00:00Z'),
    notAfter: new Date('2045-01-01T00:00:00Z'),
    isCa: false,
    usages: ['codeSigning'],
  });
  return { certificatePem, key: privateKey };
}

const db = signer('db');
const other = signer('other');
const unsigned = buildUki({ stub: minimalPe(), sections: [{ name: '.cmdline', data: Buffer.from('quiet') }] });
const signed = signAuthenticode(unsigned, db);

const file = (name: string, bytes: string | Uint8Array): string => {
  const path = join(directory, name);
  writeFileSync(path, bytes);
  return path;
};

describe('signAuthenticode', () => {
  it('makes the same bytes twice', () => {
    assert.deepEqual(signAuthenticode(unsigned, db), signed);
  });

  it('does not change the digest', () => {
    assert.deepEqual(authenticodeDigest(signed), authenticodeDigest(unsigned));
  });

  it('pads a file of odd length before it is signed', () => {
    const odd = minimalPe({ trailing: Buffer.from('odd') });
    const [signature] = verifyAuthenticode(signAuthenticode(odd, db)).signatures;
    assert.equal(signature?.isValid, true);
  });

  it("has efitools' digest", { skip: skipWithout('hash-to-efi-sig-list') }, () => {
    for (const [name, image] of Object.entries({ unsigned, signed })) {
      const list = join(directory, `${name}.esl`);
      execFileSync('hash-to-efi-sig-list', [file(`${name}-digest.efi`, image), list], { stdio: 'ignore' });
      const [theirs, ...others] = decodeSignatureLists(readFileSync(list)).flatMap(({ signatures }) => signatures);
      assert.deepEqual([theirs?.data, others], [Buffer.from(authenticodeDigest(image)), []]);
    }
  });

  it('is accepted by sbverify, and refused for another certificate', { skip: skipWithout('sbverify') }, () => {
    const path = file('signed.efi', signed);
    execFileSync('sbverify', ['--cert', file('db.pem', db.certificatePem), path], { stdio: 'pipe' });
    const refused = spawnSync('sbverify', ['--cert', file('other.pem', other.certificatePem), path], {
      encoding: 'utf8',
    });
    assert.equal(refused.status, 1);
  });

  it('can be split: the signature is made elsewhere and attached', () => {
    const input = authenticodeSignatureInput(unsigned);
    const key = file('key.pem', db.key.export({ type: 'pkcs8', format: 'pem' }));
    const signature = execFileSync('openssl', ['dgst', '-sha256', '-sign', key], { input });
    assert.deepEqual(attachSignature(unsigned, { certificatePem: db.certificatePem, signature }), signed);
  });

  it('refuses a key that does not belong to the certificate, and a signed image', () => {
    assert.throws(() => signAuthenticode(unsigned, { ...db, key: other.key }), /not the one the certificate is for/);
    assert.throws(() => signAuthenticode(signed, db), /signed already/);
  });
});

describe('verifyAuthenticode', () => {
  it('reads what sbsign made and agrees about the digest', { skip: skipWithout('sbsign') }, () => {
    const input = file('unsigned.efi', unsigned);
    const output = join(directory, 'sbsigned.efi');
    const key = file('key.pem', db.key.export({ type: 'pkcs8', format: 'pem' }));
    execFileSync('sbsign', ['--key', key, '--cert', file('db.pem', db.certificatePem), '--output', output, input], {
      stdio: 'pipe',
    });
    const { digest, signatures } = verifyAuthenticode(readFileSync(output));
    assert.deepEqual(
      signatures.map(({ isValid, reason }) => ({ isValid, reason })),
      [{ isValid: true, reason: undefined }],
    );
    assert.deepEqual(digest, authenticodeDigest(signed));
    assert.deepEqual(Buffer.from(signatures[0]!.signedDigest), Buffer.from(digest));
  });

  it('finds no signature in an unsigned image', () => {
    assert.deepEqual(verifyAuthenticode(unsigned).signatures, []);
  });

  it('names the signer', () => {
    assert.equal(verifyAuthenticode(signed).signatures[0]?.signer?.subject, 'CN=db');
  });

  it('notices one changed byte in the image', () => {
    const changed = signed.slice();
    changed[0x600] = (changed[0x600] ?? 0) ^ 1;
    const [signature] = verifyAuthenticode(changed).signatures;
    assert.equal(signature?.isValid, false);
    assert.equal(signature?.reason, 'the image was changed after it was signed');
  });

  it('notices a signature by another key', () => {
    const signature = Buffer.alloc(256, 1);
    const [report] = verifyAuthenticode(
      attachSignature(unsigned, { certificatePem: db.certificatePem, signature }),
    ).signatures;
    assert.equal(report?.reason, "the signature was not made by the signer's key");
  });

  it('refuses data hidden after the certificate table', () => {
    assert.throws(
      () => verifyAuthenticode(Buffer.concat([signed, new Uint8Array(8)])),
      /does not end where the file ends/,
    );
  });

  it('never calls a mutated image valid, and never throws anything but a FormatError', () => {
    const { checkSum } = decodePe(signed).offsets;
    const hash = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
    const certificateTable = decodePe(signed).certificateTable.offset;
    for (const bytes of mutations(signed, { seed: 5, count: 1500 })) {
      if (bytes.length > checkSum + 4) bytes.set(signed.subarray(checkSum, checkSum + 4), checkSum);
      // Bytes inside the signature that nothing signs (padding, the Obsolete link's neighbours) may differ harmlessly.
      const isImageSame = hash(bytes.subarray(0, certificateTable)) === hash(signed.subarray(0, certificateTable));
      try {
        const { signatures } = verifyAuthenticode(bytes);
        if (!isImageSame) assert.ok(signatures.every((signature) => !signature.isValid));
      } catch (error) {
        assert.ok(error instanceof FormatError || error instanceof RangeError, String(error));
      }
    }
  });
});
