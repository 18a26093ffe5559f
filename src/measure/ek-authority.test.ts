/** What a trusted authority, and every key below it, must be: the judge and the commands of docs/evidence.md (step 6) agree. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { constants, generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { extensionOid } from '../formats/certificate.ts';
import { derContext, derInteger, derNamedBits, derNull, derOid, derSequence } from '../formats/der.ts';
import { encodePem } from '../formats/x509.ts';
import {
  authority,
  called,
  certificate,
  chainOf,
  extension,
  middle,
  middleWith,
  root,
  rootKeys,
  rootWith,
  rsa,
  spkiOf,
  time,
} from './ek-certificate-fixture.ts';

const document = readFileSync(join(import.meta.dirname, '../../docs/evidence.md'), 'utf8');
const same = /^same\(\) .*$/m.exec(document)?.[0] ?? '';
const step6 = /^authorities=[\s\S]*?(?=^```$)/m.exec(document)?.[0] ?? '';
const script = `set -euo pipefail\n${same}\nget() { echo ${time.toISOString()}; }\n${step6}`;

interface Chain {
  readonly leaf: Uint8Array;
  readonly others?: readonly Uint8Array[];
  readonly authorities: readonly Uint8Array[];
}

function openssl({ leaf, others = [], authorities }: Chain): { status: number | null; said: string } {
  const directory = mkdtempSync(join(tmpdir(), 'ashlar-ek-authority-'));
  const pem = (certificates: readonly Uint8Array[]) =>
    certificates.map((der) => encodePem('CERTIFICATE', der)).join('');
  try {
    writeFileSync(join(directory, 'ek-certificate.pem'), pem([leaf]));
    writeFileSync(join(directory, 'issuers.pem'), pem(others));
    writeFileSync(join(directory, 'ek-ca.pem'), pem(authorities));
    const command = others.length === 0 ? script : script.replace('-CAfile', '-untrusted issuers.pem -CAfile');
    const { status, stdout, stderr } = spawnSync('bash', ['-c', command], { cwd: directory, encoding: 'utf8' });
    return { status, said: `${stdout}${stderr}` };
  } finally {
    rmSync(directory, { recursive: true });
  }
}

const judged = ({ leaf, others = [], authorities }: Chain) => chainOf(leaf, others, [...authorities]);
const leafOf = { issuer: called('root'), issuerKey: rootKeys.privateKey };
const leaf = certificate(leafOf);
const [isAuthority = new Uint8Array(0)] = authority();
const sha256WithRsa = derSequence(derOid('1.2.840.113549.1.1.11'), derNull());
const rsaRoot = (bits: number): Chain => {
  const keys = rsa(bits);
  const signed = { issuerKey: keys.privateKey, algorithm: sha256WithRsa };
  return { leaf: certificate({ ...leafOf, ...signed }), authorities: [rootWith({ ...signed, spki: spkiOf(keys) })] };
};
const pssKeys = rsa(2048);
const pss = (digest: string, parameters: Uint8Array): Chain => {
  const signed = { issuerKey: pssKeys.privateKey, spki: spkiOf(pssKeys), algorithm: sha256WithRsa };
  const algorithm = derSequence(derOid('1.2.840.113549.1.1.10'), parameters);
  const padding = constants.RSA_PKCS1_PSS_PADDING;
  return {
    leaf: certificate({ ...leafOf, issuerKey: pssKeys.privateKey, algorithm, digest, padding }),
    authorities: [rootWith(signed)],
  };
};
const pssOf = (digestOid: string, saltLength: number): Uint8Array => {
  const digest = derSequence(derOid(digestOid), derNull());
  const mask = derSequence(derOid('1.2.840.113549.1.1.8'), digest);
  return derSequence(derContext(0, digest), derContext(1, mask), derContext(2, derInteger(saltLength)));
};
const longAgo = new Date('2026-05-31T00:00:00Z');

describe('both verifiers accept', () => {
  const accepted: [string, Chain][] = [
    ['a root', { leaf, authorities: [root] }],
    ['an intermediate as what is trusted', { leaf: certificate(), authorities: [middle] }],
    ['a root of RSA 2048', rsaRoot(2048)],
    ['a renewed root, with the old one beside it', { leaf, authorities: [rootWith({ notAfter: longAgo }), root] }],
    // The salt is as long as it can be, which is what Node chooses.
    ['RSASSA-PSS with SHA-256', pss('sha256', pssOf('2.16.840.1.101.3.4.2.1', 222))],
  ];
  for (const [title, chain] of accepted)
    test(title, () => {
      assert.ok(judged(chain).length > 0);
      const { status, said } = openssl(chain);
      assert.equal(status, 0, said);
    });
});

describe('both verifiers refuse', () => {
  const usage = (...bits: number[]) => extension(extensionOid.keyUsage, true, derNamedBits(bits));
  const notAuthority = extension(extensionOid.basicConstraints, true, derSequence());
  const p224 = generateKeyPairSync('ec', { namedCurve: 'P-224' });
  const weakMiddle = rsa(1024);
  const refused: [string, Chain, RegExp][] = [
    ['an expired root', { leaf, authorities: [rootWith({ notAfter: longAgo })] }, /^CN=root is valid from/],
    [
      'an expired intermediate as what is trusted',
      { leaf: certificate(), authorities: [middleWith({ notAfter: longAgo })] },
      /^CN=middle is valid from/,
    ],
    [
      'a root that is no authority',
      { leaf, authorities: [rootWith({ extensions: [notAuthority, usage(5)] })] },
      /^CN=root is not an authority/,
    ],
    [
      'a root that does not say that it is one',
      { leaf, authorities: [rootWith({ extensions: [usage(5)] })] },
      /^CN=root is not an authority/,
    ],
    ['a root of version 1', { leaf, authorities: [rootWith({ isOld: true })] }, /^CN=root is not an authority/],
    [
      'a root that may not sign certificates',
      { leaf, authorities: [rootWith({ extensions: [isAuthority, usage(0)] })] },
      /^CN=root may not sign certificates/,
    ],
    [
      'a root that has more below it than it may',
      { leaf: certificate(), others: [middle], authorities: [rootWith({ extensions: authority(0) })] },
      /^CN=root may have 0 authorities below it, and has 1/,
    ],
    ['a root of RSA 512', rsaRoot(512), /^the key of CN=root is too weak: RSA of 512 bits/],
    ['a root of RSA 1792', rsaRoot(1792), /^the key of CN=root is too weak: RSA of 1792 bits/],
    [
      'an intermediate of RSA 1024',
      {
        leaf: certificate({ issuerKey: weakMiddle.privateKey, algorithm: sha256WithRsa }),
        others: [middleWith({ spki: spkiOf(weakMiddle) })],
        authorities: [root],
      },
      /^the key of CN=middle is too weak: RSA of 1024 bits/,
    ],
    [
      'an endorsement key of RSA 1024',
      { leaf: certificate({ ...leafOf, spki: spkiOf(rsa(1024)) }), authorities: [root] },
      /^the key of the endorsement key’s certificate is too weak: RSA of 1024 bits/,
    ],
    [
      'RSASSA-PSS with SHA-1',
      pss('sha1', pssOf('1.3.14.3.2.26', 234)),
      /weak algorithm \(.* with 1\.3\.14\.3\.2\.26\)$/,
    ],
    [
      'RSASSA-PSS with SHA-1 as the default',
      pss('sha1', derSequence(derContext(2, derInteger(234)))),
      /weak algorithm \(.* with 1\.3\.14\.3\.2\.26\)$/,
    ],
    [
      'RSASSA-PSS with MD5',
      pss('md5', pssOf('1.2.840.113549.2.5', 238)),
      /weak algorithm \(.* with 1\.2\.840\.113549\.2\.5\)$/,
    ],
  ];
  for (const [title, chain, reason] of refused)
    test(title, () => {
      assert.throws(
        () => judged(chain),
        (error) => error instanceof Error && reason.test(error.message),
      );
      const { status, said } = openssl(chain);
      assert.notEqual(status, 0, said);
    });

  test('a curve below P-256', () => {
    const chain = { leaf: certificate({ ...leafOf, spki: spkiOf(p224) }), authorities: [root] };
    assert.throws(() => judged(chain), /too weak: curve 1\.3\.132\.0\.33, at least P-256/);
  });
});
