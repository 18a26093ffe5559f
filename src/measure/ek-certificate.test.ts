import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { FormatError } from '../formats/byte-reader.ts';
import { decodeCertificate, decodeExtendedKeyUsage, extensionOid } from '../formats/certificate.ts';
import { derBitString, derNamedBits, derNull, derOid, derSequence } from '../formats/der.ts';
import { mutations } from '../formats/fixtures.ts';
import type { TpmPublicKey } from '../formats/tpm-attest.ts';
import { certifies, describeTpm, findEkCertificate, nameOf } from './ek-certificate.ts';
import {
  authority,
  called,
  certificate,
  chainOf,
  ec,
  ekKeys,
  extension,
  middle,
  middleWith,
  purposes,
  rootKeys,
  spkiOf,
  tpmName,
} from './ek-certificate-fixture.ts';

const modulus = Buffer.from(ekKeys.publicKey.export({ format: 'jwk' }).n ?? '', 'base64url');
const ek: TpmPublicKey = {
  type: 'rsa',
  nameHash: 'sha256',
  attributes: 0x300b2,
  authPolicy: new Uint8Array(32),
  symmetricBits: 128,
  exponent: 65537,
  modulus,
};
describe('an endorsement key’s certificate', () => {
  test('is followed to a trusted authority, and tells the maker, though its subject is empty', () => {
    assert.deepEqual(chainOf(certificate()), ['CN=middle', 'CN=root']);
    const leaf = decodeCertificate(certificate());
    assert.deepEqual(describeTpm(leaf), { manufacturer: 'id:494E5443', model: 'fTPM', version: 'id:00020000' });
    assert.equal(nameOf(leaf.subject), '(no name)');
    assert.equal(leaf.notAfter.toISOString(), '9999-12-31T23:59:59.000Z');
  });

  test('is read out of NV memory that is padded with whatever', () => {
    const padded = Buffer.concat([certificate(), Buffer.alloc(300, 0xff)]);
    assert.ok(certifies(findEkCertificate([middle, padded], ek), ek));
    assert.deepEqual(chainOf(padded), ['CN=middle', 'CN=root']);
  });

  test('may mark its key as one for RSAES-OAEP, which OpenSSL does not read', () => {
    const rsaPublicKey = ekKeys.publicKey.export({ format: 'der', type: 'pkcs1' });
    const spki = derSequence(derSequence(derOid('1.2.840.113549.1.1.7'), derNull()), derBitString(rsaPublicKey));
    const oaep = certificate({ spki });
    assert.ok(certifies(decodeCertificate(oaep), ek));
    assert.deepEqual(chainOf(oaep), ['CN=middle', 'CN=root']);
  });

  test('needs no purpose, no version 3 and no intermediate authority', () => {
    const plain = certificate({ issuer: called('root'), issuerKey: rootKeys.privateKey, extensions: [] });
    assert.deepEqual(chainOf(plain, []), ['CN=root']);
  });

  test('is about one key', () => {
    const other = { ...ek, modulus: Buffer.alloc(256, 0xaa) };
    assert.equal(certifies(decodeCertificate(certificate()), other), false);
    assert.equal(certifies(decodeCertificate(certificate()), { ...ek, exponent: 3 }), false);
    assert.throws(() => findEkCertificate([certificate()], other), /none of the 1 certificates/);
    assert.throws(() => findEkCertificate([], ek), /brings no certificate/);
  });
});

