/**
 * Inputs to begin with: small ones that are right, made by our encoders, and those in `seeds/`, which a campaign found to
 * reach code that no other reaches. Seeds are kept as one JSON file a target, base64, smallest first.
 */
import { generateKeyPairSync } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { signAuthenticode } from '../../src/formats/authenticode.ts';
import {
  dummyDbx,
  efiGlobalVariable,
  efiImageSecurityDatabase,
  encodeHashList,
} from '../../src/formats/efi-signature-list.ts';
import { encodeVariableData } from '../../src/formats/efi-variable-data.ts';
import { eventType } from '../../src/formats/event-types.ts';
import { encodeEventLog, minimalPe } from '../../src/formats/fixtures.ts';
import { encodeGpt, type Gpt } from '../../src/formats/gpt.ts';
import { buildUki } from '../../src/formats/pe.ts';
import { createCertificate, decodePem } from '../../src/formats/x509.ts';
import { encodeEvidence, quotedPcrs } from '../../src/measure/evidence.ts';
import { gptHeaderBytes } from './gpt-target.ts';
import { tpmStructures } from './tpm-target.ts';

const owner = '12345678-1234-4234-8234-123456789abc';

/** @returns those made here, then those kept. */
export async function seedsOf(target: string): Promise<Uint8Array[]> {
  const kept = JSON.parse(await readFile(seedFile(target), 'utf8').catch(() => '[]')) as string[];
  return [...(makers[target]?.() ?? []), ...kept.map((text) => Buffer.from(text, 'base64'))];
}

/** Replaces what is kept for a target. */
export async function keepSeeds(target: string, inputs: readonly Uint8Array[]): Promise<void> {
  const sorted = inputs.toSorted((a, b) => a.length - b.length);
  const texts = sorted.map((input) => Buffer.from(input).toString('base64'));
  await writeFile(seedFile(target), `${JSON.stringify(texts, null, 1)}\n`);
}

function seedFile(target: string): URL {
  return new URL(`./seeds/${target}.json`, import.meta.url);
}

const makers: Readonly<Record<string, () => Uint8Array[]>> = {
  'event-log': () => [eventLogSeed(), eventTypesSeed(), devicePathsSeed(), sha1LogSeed()],
  pe: peSeeds,
  certificate: certificateSeeds,
  'signature-list': () => [
    dummyDbx(),
    Buffer.concat([dummyDbx(), encodeHashList(owner, [Buffer.alloc(32, 1), Buffer.alloc(32, 2)])]),
    // A type that nobody knows, with a header of its own and entries of one byte.
    hex(`${'0f'.repeat(16)} 32000000 04000000 11000000 aabbccdd ${'01'.repeat(17)} 02`),
  ],
  tpm: tpmSeeds,
  evidence: () => [evidenceSeed()],
  gpt: () => [gptSeed()],
};

const hex = (text: string): Buffer => Buffer.from(text.replaceAll(' ', ''), 'hex');

const devicePath = hex(
  '02010c00d041030a00000000 01010600021f 04012a000100000000080000000000000010000000000000cbb219d73a3d9645a3bcdad00e67656f0202 04040e005c0061002e0065000000 7fff0400',
);

