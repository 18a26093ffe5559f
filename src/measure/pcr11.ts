/**
 * PCR 11: what systemd-stub 257 measures of a unified kernel image, then the boot phases that our init measures. Equal
 * to `systemd-measure calculate`.
 */
import { decodePe, peSectionContent } from '../formats/pe.ts';
import { type Measurement, measure, type PcrPrediction, predictPcr } from './pcr.ts';

/** Sections in the stub's order, whatever their order in the file. `.pcrsig` is never measured: it depends on the result. */
export const measuredSections = [
  '.linux',
  '.osrel',
  '.cmdline',
  '.initrd',
  '.ucode',
  '.splash',
  '.dtb',
  '.uname',
  '.sbat',
  '.pcrpkey',
  '.profile',
  '.dtbauto',
  '.hwids',
  '.efifw',
] as const;

/** Words that init extends into PCR 11, without a final NUL. */
export type BootPhase = 'enter-initrd' | 'leave-initrd';

export interface Pcr11Prediction {
  /** When the stub starts the kernel. */
  readonly firmware: PcrPrediction;
  /** While stage 1 runs and the data partition may be unsealed. */
  readonly 'enter-initrd': PcrPrediction;
  /** Ever after. */
  readonly 'leave-initrd': PcrPrediction;
}

/** The measurement of one boot phase. */
export const bootPhase = (phase: BootPhase): Measurement => measure(`phase ${phase}`, phase);

/**
 * @param sections present in the image, any order; others than {@link measuredSections} are not measured.
 * @throws RangeError when a name is there twice.
 */
export function predictPcr11(sections: readonly { name: string; data: Uint8Array }[]): Pcr11Prediction {
  const measurements = measuredSections.flatMap((name) => {
    const [section, ...others] = sections.filter((candidate) => candidate.name === name);
    if (others.length > 0)
      throw new RangeError(`cannot predict PCR 11: section ${name} is there ${others.length + 1} times`);
    if (section === undefined) return [];
    // The name is measured with its NUL, the content by its exact length (VirtualSize), both by themselves.
    return [
      measure(`name ${name}`, `${name}\0`),
      measure(`content ${name} (${section.data.length} bytes)`, section.data),
    ];
  });
  const entered = [...measurements, bootPhase('enter-initrd')];
  return {
    firmware: predictPcr(measurements),
    'enter-initrd': predictPcr(entered),
    'leave-initrd': predictPcr([...entered, bootPhase('leave-initrd')]),
  };
}

/** Predicts from a finished image, which holds sections of the stub (`.sbat`) too. */
export function predictPcr11OfUki(uki: Uint8Array): Pcr11Prediction {
  const wanted: readonly string[] = measuredSections;
  const sections = decodePe(uki).sections.filter(({ name }) => wanted.includes(name));
  return predictPcr11(sections.map((section) => ({ name: section.name, data: peSectionContent(uki, section) })));
}
