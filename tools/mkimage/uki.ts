/**
 * The unified kernel image: systemd's stub with our kernel, initramfs and command line as sections, one file that firmware
 * verifies, measures and starts.
 *
 * It is made in three steps, so that each key can be elsewhere:
 *
 *     lay out ──▶ every byte in place, signatures zero
 *        │            policy key: approves PCR 11 ─▶ .pcrsig
 *     approve ──▶ policy signatures in it
 *        │            Secure Boot key: signs the Authenticode digest, which covers .pcrsig
 *     sign ─────▶ what firmware starts
 */
import { createPublicKey } from 'node:crypto';
import { attachSignature, authenticodeDigest } from '../../src/formats/authenticode.ts';
import {
  buildUki,
  decodePe,
  findPeSection,
  type NewPeSection,
  peSectionContent,
  replacePeSection,
} from '../../src/formats/pe.ts';
import {
  decodePcrSignatures,
  encodePcrSignatures,
  policyKeyFingerprint,
  unsignedPcr11,
} from '../../src/measure/pcr-signature.ts';
import { predictPcr11OfUki } from '../../src/measure/pcr11.ts';
import { policyRefOfEpoch } from '../../src/measure/policy.ts';
import type { Keys, PolicyKeys, PublicKeys } from './keys.ts';
import { type Measurements, predictMeasurements } from './measurements.ts';
import { policySignerOf, type Signers, signatureFrom, signWithKey } from './signer.ts';
import {
  checkSignature,
  type PolicyRequest,
  policyRequest,
  type SecureBootRequest,
  type Signatures,
  secureBootRequest,
} from './signing-request.ts';

/** Linux's COMMAND_LINE_SIZE on x86, less the final NUL. */
const maxCommandLine = 2047;

/** What goes into the image. */
export interface UkiParts {
  readonly stub: Uint8Array;
  readonly kernel: Uint8Array;
  readonly initrd: Uint8Array;
  readonly cmdline: string;
  /** Text of os-release. */
  readonly osRelease: string;
  /** The kernel's release, as `uname -r` will show it. */
  readonly uname: string;
  /** Of the image: it opens nodes that are sealed to this epoch or an earlier one. */
  readonly epoch: number;
  readonly policyKeys: PolicyKeys;
}

/** The same, with both keys in memory. */
export interface UkiOptions extends Omit<UkiParts, 'policyKeys'> {
  readonly keys: Keys;
}

/**
 * Everything but the signatures, whose places are filled with zeros. The same input gives the same bytes.
 *
 * `.pcrsig` approves PCR 11 as it is in phase enter-initrd: before that and after leave-initrd nothing unseals. It is not
 * measured itself, so it can be computed from the image without it. It does so for each epoch from 1 to the image's, so
 * that a node that is sealed to an earlier one opens and can be resealed; an older image has no signature for a later
 * epoch. Former policy keys approve the same after it, so that a node that is sealed to one of them opens, too.
 *
 * @throws RangeError when the command line is empty or not printable ASCII: with an empty one the stub would take its
 *   command line from the boot entry, even under Secure Boot.
 */
export function layOutUki(options: UkiParts): Uint8Array {
  const { stub, cmdline, policyKeys } = options;
  if (!/^[\x20-\x7e]+$/.test(cmdline) || cmdline.trim() === '' || cmdline.length > maxCommandLine) {
    throw new RangeError(
      `cannot assemble UKI: the command line must be 1 to ${maxCommandLine} printable ASCII characters`,
    );
  }
  const measured: NewPeSection[] = [
    { name: '.osrel', data: Buffer.from(options.osRelease, 'utf8') },
    { name: '.cmdline', data: Buffer.from(cmdline, 'ascii') },
    { name: '.uname', data: Buffer.from(options.uname, 'ascii') },
    { name: '.pcrpkey', data: Buffer.from(policyKeys.policyPublicKeyPem, 'ascii') },
    { name: '.initrd', data: options.initrd },
  ];
  const kernel = { name: '.linux', data: options.kernel };
  const pcr11 = predictPcr11OfUki(buildUki({ stub, sections: [...measured, kernel] }))['enter-initrd'].value;
  const epochs = Array.from({ length: options.epoch }, (_, index) => index + 1);
  const unsigned = approversOf(policyKeys).flatMap(({ publicKeyPem }) => {
    const key = createPublicKey(publicKeyPem);
    return epochs.map((epoch) => unsignedPcr11({ pcr11, policyRef: policyRefOfEpoch(epoch), key }));
  });
  const pcrsig = { name: '.pcrsig', data: Buffer.from(encodePcrSignatures(unsigned), 'utf8') };
  return buildUki({ stub, sections: [...measured, pcrsig, kernel] });
}

