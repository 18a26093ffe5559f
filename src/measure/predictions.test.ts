import assert from 'node:assert/strict';
import { createHash, generateKeyPairSync, type KeyObject } from 'node:crypto';
import { describe, it } from 'node:test';
import { authenticodeDigest, signAuthenticode } from '../formats/authenticode.ts';
import { decodeCpio } from '../formats/cpio.ts';
import {
  dummyDbx,
  encodeCertificateList,
  encodeHashList,
  type SecureBootVariables,
} from '../formats/efi-signature-list.ts';
import { encodeVariableData } from '../formats/efi-variable-data.ts';
import { decodeEventLog } from '../formats/event-log.ts';
import { encodeEventLog, minimalPe } from '../formats/fixtures.ts';
import { addPartition, encodeGptEvent, type Gpt, setPartitionAttribute } from '../formats/gpt.ts';
import { buildUki } from '../formats/pe.ts';
import { createCertificate, encodePem } from '../formats/x509.ts';
import { replayEventLog } from './event-log-replay.ts';
import { extendPcr, predictPcr, zeroPcr } from './pcr.ts';
import { predictPcr4 } from './pcr4.ts';
import { predictPcr5 } from './pcr5.ts';
import { findAuthority, predictPcr7 } from './pcr7.ts';
import { predictPcr9 } from './pcr9.ts';
import { measuredSections, predictPcr11, predictPcr11OfUki } from './pcr11.ts';
import { predictPcr12 } from './pcr12.ts';

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

describe('PCR 5', () => {
  const gpt: Gpt = {
    diskGuid: '12345678-1234-4234-8234-123456789abc',
    sectorSize: 512,
    diskSectors: 100_000,
    partitions: [],
  };
  const separator = digest(new Uint8Array(4));
  const exit = [digest('Exit Boot Services Invocation'), digest('Exit Boot Services Returned with Success')];

  it('holds the partition table of the disk that was booted, and none from the network', () => {
    assert.equal(hex(predictPcr5({ bootedFrom: 'network' }).value), chain(separator, ...exit));
    assert.equal(hex(predictPcr5({ bootedFrom: gpt }).value), chain(separator, digest(encodeGptEvent(gpt)), ...exit));
  });

  it('changes when a partition is added or marked', () => {
    const data = {
      ...{ number: 1, typeGuid: gpt.diskGuid, uniqueGuid: gpt.diskGuid, name: 'DATA' },
      ...{ startLba: 2048, endLba: 4095, attributes: 0n },
    };
    const added = addPartition(gpt, data);
    const tables = [gpt, added, setPartitionAttribute(added, 1, 60, true)];
    const values = tables.map((bootedFrom) => hex(predictPcr5({ bootedFrom }).value));
    assert.equal(new Set(values).size, 3);
  });
});

describe('PCR 9', () => {
  const commandLine = (text: string): Buffer => digest(Buffer.from(`${text}\0`, 'utf16le'));
  const padded = (text: string): string => text.padEnd(text.length + (-text.length & 3), '\0');
  const member = (inode: string, mode: string, size: number, path: string, data: string): string => {
    const zeros = '0'.repeat(8);
    const number = (value: number): string => value.toString(16).padStart(8, '0');
    const fields = [inode, mode, zeros, zeros, number(1), zeros, number(size), zeros, zeros, zeros, zeros];
    return padded(`070701${fields.join('')}${number(path.length + 1)}${zeros}${path}\0`) + padded(data);
  };
  /** What systemd-stub puts around a section: written out once more. */
  const archive = (name: string, data: string): string =>
    member('00000001', '0000416d', 0, '.extra', '') +
    member('00000002', '00008124', data.length, `.extra/${name}`, data) +
    `070701${'0'.repeat(32)}00000001${'0'.repeat(48)}0000000B00000000TRAILER!!!\0\0\0\0`;
  const withInitrd = buildUki({
    stub: minimalPe(),
    sections: [
      { name: '.osrel', data: Buffer.from('ID=x') },
      { name: '.cmdline', data: Buffer.from('quiet \n') },
      { name: '.pcrpkey', data: Buffer.from('key') },
      { name: '.initrd', data: Buffer.from('first') },
      { name: '.pcrsig', data: Buffer.from('{}') },
      { name: '.linux', data: kernel },
    ],
  });

  it('holds the command line, then the initramfs with the archives that the stub appends', () => {
    const initrd =
      padded('first') +
      archive('tpm2-pcr-signature.json', '{}') +
      archive('tpm2-pcr-public-key.pem', 'key') +
      archive('os-release', 'ID=x');
    assert.equal(hex(predictPcr9(withInitrd).value), chain(commandLine('quiet'), digest(initrd)));
  });

  it('appends what SMBIOS says, and takes load options instead when the stub does', () => {
    const [extra] = predictPcr9(withInitrd, { commandLineExtra: 'evil=1' }).steps;
    assert.equal(hex(extra?.digest ?? new Uint8Array(0)), hex(commandLine('quiet evil=1')));
    const [options] = predictPcr9(withInitrd, { loadOptions: 'rdinit=/bin/sh' }).steps;
    assert.equal(hex(options?.digest ?? new Uint8Array(0)), hex(commandLine('rdinit=/bin/sh')));
  });

  it('has files in its archives that the kernel can unpack', () => {
    const [directory, file] = decodeCpio(Buffer.from(archive('os-release', 'ID=x'), 'latin1'));
    assert.deepEqual([directory?.path, directory?.type, file?.path], ['.extra', 'directory', '.extra/os-release']);
    assert.equal(file?.mode, 0o444);
  });
});