function eventLogSeed(): Uint8Array {
  const image = Buffer.alloc(32);
  image.writeBigUInt64LE(BigInt(devicePath.length), 24);
  const pathLength = Buffer.of(devicePath.length, 0);
  const option = Buffer.concat([hex('01000000'), pathLength, Buffer.from('A\0', 'utf16le'), devicePath]);
  const variable = (type: number, name: string, guid: string, data: Uint8Array) => ({
    pcr: 7,
    type,
    data: encodeVariableData(name, guid, data),
  });
  return encodeEventLog([
    { pcr: 0, type: eventType.noAction, data: Buffer.from('StartupLocality\0\x03') },
    { pcr: 0, type: eventType.sCrtmVersion, data: Buffer.from('1.0\0', 'utf16le') },
    variable(eventType.efiVariableDriverConfig, 'SecureBoot', efiGlobalVariable, Buffer.of(1)),
    variable(eventType.efiVariableDriverConfig, 'dbx', efiImageSecurityDatabase, dummyDbx()),
    variable(eventType.efiVariableBoot, 'BootOrder', efiGlobalVariable, hex('0100')),
    variable(eventType.efiVariableBoot, 'Boot0001', efiGlobalVariable, option),
    { pcr: 4, type: eventType.efiBootServicesApplication, data: Buffer.concat([image, devicePath]) },
    { pcr: 5, type: eventType.separator, data: Buffer.alloc(4) },
    { pcr: 9, type: eventType.eventTag, data: hex('ec223b8f 02000000 4100') },
    { pcr: 11, type: eventType.ipl, data: Buffer.from('.linux\0', 'utf16le') },
  ]);
}

/** Events of the types that {@link eventLogSeed} has not. */
function eventTypesSeed(): Uint8Array {
  const zeros = (length: number): Buffer => Buffer.alloc(length);
  const partition = zeros(128);
  partition.write('ESP', 56, 'utf16le');
  const gptHeader = zeros(100);
  gptHeader.writeUInt32LE(128, 84);
  gptHeader.writeUInt8(1, 92);
  const one = hex('0100000000000000');
  return encodeEventLog(
    (
      [
        [
          eventType.noAction,
          Buffer.concat([Buffer.from('SP800-155 Event2'), zeros(20), hex('0141 0142 0143 0144 00000000 0145')]),
        ],
        [eventType.noAction, Buffer.concat([Buffer.from('Spec ID Event02\0'), zeros(9)])],
        [eventType.postCode, Buffer.from('ACPI DATA')],
        [eventType.postCode, hex('00'.repeat(7) + 'ff'.repeat(9))],
        [eventType.sCrtmVersion, hex('ff'.repeat(16))],
        [eventType.efiPlatformFirmwareBlob2, Buffer.concat([hex('0141'), zeros(16)])],
        [eventType.efiHandoffTables, Buffer.concat([one, zeros(24)])],
        [eventType.efiHandoffTables2, Buffer.concat([hex('0141'), one, zeros(24)])],
        [eventType.efiGptEvent, Buffer.concat([gptHeader, partition])],
        [eventType.efiSpdmFirmwareBlob, Buffer.from('SPDM Device Sec\0\x01')],
        [eventType.efiVariableAuthority, encodeVariableData('db', efiImageSecurityDatabase, zeros(48))],
        [eventType.efiVariableAuthority, encodeVariableData('MokListTrusted', owner, hex('01'))],
        [eventType.efiVariableDriverConfig, encodeVariableData('SbatLevel', owner, Buffer.from('sbat,1'))],
        [eventType.separator, Buffer.from('WBCL')],
        [0x402, hex('ff')],
      ] as const
    ).map(([type, data]) => ({ pcr: 1, type, data })),
  );
}

/** A device path with a node of each kind, all zeros, and one that is too short. */
function devicePathsSeed(): Uint8Array {
  const lengths: readonly (readonly [type: number, subType: number, bodyBytes: number])[] = [
    ...([
      [1, 2, 1],
      [1, 3, 20],
      [1, 4, 20],
      [1, 5, 4],
      [2, 1, 8],
      [2, 3, 4],
      [3, 1, 4],
      [3, 2, 4],
      [3, 5, 2],
    ] as const),
    ...([
      [3, 10, 16],
      [3, 11, 33],
      [3, 12, 23],
      [3, 13, 56],
      [3, 15, 7],
      [3, 17, 1],
      [3, 18, 6],
      [3, 20, 2],
    ] as const),
    ...([
      [3, 23, 12],
      [3, 24, 5],
      [3, 25, 2],
      [3, 28, 32],
      [4, 2, 20],
      [4, 3, 16],
      [4, 6, 16],
      [4, 8, 20],
    ] as const),
    ...([
      [4, 9, 34],
      [5, 1, 8],
      [4, 1, 38],
      [4, 1, 1],
      [9, 9, 0],
      [0x7f, 1, 0],
      [1, 1, 2],
      [0x7f, 0xff, 0],
    ] as const),
  ];
  const path = Buffer.concat(
    lengths.map(([type, subType, bodyBytes]) =>
      Buffer.concat([Buffer.of(type, subType, bodyBytes + 4, 0), Buffer.alloc(bodyBytes)]),
    ),
  );
  const image = Buffer.alloc(32);
  image.writeBigUInt64LE(BigInt(path.length), 24);
  return encodeEventLog([{ pcr: 2, type: eventType.efiBootServicesDriver, data: Buffer.concat([image, path]) }]);
}

