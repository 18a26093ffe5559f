/**
 * Will a node's data still open after a change of image, db or dbx? Judged before the change, from what the node says it
 * is sealed to, from its firmware's event log, and from the new image:
 *
 *   the firmware runs the image        signed by a certificate in db, not in dbx
 *   the policy key vouches for it      .pcrsig approves exactly this PCR 11, for the policyRef that the data is sealed to
 *   PCR 7 stays                        the machine's own events of PCR 7, with the changed variables in their places
 *
 * The log is used rather than a model of the firmware, because boards measure more into PCR 7 than the specification asks.
 */
import { createPublicKey, type KeyObject } from 'node:crypto';
import {
  decodeSignatureLists,
  efiImageSecurityDatabase,
  type SecureBootVariables,
} from '../formats/efi-signature-list.ts';
import { decodeVariableData, encodeVariableData } from '../formats/efi-variable-data.ts';
import type { EventLog } from '../formats/event-log.ts';
import { eventType } from '../formats/event-types.ts';
import { encodeGuid } from '../formats/guid.ts';
import { decodePe, findPeSection, peSectionContent } from '../formats/pe.ts';
import { type Measurement, measure, type PcrPrediction, predictPcr } from './pcr.ts';
import { decodePcrSignatures, type PcrSignature, policyKeyFingerprint, verifyPcrSignature } from './pcr-signature.ts';
import { findAuthority } from './pcr7.ts';
import { predictPcr11OfUki } from './pcr11.ts';
import { signedPcr11Policy } from './policy.ts';

/** What the data is sealed to, as the node says. Hex in lower case. */
export interface SealedTo {
  readonly policyRef: string;
  readonly policyKeyFingerprint: string;
  /** That key, for an image that is approved by it and carries another as its own. Believed when it has the fingerprint. */
  readonly policyKeyPem?: string | undefined;
  readonly pcr7: string;
  /** What else it is sealed to, for a state that is yet to come. */
  readonly waiting?: Omit<SealedTo, 'waiting' | 'policyKeyPem'> | undefined;
}

export interface UnsealChange {
  /** The image that is to boot. */
  readonly uki: Uint8Array;
  /** What db is to hold, whole. @default as it is */
  readonly db?: Uint8Array;
  /** What dbx is to hold, whole. @default as it is */
  readonly dbx?: Uint8Array;
}

export interface UnsealCheck {
  readonly name: 'firmware' | 'policy' | 'pcr7';
  readonly passed: boolean;
  readonly detail: string;
  /** What to do about it; absent when passed. */
  readonly wayOut?: string;
  /** The command that does it, for `NODE`. */
  readonly command?: string;
}

export interface UnsealPrediction {
  readonly unseals: boolean;
  readonly checks: readonly UnsealCheck[];
  /** After the change; absent when the firmware would not run the image. */
  readonly pcr7?: PcrPrediction;
  /** While the data is unsealed. */
  readonly pcr11: PcrPrediction;
}

/**
 * @param log of the node's present boot, under the variables that are to be changed
 * @throws FormatError or RangeError when image or log cannot be read
 */
export function predictUnseal(sealedTo: SealedTo, log: EventLog, change: UnsealChange): UnsealPrediction {
  const pcr11 = predictPcr11OfUki(change.uki)['enter-initrd'];
  const { waiting, policyKeyPem } = sealedTo;
  const ways: SealedTo[] = [sealedTo, ...(waiting === undefined ? [] : [{ ...waiting, policyKeyPem }])];
  try {
    const pcr7 = predictPcr7After(log, change);
    const checked = ways.map((way) => [runsIt(change), checkPolicy(way, change.uki, pcr11), checkPcr7(way, log, pcr7)]);
    const opening = checked.find((checks) => checks.every(({ passed }) => passed));
    return { unseals: opening !== undefined, checks: opening ?? checked[0] ?? [], pcr7, pcr11 };
  } catch (error) {
    if (!(error instanceof FirmwareRefusal)) throw error;
    return { unseals: false, checks: [refusal(error), checkPolicy(sealedTo, change.uki, pcr11)], pcr11 };
  }
}

class FirmwareRefusal extends Error {
  override readonly name = 'FirmwareRefusal';
}

function runsIt(change: UnsealChange): UnsealCheck {
  const under = change.db === undefined && change.dbx === undefined ? 'db and dbx as they are' : 'the new db and dbx';
  return { name: 'firmware', passed: true, detail: `the firmware runs the image under ${under}` };
}

