/**
 * measurements.json: what a machine's TPM will say after it has booted this image, with every digest on the way, so that
 * it can be checked with tools that are not ours.
 */
import { createPublicKey } from 'node:crypto';
import type { SecureBootVariables } from '../../src/formats/efi-signature-list.ts';
import type { Gpt } from '../../src/formats/gpt.ts';
import type { PcrPrediction } from '../../src/measure/pcr.ts';
import { policyKeyFingerprint } from '../../src/measure/pcr-signature.ts';
import { predictPcr4 } from '../../src/measure/pcr4.ts';
import { predictPcr5 } from '../../src/measure/pcr5.ts';
import { predictPcr7 } from '../../src/measure/pcr7.ts';
import { predictPcr9 } from '../../src/measure/pcr9.ts';
import { predictPcr11OfUki } from '../../src/measure/pcr11.ts';
import { predictPcr12 } from '../../src/measure/pcr12.ts';
import { policyRefOfEpoch, rsaPolicyKeyName, sealingPolicy, signedPcr11Policy } from '../../src/measure/policy.ts';
import { type Keys, secureBootVariablesOf } from './keys.ts';

interface Step {
  readonly description: string;
  /** What was extended. */
  readonly digest: string;
  /** The register after it. */
  readonly value: string;
}

/** All digests are lower-case hex. */
export interface Measurements {
  readonly bank: 'sha256';
  readonly pcr4: Readonly<Record<'secure-boot-on' | 'secure-boot-off', string>>;
  /** By machine profile: whose firmware, with which dbx. */
  readonly pcr7: Readonly<Record<string, string>>;
  /** By boot path. `disk-image` is the first boot from the disk image: adding the data partition changes it. */
  readonly pcr5: Readonly<Record<'network', string>> & Readonly<Partial<Record<'disk-image', string>>>;
  readonly pcr9: string;
  readonly pcr11: Readonly<Record<'firmware' | 'enter-initrd' | 'leave-initrd', string>>;
  /** With nothing injected, which is the only state in which data is unsealed. */
  readonly pcr12: string;
  readonly policy: {
    readonly policyRef: string;
    /** Policy digest that `.pcrsig` approves: PolicyPCR(11 = enter-initrd). */
    readonly pcr11: string;
    /** SHA-256 of the policy key's PKCS #1 DER, as in `.pcrsig`. */
    readonly keyFingerprint: string;
    /** Of former policy keys that approve the image, too; absent without any. */
    readonly formerKeyFingerprints?: readonly string[];
    readonly keyName: string;
    /** authPolicy of what a node seals, by machine profile. */
    readonly sealing: Readonly<Record<string, string>>;
  };
  readonly steps: {
    readonly pcr4: Readonly<Record<string, readonly Step[]>>;
    readonly pcr5: Readonly<Record<string, readonly Step[]>>;
    readonly pcr7: Readonly<Record<string, readonly Step[]>>;
    readonly pcr9: readonly Step[];
    readonly pcr11: readonly Step[];
    readonly pcr12: readonly Step[];
  };
}

export type MeasurementKeys = Pick<
  Keys,
  | 'ownerGuid'
  | 'pkCertificatePem'
  | 'kekCertificatePem'
  | 'dbCertificatePem'
  | 'policyPublicKeyPem'
  | 'formerPolicyKeys'
>;

const noVariables: SecureBootVariables = {
  pk: new Uint8Array(0),
  kek: new Uint8Array(0),
  db: new Uint8Array(0),
  dbx: new Uint8Array(0),
};

/**
 * @param uki the finished, signed image
 * @param epoch the image's
 */
export function predictMeasurements(uki: Uint8Array, keys: MeasurementKeys, epoch: number): Measurements {
  const policyRef = policyRefOfEpoch(epoch);
  const pcr11 = predictPcr11OfUki(uki);
  const pcr4 = {
    'secure-boot-on': predictPcr4(uki, { isSecureBootOn: true }),
    'secure-boot-off': predictPcr4(uki, { isSecureBootOn: false }),
  };
  const pcr5 = predictPcr5({ bootedFrom: 'network' });
  const pcr9 = predictPcr9(uki);
  const pcr12 = predictPcr12();
  const pcr7 = {
    'ovmf-empty-dbx': predictPcr7({ variables: secureBootVariablesOf(keys, 'empty'), isSecureBootOn: true }),
    'ovmf-dummy-dbx': predictPcr7({ variables: secureBootVariablesOf(keys, 'dummy'), isSecureBootOn: true }),
    'ovmf-setup-mode': predictPcr7({ variables: noVariables, isSecureBootOn: false }),
  };
  const policyKey = createPublicKey(keys.policyPublicKeyPem);
  return {
    bank: 'sha256',
    pcr4: mapValues(pcr4, valueOf),
    pcr5: { network: valueOf(pcr5) },
    pcr7: mapValues(pcr7, valueOf),
    pcr9: valueOf(pcr9),
    pcr11: mapValues(pcr11, valueOf),
    pcr12: valueOf(pcr12),
    policy: {
      policyRef,
      pcr11: hex(signedPcr11Policy(pcr11['enter-initrd'].value)),
      keyFingerprint: hex(policyKeyFingerprint(policyKey)),
      ...(keys.formerPolicyKeys.length > 0 && {
        formerKeyFingerprints: keys.formerPolicyKeys.map(({ publicKeyPem }) =>
          hex(policyKeyFingerprint(createPublicKey(publicKeyPem))),
        ),
      }),
      keyName: hex(rsaPolicyKeyName(policyKey)),
      sealing: mapValues(pcr7, ({ value }) => hex(sealingPolicy({ policyKey, policyRef, pcr7: value }))),
    },
    steps: {
      pcr4: mapValues(pcr4, stepsOf),
      pcr5: { network: stepsOf(pcr5) },
      pcr7: mapValues(pcr7, stepsOf),
      pcr9: stepsOf(pcr9),
      pcr11: stepsOf(pcr11['leave-initrd']),
      pcr12: stepsOf(pcr12),
    },
  };
}

/** The same, with PCR 5 of the first boot from the disk image, whose table is known only when it is made. */
export function withDiskImage(measurements: Measurements, gpt: Gpt): Measurements {
  const pcr5 = predictPcr5({ bootedFrom: gpt });
  return {
    ...measurements,
    pcr5: { ...measurements.pcr5, 'disk-image': valueOf(pcr5) },
    steps: { ...measurements.steps, pcr5: { ...measurements.steps.pcr5, 'disk-image': stepsOf(pcr5) } },
  };
}

/** The file's text: stable, two-space indented. */
export function formatMeasurements(measurements: Measurements): string {
  return `${JSON.stringify(measurements, null, 2)}\n`;
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const valueOf = (prediction: PcrPrediction): string => hex(prediction.value);
const stepsOf = (prediction: PcrPrediction): Step[] =>
  prediction.steps.map(({ description, digest, value }) => ({ description, digest: hex(digest), value: hex(value) }));

function mapValues<K extends string, V, W>(record: Readonly<Record<K, V>>, map: (value: V) => W): Record<K, W> {
  return Object.fromEntries(Object.entries<V>(record).map(([key, value]) => [key, map(value)])) as Record<K, W>;
}