function sha1LogSeed(): Uint8Array {
  const event = (pcr: number, type: number, data: Uint8Array): Buffer => {
    const frame = Buffer.alloc(32);
    frame.writeUInt32LE(pcr, 0);
    frame.writeUInt32LE(type, 4);
    frame.writeUInt32LE(data.length, 28);
    return Buffer.concat([frame, data]);
  };
  return Buffer.concat([event(0, 8, Buffer.from('v1')), event(7, 4, Buffer.alloc(4))]);
}

function peSeeds(): Uint8Array[] {
  const { privateKey: key, publicKey } = generateKeyPairSync('rsa', { modulusLength: 1024 });
  const certificatePem = createCertificate({
    subject: { commonName: 'fuzz' },
    publicKey,
    issuer: { name: { commonName: 'fuzz' }, key },
    serialNumber: Buffer.of(1),
    notBefore: new Date(0),
    notAfter: new Date(2 ** 31 * 1000),
    isCa: false,
    usages: ['codeSigning'],
  });
  const kernel = { name: '.linux', data: minimalPe({ text: Buffer.from('k') }) };
  const uki = buildUki({ stub: minimalPe(), sections: [{ name: '.cmdline', data: Buffer.from('q') }, kernel] });
  const signed = signAuthenticode(minimalPe(), { certificatePem, key });
  // PKCS #7 without a content; and one with a content that is empty.
  const broken = ['300b 0609 2a864886f70d010702', '300f 0609 2a864886f70d010702 a002 3000'].map((der) =>
    withCertificate(hex(der)),
  );
  return [minimalPe(), manySections(), uki, signed, ...broken];
}

/** As many sections as there may be, all empty. */
function manySections(): Uint8Array {
  const headers = Buffer.alloc(0x1400);
  headers.set(minimalPe().subarray(0, 0x600));
  headers.writeUInt16LE(96, 0x86);
  headers.writeUInt32LE(headers.length, 0x98 + 60);
  headers.fill(0, 0x98 + 240);
  return headers;
}

/** An image whose attribute certificate is these bytes. */
function withCertificate(der: Uint8Array): Uint8Array {
  const image = Buffer.from(minimalPe());
  const size = 8 + Math.ceil(der.length / 8) * 8;
  const table = Buffer.alloc(size);
  table.writeUInt32LE(8 + der.length, 0);
  table.set([0, 2, 2, 0], 4);
  table.set(der, 8);
  image.writeUInt32LE(image.length, 0x98 + 144);
  image.writeUInt32LE(size, 0x98 + 148);
  return Buffer.concat([image, table]);
}