describe('PCR 12', () => {
  it('is zeros unless something was injected', () => {
    assert.deepEqual(predictPcr12().value, zeroPcr());
    const injected = predictPcr12({ loadOptions: 'a', smbiosCommandLine: 'b' });
    const wide = (text: string): Buffer => digest(Buffer.from(`${text}\0`, 'utf16le'));
    assert.equal(hex(injected.value), chain(wide('a'), wide('b')));
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

describe('the authority of an image', () => {
  const newKey = () => generateKeyPairSync('rsa', { modulusLength: 2048 });
  const certificate = (
    commonName: string,
    publicKey: KeyObject,
    issuer: { name: { commonName: string }; key: KeyObject },
  ): string =>
    createCertificate({
      ...{ subject: { commonName }, publicKey, issuer, serialNumber: Buffer.of(1) },
      ...{ notBefore: new Date(0), notAfter: new Date(2 ** 31 * 1000), isCa: true, usages: [] },
    });
  const [root, signer] = [newKey(), newKey()];
  const rootPem = certificate('root', root.publicKey, { name: { commonName: 'root' }, key: root.privateKey });
  const signerPem = certificate('signer', signer.publicKey, { name: { commonName: 'root' }, key: root.privateKey });
  const otherPem = certificate('other', signer.publicKey, { name: { commonName: 'other' }, key: signer.privateKey });
  const signed = signAuthenticode(uki, { certificatePem: signerPem, key: signer.privateKey });
  const listOf = (...pems: string[]): Uint8Array =>
    Buffer.concat(pems.map((pem) => encodeCertificateList('12345678-1234-4234-8234-123456789abc', pem)));
  const authorityIn = (db: Uint8Array, dbx: Uint8Array = new Uint8Array(0), image: Uint8Array = signed) => {
    const variables = { pk: db, kek: db, db, dbx };
    const { authority } = findAuthority(image, { variables, isSecureBootOn: true });
    return authority === undefined ? undefined : encodePem('CERTIFICATE', authority);
  };

  it('is the certificate in db that signed it, wherever it stands there, or that issued the signer', () => {
    assert.equal(authorityIn(listOf(otherPem, signerPem)), signerPem);
    assert.equal(authorityIn(listOf(otherPem, rootPem)), rootPem);
  });

  it('does not exist for an image that firmware would not run', () => {
    assert.throws(() => authorityIn(listOf(otherPem)), /its signer, CN=signer, is not in db/);
    assert.throws(() => authorityIn(listOf(signerPem), undefined, uki), /it is not signed/);
    const owner = '12345678-1234-4234-8234-123456789abc';
    assert.throws(
      () => authorityIn(listOf(signerPem), encodeHashList(owner, [authenticodeDigest(signed)])),
      /its digest [0-9a-f]{64} is in dbx/,
    );
    assert.throws(() => authorityIn(listOf(signerPem), listOf(rootPem)), /its signer, CN=signer, is in dbx/);
    const changed = Buffer.from(signed);
    changed[0x700] = (changed[0x700] ?? 0) ^ 1;
    assert.throws(() => authorityIn(listOf(signerPem), undefined, changed), /changed after it was signed/);
  });

  it('is not asked for with Secure Boot off', () => {
    const nothing = new Uint8Array(0);
    const variables = { pk: nothing, kek: nothing, db: nothing, dbx: nothing };
    assert.deepEqual(findAuthority(uki, { variables, isSecureBootOn: false }), {});
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
