/**
 * PCR 4: the boot applications that firmware started (TCG PC Client Platform Firmware Profile §3.3.4.5).
 *
 * It depends on the boot's history (each boot entry that failed before leaves two events), so it is attested by replaying
 * the event log and never sealed to.
 */
import { authenticodeDigest } from '../formats/authenticode.ts';
import { decodePe, findPeSection, peSectionContent } from '../formats/pe.ts';
import { type Measurement, measure, type PcrPrediction, predictPcr, separator } from './pcr.ts';

export interface Pcr4Options {
  readonly isSecureBootOn: boolean;
  /** Boot entries that were tried and failed before the one that booted. @default 0 */
  readonly failedBootEntries?: number;
}

export function predictPcr4(uki: Uint8Array, options: Pcr4Options): PcrPrediction {
  const calling = measure('Calling EFI Application', 'Calling EFI Application from Boot Option');
  const returning = measure('Returning from EFI Application', 'Returning from EFI Application from Boot Option');
  const failures = Array.from({ length: options.failedBootEntries ?? 0 }, () => [returning, calling]).flat();
  const image: Measurement = { description: 'Authenticode digest of the UKI', digest: authenticodeDigest(uki) };
  return predictPcr([calling, separator(), ...failures, image, ...(options.isSecureBootOn ? [] : [kernel(uki)])]);
}

/**
 * Without Secure Boot the stub starts the kernel through the firmware's LoadImage, which measures it. With Secure Boot
 * it must get round that (the kernel alone is not signed), so there is no event.
 */
function kernel(uki: Uint8Array): Measurement {
  const section = findPeSection(decodePe(uki), '.linux');
  if (section === undefined) throw new RangeError('cannot predict PCR 4: the UKI has no .linux section');
  return { description: 'Authenticode digest of .linux', digest: authenticodeDigest(peSectionContent(uki, section)) };
}