describe('a chain is refused', () => {
  const refusals: [string, () => string[], RegExp][] = [
    ['to an unknown authority', () => chainOf(certificate(), [middle], []), /CN=root, is not among the trusted/],
    ['without its intermediate', () => chainOf(certificate(), []), /CN=middle, is not among the trusted/],
    [
      'when another key has signed',
      () => chainOf(certificate({ issuerKey: ec().privateKey })),
      /CN=middle, is not among the trusted/,
    ],
    [
      'when the issuer is no authority',
      () => chainOf(certificate(), [middleWith({ extensions: [] })]),
      /CN=middle is not an authority/,
    ],
    [
      'when the issuer may not sign certificates',
      () => {
        const [constraints = new Uint8Array(0)] = authority();
        const usage = extension(extensionOid.keyUsage, true, derNamedBits([0]));
        return chainOf(certificate(), [middleWith({ extensions: [constraints, usage] })]);
      },
      /CN=middle may not sign certificates/,
    ],
    [
      'when an authority has more below it than it may',
      () => {
        const lowKeys = ec();
        const low = certificate({ subject: called('low'), spki: spkiOf(lowKeys), extensions: authority() });
        const leaf = certificate({ issuer: called('low'), issuerKey: lowKeys.privateKey });
        return chainOf(leaf, [low, middle]);
      },
      /CN=middle may have 0 authorities below it, and has 1/,
    ],
    [
      'after its time',
      () => chainOf(certificate({ notAfter: new Date('2026-05-31T00:00:00Z') })),
      /until 2026-05-31T00:00:00.000Z, not at 2026-06-01/,
    ],
    [
      'when an intermediate is after its time',
      () => chainOf(certificate(), [middleWith({ notAfter: new Date('2026-05-31T00:00:00Z') })]),
      /CN=middle is valid from/,
    ],
    [
      'when a critical extension is not understood',
      () => chainOf(certificate({ extensions: [extension('1.2.3.4', true, derNull())] })),
      /critical extension that is not known here: 1\.2\.3\.4/,
    ],
    [
      'when the certificate is for something else',
      () => chainOf(certificate({ extensions: [purposes('1.3.6.1.5.5.7.3.1')] })),
      /not for an endorsement key: 1\.3\.6\.1\.5\.5\.7\.3\.1/,
    ],
    ['when the certificate is an authority’s', () => chainOf(certificate({ extensions: authority() })), /authority/],
    [
      'when it is signed over SHA-1',
      () => chainOf(certificate({ algorithm: '1.2.840.10045.4.1', digest: 'sha1' })),
      /weak algorithm \(1\.2\.840\.10045\.4\.1\)/,
    ],
  ];
  for (const [title, chain, reason] of refusals) test(title, () => assert.throws(chain, reason));

  test('when it goes round, or has no end: in bounded time', () => {
    const a = ec();
    const self = certificate({ subject: called('a'), issuer: called('a'), spki: spkiOf(a), issuerKey: a.privateKey });
    assert.throws(() => chainOf(self, [self]), /the trusted|not an authority/);
    const keys = Array.from({ length: 9 }, ec);
    const long = keys.slice(1).map((pair, index) =>
      certificate({
        subject: called(`${index + 1}`),
        issuer: called(`${index}`),
        spki: spkiOf(pair),
        issuerKey: keys[index]?.privateKey ?? rootKeys.privateKey,
        extensions: authority(),
      }),
    );
    const leaf = certificate({ issuer: called('8'), issuerKey: keys[8]?.privateKey ?? rootKeys.privateKey });
    assert.throws(() => chainOf(leaf, long), /the chain has more than 6 certificates/);
    const crowd = Array.from({ length: 100 }, () => middleWith({ spki: spkiOf(rootKeys) }));
    assert.throws(() => chainOf(certificate(), crowd), /more than 64 certificates claim to be issuers/);
  });
});

test('damaged certificates decode or fail as a format error, and a damaged one is never in the chain', () => {
  const original = certificate();
  for (const damaged of mutations(original, { seed: 3, count: 3000 })) {
    try {
      const decoded = decodeCertificate(damaged);
      if (Buffer.compare(decoded.der, original) === 0) continue;
      assert.throws(() => chainOf(damaged));
    } catch (error) {
      assert.ok(error instanceof FormatError, String(error));
    }
  }
});

test('values of extensions that are not what they should be are format errors', () => {
  const leaf = decodeCertificate(certificate());
  const usage = leaf.extensions.find(({ oid }) => oid === extensionOid.extendedKeyUsage)?.value ?? new Uint8Array(0);
  assert.deepEqual(decodeExtendedKeyUsage(usage), ['2.23.133.8.1']);
  assert.throws(() => decodeExtendedKeyUsage(derNull()), FormatError);
  const twice = certificate({ extensions: [tpmName, tpmName] });
  assert.throws(() => decodeCertificate(twice), /one is there twice/);
  const huge = certificate({ extensions: [extension('1.2.3.4', false, new Uint8Array(17_000))] });
  assert.throws(() => decodeCertificate(huge), /over the limit of 16384/);
});
