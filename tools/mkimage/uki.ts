/**
 * The unified kernel image: systemd's stub with our kernel, initramfs and command line as sections, one file that firmware
 * verifies, measures and starts.
 */
import { signAuthenticode } from '../../src/formats/authenticode.ts';
import { buildUki, type NewPeSection } from '../../src/formats/pe.ts';
import { encodePcrSignatures, signPcr11 } from '../../src/measure/pcr-signature.ts';
import { predictPcr11OfUki } from '../../src/measure/pcr11.ts';
import { policyRefOfEpoch } from '../../src/measure/policy.ts';
import type { Keys } from './keys.ts';
import { type Measurements, predictMeasurements } from './measurements.ts';

/** Linux's COMMAND_LINE_SIZE on x86, less the final NUL. */
const maxCommandLine = 2047;

export interface UkiOptions {
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
  readonly keys: Keys;
}

/**
 * Assembles, policy-signs and Secure-Boot-signs. The same input gives the same bytes.
 *
 * `.pcrsig` approves PCR 11 as it is in phase enter-initrd: before that and after leave-initrd nothing unseals. It is not
 * measured itself, so it can be computed from the image without it. It does so for each epoch from 1 to the image's, so that a node that is sealed
 * to an earlier one opens and can be resealed; an older image has no signature for a later epoch.
 *
 * @throws RangeError when the command line is empty or not printable ASCII: with an empty one the stub would take its
 *   command line from the boot entry, even under Secure Boot.
 */
export function assembleUki(options: UkiOptions): { uki: Uint8Array; measurements: Measurements } {
  const { stub, cmdline, keys } = options;
  if (!/^[\x20-\x7e]+$/.test(cmdline) || cmdline.trim() === '' || cmdline.length > maxCommandLine) {
    throw new RangeError(
      `cannot assemble UKI: the command line must be 1 to ${maxCommandLine} printable ASCII characters`,
    );
  }
  const measured: NewPeSection[] = [
    { name: '.osrel', data: Buffer.from(options.osRelease, 'utf8') },
    { name: '.cmdline', data: Buffer.from(cmdline, 'ascii') },
    { name: '.uname', data: Buffer.from(options.uname, 'ascii') },
    { name: '.pcrpkey', data: Buffer.from(keys.policyPublicKeyPem, 'ascii') },
    { name: '.initrd', data: options.initrd },
  ];
  const kernel = { name: '.linux', data: options.kernel };
  const pcr11 = predictPcr11OfUki(buildUki({ stub, sections: [...measured, kernel] }))['enter-initrd'].value;
  const epochs = Array.from({ length: options.epoch }, (_, index) => index + 1);
  const signatures = epochs.map((epoch) =>
    signPcr11({ pcr11, policyRef: policyRefOfEpoch(epoch), key: keys.policyKey }),
  );
  const pcrsig = { name: '.pcrsig', data: Buffer.from(encodePcrSignatures(signatures), 'utf8') };
  const unsigned = buildUki({ stub, sections: [...measured, pcrsig, kernel] });
  const uki = signAuthenticode(unsigned, { certificatePem: keys.dbCertificatePem, key: keys.dbKey });
  return { uki, measurements: predictMeasurements(uki, keys, options.epoch) };
}
