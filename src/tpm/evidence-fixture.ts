/**
 * Evidence for tests, of a real TPM in software: firmware's events, the stub's and init's are extended into its PCRs, and
 * its keys activate a credential and sign a quote. So what is accepted has gone the whole way. Nothing that ships imports it.
 */
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { authenticodeDigest } from '../formats/authenticode.ts';
import {
  efiGlobalVariable,
  efiImageSecurityDatabase,
  encodeHashList,
  type SecureBootVariables,
} from '../formats/efi-signature-list.ts';
import { decodeEventLog, noAction } from '../formats/event-log.ts';
import { encodeEventLog, minimalPe } from '../formats/fixtures.ts';
import { buildUki, decodePe, peSectionContent } from '../formats/pe.ts';
import { decodePem } from '../formats/x509.ts';
import type { AllowedImage } from '../measure/allowed-image.ts';
import { type Evidence, qualifyingData, quotedPcrs } from '../measure/evidence.ts';
import { makeCredential } from '../measure/make-credential.ts';
import { sha256 } from '../measure/pcr.ts';
import { encodeVariableData, predictPcr7 } from '../measure/pcr7.ts';
import { measuredSections, predictPcr11OfUki } from '../measure/pcr11.ts';
import type { KeyKind } from './key-templates.ts';
import type { SoftwareTpm } from './swtpm-fixture.ts';
import { Tpm } from './tpm.ts';

const EVENT = {
  separator: 0x4,
  action: 0x5,
  crtmVersion: 0x8,
  ipl: 0xd,
  variableDriverConfig: 0x8000_0001,
  variableBoot: 0x8000_0002,
  bootApplication: 0x8000_0003,
  efiAction: 0x8000_0007,
  variableAuthority: 0x8000_00e0,
} as const;

export interface LoggedEvent {
  readonly pcr: number;
  readonly type: number;
  readonly data: Uint8Array;
  /** What was extended, when that is not the data's digest. */
  readonly digest?: Uint8Array;
}

/** A machine's firmware, its keys and the image that it boots. */
export interface TestMachine {
  readonly image: AllowedImage;
  readonly uki: Uint8Array;
  readonly events: readonly LoggedEvent[];
}

const ascii = (text: string): Uint8Array => Buffer.from(text, 'latin1');
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** An image in little, and keys that are none. */
function smallUki(content: string): Uint8Array {
  return buildUki({
    stub: minimalPe({ text: ascii(content) }),
    sections: [
      { name: '.osrel', data: ascii(`ID=ashlar\nNAME=${content}`) },
      { name: '.cmdline', data: ascii('quiet') },
      { name: '.linux', data: minimalPe({ text: ascii('kernel') }) },
    ],
  });
}

function smallVariables(): SecureBootVariables {
  const x509 = (fill: string): Uint8Array => {
    const list = Buffer.from(encodeHashList('12345678-1234-4234-8234-123456789abc', [Buffer.alloc(32, fill)]));
    list.set(Buffer.from('a159c0a5e494a74a87b5ab155c2bf072', 'hex'));
    return list;
  };
  return { pk: x509('p'), kek: x509('k'), db: x509('d'), dbx: new Uint8Array(0) };
}

export interface TestMachineOptions {
  /** @default true */
  readonly isSecureBootOn?: boolean;
  /** Another content is another image. @default 'an image' */
  readonly content?: string;
  /** A whole image. @default one made of `content` */
  readonly uki?: Uint8Array;
  /** With one certificate in db. @default some that are no certificates */
  readonly variables?: SecureBootVariables;
}

/** What OVMF logs of a first boot with Secure Boot on, in little. */
export function testMachine(options: TestMachineOptions = {}): TestMachine {
  const { isSecureBootOn = true, content = 'an image', variables = smallVariables() } = options;
  const uki = options.uki ?? smallUki(content);
  const variable = (name: string, vendor: string, data: Uint8Array): LoggedEvent => ({
    pcr: 7,
    type: EVENT.variableDriverConfig,
    data: encodeVariableData(name, vendor, data),
  });
  // Without the head of its list: owner and certificate.
  const authority = variables.db.subarray(28);
  const events: LoggedEvent[] = [
    { pcr: 0, type: EVENT.crtmVersion, data: Buffer.from('test firmware', 'utf16le') },
    variable('SecureBoot', efiGlobalVariable, Uint8Array.of(isSecureBootOn ? 1 : 0)),
    variable('PK', efiGlobalVariable, variables.pk),
    variable('KEK', efiGlobalVariable, variables.kek),
    variable('db', efiImageSecurityDatabase, variables.db),
    variable('dbx', efiImageSecurityDatabase, variables.dbx),
    { pcr: 1, type: EVENT.variableBoot, data: encodeVariableData('BootOrder', efiGlobalVariable, Uint8Array.of(0, 0)) },
    { pcr: 4, type: EVENT.efiAction, data: ascii('Calling EFI Application from Boot Option') },
    ...[0, 1, 2, 3, 4, 5, 6, 7].map((pcr) => ({ pcr, type: EVENT.separator, data: new Uint8Array(4) })),
    ...(isSecureBootOn
      ? [{ pcr: 7, type: EVENT.variableAuthority, data: encodeVariableData('db', efiImageSecurityDatabase, authority) }]
      : []),
    {
      pcr: 4,
      type: EVENT.bootApplication,
      data: imageLoadEvent('\\EFI\\BOOT\\BOOTX64.EFI'),
      digest: authenticodeDigest(uki),
    },
    ...stubEvents(uki),
    { pcr: 5, type: EVENT.efiAction, data: ascii('Exit Boot Services Invocation') },
    { pcr: 5, type: EVENT.efiAction, data: ascii('Exit Boot Services Returned with Success') },
  ];
  return { image: imageOf(uki, content, variables), uki, events };
}

