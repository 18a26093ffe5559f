import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash, generateKeyPairSync } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { verifyAuthenticode } from '../../src/formats/authenticode.ts';
import { minimalPe, skipWithout } from '../../src/formats/fixtures.ts';
import { decodePe, findPeSection, peSectionContent } from '../../src/formats/pe.ts';
import { decodePcrSignatures, verifyPcrSignature } from '../../src/measure/pcr-signature.ts';
import { predictPcr11OfUki } from '../../src/measure/pcr11.ts';
import { generateKeys, type Keys, loadKeys } from './keys.ts';
import { formatMeasurements } from './measurements.ts';
import { assembleUki, type UkiOptions } from './uki.ts';

let directory: string;
let keys: Keys;
let options: UkiOptions;
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-uki-'));
  await generateKeys(join(directory, 'keys'), { isDevelopment: true });
  keys = await loadKeys(join(directory, 'keys'));
  options = {
    stub: minimalPe(),
    kernel: minimalPe({ text: Buffer.from('kernel') }),
    initrd: Buffer.from('initramfs'),
    cmdline: 'quiet lockdown=confidentiality',
    osRelease: 'ID=ashlar\n',
    uname: '6.12.1-ashlar',
    epoch: 1,
    keys,
  };
});
after(() => rm(directory, { recursive: true }));

describe('assembleUki', () => {
  it('is bit for bit the same twice', () => {
    const [first, second] = [assembleUki(options), assembleUki(options)];
    assert.deepEqual(first.uki, second.uki);
    assert.equal(formatMeasurements(first.measurements), formatMeasurements(second.measurements));
  });

  it('is signed by db, as sbverify finds too', { skip: skipWithout('sbverify') }, async () => {
    const { uki } = assembleUki(options);
    assert.equal(verifyAuthenticode(uki).signatures[0]?.isValid, true);
    await writeFile(join(directory, 'u.efi'), uki);
    execFileSync('sbverify', ['--cert', join(directory, 'keys', 'db.crt'), join(directory, 'u.efi')], {
      stdio: 'pipe',
    });
  });

  it('has the sections in order', () => {
    const names = decodePe(assembleUki(options).uki).sections.map(({ name }) => name);
    assert.deepEqual(names, [
      '.text',
      '.sbat',
      '.osrel',
      '.cmdline',
      '.uname',
      '.pcrpkey',
      '.initrd',
      '.pcrsig',
      '.linux',
    ]);
  });

  it('approves, under the epoch, exactly the PCR 11 of phase enter-initrd', () => {
    const { uki, measurements } = assembleUki(options);
    const section = findPeSection(decodePe(uki), '.pcrsig');
    assert.ok(section);
    const [signature, ...others] = decodePcrSignatures(peSectionContent(uki, section));
    assert.ok(signature);
    assert.equal(others.length, 0);
    assert.equal(signature.policyRef, 'ashlar-epoch-1');
    assert.equal(Buffer.from(signature.policy).toString('hex'), measurements.policy.pcr11);
    assert.ok(verifyPcrSignature(signature, keys.policyKey));
    assert.equal(
      measurements.pcr11['enter-initrd'],
      Buffer.from(predictPcr11OfUki(uki)['enter-initrd'].value).toString('hex'),
    );
  });

  it('approves the same PCR 11 for each epoch up to its own, and for none above', () => {
    const { uki } = assembleUki({ ...options, epoch: 3 });
    const section = findPeSection(decodePe(uki), '.pcrsig');
    assert.ok(section);
    const signatures = decodePcrSignatures(peSectionContent(uki, section));
    assert.deepEqual(
      signatures.map(({ policyRef }) => policyRef),
      ['ashlar-epoch-1', 'ashlar-epoch-2', 'ashlar-epoch-3'],
    );
    assert.ok(signatures.every((signature) => verifyPcrSignature(signature, keys.policyKey)));
    assert.throws(() => assembleUki({ ...options, epoch: 65 }), /cannot name epoch 65/);
  });

  it('is approved by former policy keys for the same epochs, after its own', () => {
    const former = generateKeyPairSync('rsa', { modulusLength: 2048 });
    const publicKeyPem = former.publicKey.export({ type: 'spki', format: 'pem' }).toString();
    const both = {
      ...keys,
      formerPolicyKeys: [{ name: 'one-before', publicKeyPem }],
      formerPolicyPrivateKeys: new Map([['one-before', former.privateKey]]),
    };
    const { uki, measurements } = assembleUki({ ...options, epoch: 2, keys: both });
    const section = findPeSection(decodePe(uki), '.pcrsig');
    assert.ok(section);
    const signatures = decodePcrSignatures(peSectionContent(uki, section));
    assert.deepEqual(
      signatures.map((signature) => [
        signature.policyRef,
        verifyPcrSignature(signature, keys.policyKey),
        verifyPcrSignature(signature, former.publicKey),
      ]),
      [
        ['ashlar-epoch-1', true, false],
        ['ashlar-epoch-2', true, false],
        ['ashlar-epoch-1', false, true],
        ['ashlar-epoch-2', false, true],
      ],
    );
    assert.equal(measurements.policy.formerKeyFingerprints?.length, 1);
    const unsigned = { ...both, formerPolicyPrivateKeys: new Map() };
    assert.throws(
      () => assembleUki({ ...options, keys: unsigned }),
      /former-policy\/one-before\/ashlar-epoch-1 is missing/,
    );
  });

  it('refuses a command line that would let the boot entry speak', () => {
    for (const cmdline of ['', ' ', 'a\nb', 'ü', 'x'.repeat(2048)]) {
      assert.throws(() => assembleUki({ ...options, cmdline }), /command line must be/);
    }
  });
});

describe('measurements.json', () => {
  it('can be followed by hand, step by step', () => {
    const { measurements } = assembleUki(options);
    for (const [steps, value] of [
      [measurements.steps.pcr11, measurements.pcr11['leave-initrd']],
      [measurements.steps.pcr4['secure-boot-on'], measurements.pcr4['secure-boot-on']],
      [measurements.steps.pcr5['network'], measurements.pcr5.network],
      [measurements.steps.pcr7['ovmf-dummy-dbx'], measurements.pcr7['ovmf-dummy-dbx']],
      [measurements.steps.pcr9, measurements.pcr9],
      [measurements.steps.pcr12, measurements.pcr12],
    ] as const) {
      let register = Buffer.alloc(32);
      for (const step of steps ?? []) {
        register = createHash('sha256').update(register).update(Buffer.from(step.digest, 'hex')).digest();
        assert.equal(step.value, register.toString('hex'));
      }
      assert.equal(value, register.toString('hex'));
    }
    assert.equal(new Set(Object.values(measurements.pcr7)).size, 3);
  });
});