function refusal(error: FirmwareRefusal): UnsealCheck {
  const wayOut = 'sign the image with a key whose certificate is in db, or change db first and this image afterwards';
  return { name: 'firmware', passed: false, detail: error.message, wayOut };
}

function checkPolicy(sealedTo: SealedTo, uki: Uint8Array, pcr11: PcrPrediction): UnsealCheck {
  const failed = (detail: string, wayOut: string): UnsealCheck => ({ name: 'policy', passed: false, detail, wayOut });
  const signAgain = `have PCR 11 of this image signed by the policy key ${short(sealedTo.policyKeyFingerprint)} for "${sealedTo.policyRef}": mkimage sign`;
  const { signatures, pem } = readPolicySections(uki);
  if (signatures.length === 0) return failed('the image brings no PCR 11 signature (.pcrsig)', signAgain);
  const ofKey = signatures.filter(({ keyFingerprint }) => hex(keyFingerprint) === sealedTo.policyKeyFingerprint);
  if (ofKey.length === 0) {
    const keys = [...new Set(signatures.map(({ keyFingerprint }) => short(hex(keyFingerprint))))].join(', ');
    return failed(
      `the image is signed by the policy key ${keys}, the data is sealed to ${short(sealedTo.policyKeyFingerprint)}`,
      `${signAgain}; for a change of key, an image of the new key that the former one approves too (mkimage keys rotate-policy)`,
    );
  }
  const ofEpoch = ofKey.filter(({ policyRef }) => policyRef === sealedTo.policyRef);
  if (ofEpoch.length === 0) {
    const refs = [...new Set(ofKey.map(({ policyRef }) => `"${policyRef}"`))].join(', ');
    return failed(
      `the image is signed for ${refs}, the data is sealed to "${sealedTo.policyRef}"`,
      'an image of an older epoch opens nothing any more, which is what epochs are for: take one of this epoch or a later one',
    );
  }
  const approved = signedPcr11Policy(pcr11.value);
  const exact = ofEpoch.find(({ policy }) => Buffer.compare(policy, approved) === 0);
  if (exact === undefined) {
    return failed(
      `PCR 11 will be ${hex(pcr11.value)}, and the signatures for "${sealedTo.policyRef}" approve other values: the image was changed after it was signed`,
      signAgain,
    );
  }
  const key = keyOfFingerprint(sealedTo.policyKeyFingerprint, [pem, sealedTo.policyKeyPem]);
  if (key === undefined) {
    return failed(
      'neither the image (.pcrpkey) nor the node gives the policy key, so its signature cannot be checked',
      signAgain,
    );
  }
  if (!verifyPcrSignature(exact, key)) {
    return failed(`the signature for "${sealedTo.policyRef}" is not of the policy key`, signAgain);
  }
  const detail = `the policy key ${short(sealedTo.policyKeyFingerprint)} vouches for the image for "${sealedTo.policyRef}"`;
  return { name: 'policy', passed: true, detail };
}

function keyOfFingerprint(fingerprint: string, pems: readonly (string | undefined)[]): KeyObject | undefined {
  return pems
    .map((pem) => (pem === undefined ? undefined : readKey(pem)))
    .find((key) => key !== undefined && hex(policyKeyFingerprint(key)) === fingerprint);
}

/** What a node sends need be no key. */
function readKey(pem: string): KeyObject | undefined {
  try {
    const key = createPublicKey(pem);
    return key.asymmetricKeyType === 'rsa' ? key : undefined;
  } catch {
    return undefined;
  }
}

function readPolicySections(uki: Uint8Array): { signatures: readonly PcrSignature[]; pem: string | undefined } {
  const image = decodePe(uki);
  const content = (name: string) => {
    const section = findPeSection(image, name);
    return section === undefined ? undefined : peSectionContent(uki, section);
  };
  const json = content('.pcrsig');
  const pem = content('.pcrpkey');
  return {
    signatures: json === undefined ? [] : decodePcrSignatures(json),
    pem: pem === undefined ? undefined : Buffer.from(pem).toString('utf8'),
  };
}

function checkPcr7(sealedTo: SealedTo, log: EventLog, predicted: PcrPrediction): UnsealCheck {
  const now = hex(predictPcr(pcr7Events(log).map(({ measurement }) => measurement)).value);
  const then = hex(predicted.value);
  if (then === sealedTo.pcr7) {
    const detail = then === now ? `PCR 7 stays ${then}` : `PCR 7 becomes ${then}, to which the data is sealed`;
    return { name: 'pcr7', passed: true, detail };
  }
  if (now !== sealedTo.pcr7) {
    return {
      name: 'pcr7',
      passed: false,
      detail: `PCR 7 will be ${then}; the data is sealed to ${sealedTo.pcr7}, and the event log of this boot gives ${now}`,
      wayOut:
        'reboot the node and ask again: its firmware was changed since the data was opened, or measures what it does not log',
    };
  }
  return {
    name: 'pcr7',
    passed: false,
    detail: `PCR 7 is ${now} and will be ${then}`,
    wayOut: 'before the change, have the data sealed to both states, and reboot the node once:',
    command: `ashlarctl node reseal NODE --pcr7 ${then}`,
  };
}

