import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash, generateKeyPairSync, type KeyObject, X509Certificate } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import {
  type CertificateOptions,
  createCertificate,
  decodePem,
  encodePem,
  issuerAndSerial,
  spkiFingerprint,
} from './x509.ts';

const directory = mkdtempSync(join(tmpdir(), 'ashlar-x509-'));
after(() => rmSync(directory, { recursive: true }));

const file = (name: string, text: string): string => {
  const path = join(directory, name);
  writeFileSync(path, text);
  return path;
};
interface Keys {
  publicKey: KeyObject;
  privateKey: KeyObject;
}

const ec: Keys = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const leafKey: Keys = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const rsa: Keys = generateKeyPairSync('rsa', { modulusLength: 2048 });
const validity = { notBefore: new Date('2025-01-01T00:00:00Z'), notAfter: new Date('2099-01-01T00:00:00Z') };
const caName = { organization: 'ashlar', commonName: 'test CA' };

function ca(keys: Keys, overrides: Partial<CertificateOptions> = {}): string {
  return createCertificate({
    subject: caName,
    publicKey: keys.publicKey,
    issuer: { name: caName, key: keys.privateKey },
    serialNumber: Uint8Array.of(0x80, 1),
    ...validity,
    isCa: true,
    usages: [],
    ...overrides,
  });
}

function leaf(issuerKeys: Keys): string {
  return createCertificate({
    subject: { organization: 'ashlar-node', commonName: 'node-Ω' },
    publicKey: leafKey.publicKey,
    issuer: { name: caName, key: issuerKeys.privateKey },
    serialNumber: Uint8Array.of(7),
    ...validity,
    isCa: false,
    dnsNames: ['curator.ashlar.internal'],
    ipAddresses: ['192.0.2.1', '2001:db8::1:2', '::ffff:192.0.2.9'],
    usages: ['serverAuth', 'clientAuth'],
  });
}

describe('createCertificate', () => {
  for (const [name, keys] of [
    ['EC P-256', ec],
    ['RSA', rsa],
  ] as const) {
    it(`makes a chain under an ${name} issuer that OpenSSL accepts strictly`, () => {
      const caPath = file('ca.pem', ca(keys));
      const leafPath = file('leaf.pem', leaf(keys));
      const output = execFileSync(
        'openssl',
        [
          'verify',
          '-x509_strict',
          '-purpose',
          'sslserver',
          '-verify_hostname',
          'curator.ashlar.internal',
          '-CAfile',
          caPath,
          leafPath,
        ],
        { encoding: 'utf8' },
      );
      assert.match(output, /leaf\.pem: OK/);
    });
  }

  it('writes names, extensions and dates where OpenSSL reads them', () => {
    const text = execFileSync('openssl', ['x509', '-noout', '-text', '-in', file('text.pem', leaf(ec))], {
      encoding: 'utf8',
    });
    assert.match(text, /Version: 3/);
    assert.match(text, /X509v3 Basic Constraints: critical\s+CA:FALSE/);
    assert.match(text, /X509v3 Key Usage: critical\s+Digital Signature\n/);
    assert.match(text, /TLS Web Server Authentication, TLS Web Client Authentication/);
    assert.match(
      text,
      /DNS:curator\.ashlar\.internal, IP Address:192\.0\.2\.1, IP Address:2001:DB8:0:0:0:0:1:2, IP Address:0:0:0:0:0:FFFF:C000:209/,
    );
    assert.match(text, /Not After : Jan {2}1 00:00:00 2099 GMT/);
  });

  it('is read back by Node with the same key, names and issuer', () => {
    const issuer = new X509Certificate(ca(ec));
    const certificate = new X509Certificate(leaf(ec));
    assert.ok(certificate.checkIssued(issuer));
    assert.ok(certificate.verify(ec.publicKey));
    assert.ok(!certificate.verify(leafKey.publicKey));
    assert.equal(certificate.subject, 'O=ashlar-node\nCN=node-Ω');
    assert.equal(issuer.serialNumber, '8001');
    assert.equal(issuer.ca, true);
    assert.equal(certificate.ca, false);
    assert.ok(certificate.publicKey.equals(leafKey.publicKey));
  });

  it('gives the same bytes twice with an RSA issuer', () => {
    assert.equal(ca(rsa), ca(rsa));
  });

  it('says what is wrong with an option', () => {
    assert.throws(() => ca(ec, { serialNumber: new Uint8Array(21).fill(1) }), /serial number of 21 bytes/);
    assert.throws(() => ca(ec, { notAfter: validity.notBefore }), /would end/);
    assert.throws(() => ca(ec, { ipAddresses: ['300.1.1.1'] }), /"300\.1\.1\.1" is not an IP address/);
    assert.throws(() => ca(ec, { subject: { commonName: '' } }), /common name is empty/);
  });
});

describe('PEM and identifiers', () => {
  it('finds issuer and serial number', () => {
    const der = decodePem('CERTIFICATE', leaf(ec));
    const { serialNumber, issuer } = issuerAndSerial(der);
    assert.deepEqual([...serialNumber], [2, 1, 7]);
    assert.ok(Buffer.from(issuer).includes('test CA'));
    assert.throws(() => issuerAndSerial(der.subarray(0, 40)), /X\.509 certificate/);
  });

  it('fingerprints a key by the SHA-256 of its SPKI, from either half', () => {
    const spki = ec.publicKey.export({ type: 'spki', format: 'der' });
    const expected = `SHA256:${createHash('sha256').update(spki).digest('base64url')}`;
    assert.equal(spkiFingerprint(ec.publicKey), expected);
    assert.equal(spkiFingerprint(ec.privateKey), expected);
  });

  it('survives a PEM round trip', () => {
    const der = Buffer.from('0123456789'.repeat(20));
    assert.deepEqual(Buffer.from(decodePem('X', encodePem('X', der))), der);
    assert.throws(() => decodePem('Y', encodePem('X', der)), /no Y block/);
  });
});
