import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { describe, it } from 'node:test';
import { authenticodeDigest } from '../formats/authenticode.ts';
import { dummyDbx, encodeHashList, type SecureBootVariables } from '../formats/efi-signature-list.ts';
import { encodeVariableData } from '../formats/efi-variable-data.ts';
import { decodeEventLog } from '../formats/event-log.ts';
import { encodeEventLog, minimalPe } from '../formats/fixtures.ts';
import { buildUki } from '../formats/pe.ts';
import { replayEventLog } from './event-log-replay.ts';
import { extendPcr, predictPcr, zeroPcr } from './pcr.ts';
import { predictPcr4 } from './pcr4.ts';
import { predictPcr7 } from './pcr7.ts';
import { measuredSections, predictPcr11, predictPcr11OfUki } from './pcr11.ts';

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const digest = (...parts: (string | Uint8Array)[]): Buffer =>
  parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest();
/** The same sums written out once more, independently of the code under test. */
const chain = (...digests: Buffer[]): string =>
  digests.reduce((pcr, next) => digest(pcr, next), Buffer.alloc(32)).toString('hex');

const kernel = minimalPe({ text: Buffer.from('kernel') });
const uki = buildUki({
  stub: minimalPe(),
  sections: [
    { name: '.osrel', data: Buffer.from('ID=x') },
    { name: '.cmdline', data: Buffer.from('quiet') },
    { name: '.pcrsig', data: Buffer.from('{}') },
    { name: '.linux', data: kernel },
  ],
});

describe('PCR 11', () => {
  it('is name with NUL, then content, in the stub order, .pcrsig left out', () => {
    const expected = chain(
      digest('.linux\0'),
      digest(kernel),
      digest('.osrel\0'),
      digest('ID=x'),
      digest('.cmdline\0'),
      digest('quiet'),
      digest('.sbat\0'),
      digest('sbat,1\n'),
    );
    assert.equal(hex(predictPcr11OfUki(uki).firmware.value), expected);
  });

  it('is capped by the phases, without NUL', () => {
    const { firmware, 'enter-initrd': enter, 'leave-initrd': leave } = predictPcr11OfUki(uki);
    assert.deepEqual(enter.value, extendPcr(firmware.value, digest('enter-initrd')));
    assert.deepEqual(leave.value, extendPcr(enter.value, digest('leave-initrd')));
    assert.equal(leave.steps.length, 10);
  });

  it('does not depend on the order in the file', () => {
    const sections = measuredSections.map((name) => ({ name, data: Buffer.from(name) }));
    assert.deepEqual(predictPcr11(sections), predictPcr11(sections.toReversed()));
    assert.throws(() => predictPcr11([...sections, ...sections]), /\.linux is there 2 times/);
  });
});

describe('PCR 4', () => {
  const calling = digest('Calling EFI Application from Boot Option');
  const separator = digest(new Uint8Array(4));
  const image = Buffer.from(authenticodeDigest(uki));

  it('holds the image, and the kernel only without Secure Boot', () => {
    assert.equal(hex(predictPcr4(uki, { isSecureBootOn: true }).value), chain(calling, separator, image));
    const off = predictPcr4(uki, { isSecureBootOn: false });
    assert.equal(hex(off.value), chain(calling, separator, image, Buffer.from(authenticodeDigest(kernel))));
  });

  it('remembers each boot entry that failed', () => {
    const returning = digest('Returning from EFI Application from Boot Option');
    const { value } = predictPcr4(uki, { isSecureBootOn: true, failedBootEntries: 1 });
    assert.equal(hex(value), chain(calling, separator, returning, calling, image));
  });
});

describe('PCR 7', () => {
  const x509 = (content: string): Uint8Array => {
    const list = Buffer.from(encodeHashList('12345678-1234-4234-8234-123456789abc', [Buffer.alloc(32, content)]));
    list.set(Buffer.from('a159c0a5e494a74a87b5ab155c2bf072', 'hex'));
    return list;
  };
  const variables: SecureBootVariables = { pk: x509('p'), kek: x509('k'), db: x509('d'), dbx: new Uint8Array(0) };

  it('changes with every variable and with the state of Secure Boot', () => {
    const values = [
      predictPcr7({ variables, isSecureBootOn: true }),
      predictPcr7({ variables, isSecureBootOn: false }),
      ...(['pk', 'kek', 'db'] as const).map((key) =>
        predictPcr7({ variables: { ...variables, [key]: x509('z') }, isSecureBootOn: true }),
      ),
      predictPcr7({ variables: { ...variables, dbx: dummyDbx() }, isSecureBootOn: true }),
    ];
    assert.equal(new Set(values.map(({ value }) => hex(value))).size, values.length);
  });

  it('lays variable data out as UEFI_VARIABLE_DATA', () => {
    const data = encodeVariableData('db', 'd719b2cb-3d3a-4596-a3bc-dad00e67656f', Uint8Array.of(1));
    assert.equal(hex(data), 'cbb219d73a3d9645a3bcdad00e67656f020000000000000001000000000000006400620001');
  });

  it('cannot be predicted when db does not hold the signer', () => {
    assert.throws(
      () => predictPcr7({ variables, isSecureBootOn: true, authority: Buffer.from('other') }),
      /db does not hold/,
    );
  });
});

describe('replayEventLog', () => {
  const events = [
    { pcr: 4, type: 5, data: Buffer.from('a') },
    { pcr: 7, type: 5, data: Buffer.from('b') },
    { pcr: 4, type: 4, data: Buffer.alloc(4) },
    { pcr: 6, type: 3, data: Buffer.from('not extended') },
  ];

  it('extends each register by its own events and skips EV_NO_ACTION', () => {
    const values = replayEventLog(decodeEventLog(encodeEventLog(events)));
    assert.deepEqual(
      [...values.keys()].toSorted((a, b) => a - b),
      [4, 7],
    );
    assert.equal(hex(values.get(4) ?? zeroPcr()), chain(digest('a'), digest(new Uint8Array(4))));
  });

  it('starts PCR 0 with the locality of the start-up', () => {
    const locality = { pcr: 0, type: 3, data: Buffer.from('StartupLocality\0\x03', 'latin1') };
    const values = replayEventLog(decodeEventLog(encodeEventLog([locality])));
    assert.equal(hex(values.get(0) ?? zeroPcr()), `${'00'.repeat(31)}03`);
  });

  it('refuses a log without the SHA-256 bank', () => {
    assert.throws(
      () => replayEventLog({ format: 'sha1', algorithms: ['sha1'], entries: [], unreadBytes: 0, warnings: [] }),
      /it has sha1 and no sha256/,
    );
  });
});

describe('predictPcr', () => {
  it('refuses digests of another bank', () => {
    assert.throws(() => predictPcr([{ description: 'x', digest: new Uint8Array(20) }]), /digest of 20 bytes/);
  });
});