function tpmSeeds(): Uint8Array[] {
  const examples: Record<(typeof tpmStructures)[number], string> = {
    attest: `ff544347 8018 0022${'11'.repeat(34)} 0020${'22'.repeat(32)} 0000000000000001 00000002 00000003 01 0000000000000004 00000001 000b 03 000800 0020${'33'.repeat(32)}`,
    signature: `0018 000b 0020${'44'.repeat(32)} 0020${'55'.repeat(32)}`,
    'public-key': `0023 000b 00050072 0000 0010 0018 000b 0003 0010 0020${'66'.repeat(32)} 0020${'77'.repeat(32)}`,
    'public-area': `0023 000b 00030472 0000 0006 0080 0043 0010 0003 0010 0020${'66'.repeat(32)} 0020${'77'.repeat(32)}`,
    'nv-public': `01a51a00 000b 02080008 0020${'88'.repeat(32)} 0064`,
    'pcr-selections': '00000001 000b 03 810000',
    digests: `00000001 0020${'99'.repeat(32)}`,
    sized: '0003 010203',
    capability: '00000006 00000001 00000100 322e3000',
  };
  return tpmStructures.map((name, index) => Buffer.concat([Buffer.of(index), hex(examples[name])]));
}

function gptSeed(): Uint8Array {
  const gpt: Gpt = {
    diskGuid: owner,
    sectorSize: 512,
    diskSectors: 4096,
    partitions: [
      {
        number: 1,
        typeGuid: 'c12a7328-f81f-11d2-ba4b-00a0c93ec93b',
        uniqueGuid: efiGlobalVariable,
        name: 'ESP',
        startLba: 64,
        endLba: 127,
        attributes: 0n,
      },
      {
        number: 2,
        typeGuid: '0fc63daf-8483-4772-8e79-3d69d8477de4',
        uniqueGuid: efiImageSecurityDatabase,
        name: 'next to it',
        startLba: 128,
        endLba: 200,
        attributes: 1n,
      },
    ],
  };
  const disk = encodeGpt(gpt, 'primary')[0]?.bytes ?? new Uint8Array(0);
  return Buffer.concat([disk.subarray(512, 512 + gptHeaderBytes), disk.subarray(1024, 1024 + 2 * 128)]);
}

function evidenceSeed(): Uint8Array {
  const bytes = (length: number): Uint8Array => Buffer.alloc(length, 7);
  const text = encodeEvidence({
    node: { id: 'node-1', version: '0.1.0', bootId: 'b' },
    time: new Date(0),
    nonce: bytes(32),
    tlsSpki: bytes(10),
    ek: { publicArea: bytes(5), certificates: [bytes(4)] },
    ak: { publicArea: bytes(6) },
    activation: { credentialBlob: bytes(3), encryptedSecret: bytes(3), secret: bytes(32), random: bytes(32) },
    quote: { attest: bytes(9), signature: bytes(8) },
    pcrs: new Map(quotedPcrs.map((pcr) => [pcr, bytes(32)])),
    eventLog: bytes(12),
    sealing: {
      policyRef: 'ashlar-epoch-1',
      policyKeyFingerprint: 'f',
      pcr7: '07'.repeat(32),
      generation: 1,
      anchor: 'ok',
      resealed: 'r',
    },
  });
  return Buffer.from(text);
}

/** An authority's and a leaf's, of both kinds of key; the second with padding as in a TPM's NV memory. */
function certificateSeeds(): Uint8Array[] {
  const issuer = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const rsa = generateKeyPairSync('rsa', { modulusLength: 1024 });
  const name = { organization: 'a maker', commonName: 'an authority' };
  const common = {
    issuer: { name, key: issuer.privateKey },
    serialNumber: Uint8Array.of(1),
    notBefore: new Date('2025-01-01T00:00:00Z'),
    notAfter: new Date('2099-01-01T00:00:00Z'),
  };
  const authority = createCertificate({
    ...common,
    subject: name,
    publicKey: issuer.publicKey,
    isCa: true,
    usages: [],
  });
  const leaf = createCertificate({
    ...common,
    subject: { commonName: 'a TPM' },
    publicKey: rsa.publicKey,
    isCa: false,
    usages: ['clientAuth'],
    dnsNames: ['tpm.invalid'],
  });
  const der = (pem: string): Uint8Array => decodePem('CERTIFICATE', pem);
  return [der(authority), Buffer.concat([der(leaf), Buffer.alloc(16, 0xff)])];
}