/** The policy key first, as it is in `.pcrsig`. */
function approversOf({ policyPublicKeyPem, formerPolicyKeys }: PolicyKeys) {
  return [
    { publicKeyPem: policyPublicKeyPem },
    ...formerPolicyKeys.map(({ name, publicKeyPem }) => ({ publicKeyPem, former: name })),
  ];
}

/** What the policy keys must sign, in the order of `.pcrsig`. @throws RangeError for an approval by a key not among them */
export function policyRequestsOf(uki: Uint8Array, keys: PolicyKeys): PolicyRequest[] {
  const pcr11 = predictPcr11OfUki(uki)['enter-initrd'].value;
  const approvers = approversOf(keys).map((approver) => ({
    ...approver,
    fingerprint: policyKeyFingerprint(createPublicKey(approver.publicKeyPem)),
  }));
  return decodePcrSignatures(pcrsigOf(uki)).map(({ policyRef, keyFingerprint }) => {
    const approver = approvers.find(({ fingerprint }) => Buffer.compare(fingerprint, keyFingerprint) === 0);
    if (approver === undefined)
      throw new RangeError('cannot sign UKI: its .pcrsig has a place for a policy key that was not given');
    return policyRequest(pcr11, policyRef, approver);
  });
}

/**
 * Puts the policy signatures in.
 *
 * @throws Error naming the signature that is missing or wrong.
 */
export function approveUki(uki: Uint8Array, keys: PolicyKeys, signatures: Signatures): Uint8Array {
  const entries = decodePcrSignatures(pcrsigOf(uki));
  const signed = policyRequestsOf(uki, keys).map((request, index) => {
    const [entry, signature] = [entries[index], signatures.get(request.name)];
    if (entry === undefined || signature === undefined) throw new Error(`signature ${request.name} is missing`);
    checkSignature(request, signature, 'the build');
    return { ...entry, signature };
  });
  return replacePeSection(uki, '.pcrsig', Buffer.from(encodePcrSignatures(signed), 'utf8'));
}

/** What the Secure Boot key must sign. @param approved with the policy signatures in it. */
export function secureBootRequestOf(approved: Uint8Array, dbCertificatePem: string): SecureBootRequest {
  return secureBootRequest(authenticodeDigest(approved), dbCertificatePem);
}

/** The finished image and what a TPM will say of it. */
export function assembleUki(options: UkiOptions): {
  uki: Uint8Array;
  measurements: Measurements;
} {
  const { keys, epoch } = options;
  const { dbCertificatePem: certificatePem } = keys;
  const laidOut = layOutUki({ ...options, policyKeys: keys });
  const signatures = policyRequestsOf(laidOut, keys).flatMap((request) => {
    const key = request.former === undefined ? keys.policyKey : keys.formerPolicyPrivateKeys.get(request.former);
    return key === undefined ? [] : [[request.name, signWithKey(request, key)] as const];
  });
  const approved = approveUki(laidOut, keys, new Map(signatures));
  const signature = signWithKey(secureBootRequestOf(approved, certificatePem), keys.dbKey);
  const uki = attachSignature(approved, { certificatePem, signature });
  return { uki, measurements: predictMeasurements(uki, keys, epoch) };
}

/** Both rounds, with signers at hand. The same image gives the same bytes, whoever the signers are. */
export async function signUki(
  uki: Uint8Array,
  keys: PolicyKeys & Pick<PublicKeys, 'dbCertificatePem'>,
  signers: Signers,
): Promise<Uint8Array> {
  const signatures = new Map<string, Uint8Array>();
  for (const request of policyRequestsOf(uki, keys)) {
    const signer = policySignerOf(signers, request);
    if (signer === undefined) {
      throw new Error(
        `cannot sign ${request.name}: the private half of former-policy/${request.former}.pub is not beside it; say who signs ` +
          `with --former-policy-key ${request.former}=SIGNER, or take the .pub away when no node is sealed to it any more`,
      );
    }
    signatures.set(request.name, await signatureFrom(signer, request));
  }
  const approved = approveUki(uki, keys, signatures);
  const signature = await signatureFrom(signers.secureBoot, secureBootRequestOf(approved, keys.dbCertificatePem));
  return attachSignature(approved, { certificatePem: keys.dbCertificatePem, signature });
}

function pcrsigOf(uki: Uint8Array): Uint8Array {
  const section = findPeSection(decodePe(uki), '.pcrsig');
  if (section === undefined) throw new RangeError('cannot sign UKI: it has no .pcrsig section');
  return peSectionContent(uki, section);
}