interface Pcr7Event {
  readonly measurement: Measurement;
  /** The variable as it was measured; undefined for events of another kind. */
  readonly variable?: { readonly name: string; readonly vendorGuid: string; readonly data: Uint8Array };
  /** It says by which entry of db something was let run. */
  readonly isAuthority: boolean;
}

/** The events of PCR 7, in order. Throws when one has no SHA-256 digest. */
function pcr7Events(log: EventLog): Pcr7Event[] {
  const events = log.entries.filter(({ pcr, type }) => pcr === 7 && type !== eventType.noAction);
  if (events.length === 0) throw new RangeError('cannot predict PCR 7: the event log has no event of it');
  return events.map((entry) => {
    const digest = entry.digests.get('sha256');
    if (digest === undefined) {
      throw new RangeError(`cannot predict PCR 7: event ${entry.index} has no SHA-256 digest`);
    }
    const isAuthority = entry.type === eventType.efiVariableAuthority;
    const measurement = { description: entry.typeName, digest };
    if (!isAuthority && entry.type !== eventType.efiVariableDriverConfig) return { measurement, isAuthority };
    const { name, vendorGuid, data } = decodeVariableData(entry.data);
    return { measurement, isAuthority, variable: { name, vendorGuid, data } };
  });
}

/** The machine's PCR 7 events with the changed variables, and with the authority that lets the new image run. */
function predictPcr7After(log: EventLog, { uki, db, dbx }: UnsealChange): PcrPrediction {
  const events = pcr7Events(log);
  const measured = (name: string) => {
    const event = events.find(({ isAuthority, variable }) => !isAuthority && variable?.name === name);
    return event?.variable?.data ?? new Uint8Array();
  };
  if (measured('SecureBoot')[0] !== 1) {
    throw new RangeError('cannot predict whether the data opens: Secure Boot is off, and nothing is sealed to that');
  }
  const variables: SecureBootVariables = {
    pk: measured('PK'),
    kek: measured('KEK'),
    db: db ?? measured('db'),
    dbx: dbx ?? measured('dbx'),
  };
  const changed: Readonly<Record<string, Uint8Array | undefined>> = { db, dbx };
  // Firmware measures the authority of each thing it runs once, the image's last.
  const imageAuthority = events.findLast(({ isAuthority }) => isAuthority);
  const measurements = events.flatMap((event): Measurement[] => {
    const { variable, measurement, isAuthority } = event;
    if (event === imageAuthority) return [];
    const content = variable === undefined || isAuthority ? undefined : changed[variable.name];
    if (variable === undefined || content === undefined) return [measurement];
    const description = `variable ${variable.name}, changed (${content.length} bytes)`;
    return [measure(description, encodeVariableData(variable.name, variable.vendorGuid, content))];
  });
  const authority = authorityOf(uki, variables);
  const isMeasured = measurements.some(({ digest }) => Buffer.compare(digest, authority.digest) === 0);
  return predictPcr(isMeasured ? measurements : [...measurements, authority]);
}

function authorityOf(uki: Uint8Array, variables: SecureBootVariables): Measurement {
  const { authority } = whoLetsRun(uki, variables);
  const entry = decodeSignatureLists(variables.db)
    .flatMap(({ signatures }) => signatures)
    .find(({ data }) => authority !== undefined && Buffer.compare(data, authority) === 0);
  if (entry === undefined) throw new FirmwareRefusal('the firmware does not run the image: its signer is not in db');
  const content = Buffer.concat([encodeGuid(entry.ownerGuid), entry.data]);
  return measure('authority db', encodeVariableData('db', efiImageSecurityDatabase, content));
}

function whoLetsRun(uki: Uint8Array, variables: SecureBootVariables) {
  try {
    return findAuthority(uki, { variables, isSecureBootOn: true });
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new FirmwareRefusal(error.message.replace('cannot predict PCR 7: with Secure Boot on, ', 'the '), {
      cause: error,
    });
  }
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const short = (digits: string): string => `${digits.slice(0, 16)}…`;