/** UEFI_IMAGE_LOAD_EVENT: address, length, link-time address, length of the device path; then a file path node and the end. */
function imageLoadEvent(path: string): Uint8Array {
  const name = Buffer.from(`${path}\0`, 'utf16le');
  const node = Buffer.concat([Uint8Array.of(4, 4, 4 + name.length, 0), name, Uint8Array.of(0x7f, 0xff, 4, 0)]);
  const head = Buffer.alloc(32);
  head.writeBigUInt64LE(BigInt(node.length), 24);
  return Buffer.concat([head, node]);
}

function imageOf(uki: Uint8Array, name: string, variables: SecureBootVariables): AllowedImage {
  const pcr11 = predictPcr11OfUki(uki);
  return {
    name,
    authenticode: hex(authenticodeDigest(uki)),
    pcr7: { 'test-profile': hex(predictPcr7({ variables, isSecureBootOn: true }).value) },
    pcr11: {
      firmware: hex(pcr11.firmware.value),
      'enter-initrd': hex(pcr11['enter-initrd'].value),
      'leave-initrd': hex(pcr11['leave-initrd'].value),
    },
  };
}

/** What systemd-stub logs: the name of each section, then its content, both as EV_IPL. */
function stubEvents(uki: Uint8Array): LoggedEvent[] {
  const { sections } = decodePe(uki);
  return measuredSections.flatMap((name) => {
    const section = sections.find((candidate) => candidate.name === name);
    if (section === undefined) return [];
    const told = Buffer.from(`${name}\0`, 'utf16le');
    return [
      { pcr: 11, type: EVENT.ipl, data: told, digest: sha256(`${name}\0`) },
      { pcr: 11, type: EVENT.ipl, data: told, digest: sha256(peSectionContent(uki, section)) },
    ];
  });
}

export function encodeLog(events: readonly LoggedEvent[]): Uint8Array {
  return encodeEventLog(events);
}

/** Extends what firmware has logged, as it did when it logged it. */
export function replayIntoTpm(machine: SoftwareTpm, eventLog: Uint8Array): void {
  using tpm = new Tpm(machine.tcti);
  for (const { pcr, type, digests } of decodeEventLog(eventLog).entries) {
    const digest = digests.get('sha256');
    if (type !== noAction && digest !== undefined) tpm.extendPcr(pcr, digest);
  }
}

export interface NodeState {
  /** What init extends after the firmware's log has ended. @default both phases, node parameters and a volume */
  readonly extends?: readonly { readonly pcr: number; readonly digest: Uint8Array }[];
}

/** Both boot phases, node parameters and a volume. */
export const initExtends = [
  { pcr: 11, digest: sha256('enter-initrd') },
  { pcr: 14, digest: sha256('node parameters') },
  { pcr: 15, digest: sha256('volume') },
  { pcr: 11, digest: sha256('leave-initrd') },
] as const;

/** Powers the TPM on and lets firmware and init measure into it. */
export async function bootTpm(machine: SoftwareTpm, eventLog: Uint8Array, state: NodeState = {}): Promise<void> {
  await machine.restart();
  replayIntoTpm(machine, eventLog);
  using tpm = new Tpm(machine.tcti);
  for (const { pcr, digest } of state.extends ?? initExtends) tpm.extendPcr(pcr, digest);
}

export interface QuoteOptions {
  /** @default 'rsa-2048' */
  readonly kind?: KeyKind;
  /** Which registers the quote covers. @default {@link quotedPcrs} */
  readonly pcrs?: readonly number[];
}

/** What the verifier and the node do between them: credential, activation, quote. */
export function takeTestEvidence(machine: SoftwareTpm, eventLog: Uint8Array, options: QuoteOptions = {}): Evidence {
  const kind = options.kind ?? 'rsa-2048';
  using tpm = new Tpm(machine.tcti);
  using ak = tpm.createAk();
  const challenge = randomBytes(32);
  let activation: Evidence['activation'];
  let ekPublicArea: Uint8Array;
  {
    using ek = tpm.createEk(kind);
    ekPublicArea = ek.publicArea;
    const credential = makeCredential(ek.publicArea, ak.name, challenge);
    activation = { ...credential, secret: tpm.activateCredential(ak, ek, credential) };
  }
  const nonce = randomBytes(32);
  const tlsSpki = generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey.export({ format: 'der', type: 'spki' });
  const binding = qualifyingData({ nonce, secret: activation.secret, tlsSpki });
  const pcrs = tpm.readPcrs(quotedPcrs);
  const quote = tpm.quote(ak, binding, options.pcrs ?? quotedPcrs);
  const certificate = tpm.ekCertificate(kind);
  return {
    node: { id: 'node-test', version: '1', bootId: 'd0f5a6f0-0000-4000-8000-000000000001' },
    time: new Date(),
    nonce,
    tlsSpki,
    ek: { publicArea: ekPublicArea, certificates: certificate === undefined ? [] : [certificate] },
    ak: { publicArea: ak.publicArea },
    activation,
    quote: { attest: quote.attest, signature: quote.signature },
    pcrs,
    eventLog,
  };
}

/** The certificate (DER) of the authority that made a manufactured TPM's. */
export function authorityOf(machine: SoftwareTpm): Uint8Array {
  const pem = readFileSync(join(machine.directory, 'authority/issuer-certificate.pem'), 'latin1');
  return decodePem('CERTIFICATE', pem);
}
