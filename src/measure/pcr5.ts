/**
 * PCR 5: the partition table of the disk that was booted, and that boot services ended (TCG PC Client Platform Firmware
 * Profile §3.3.4.6), as EDK II measures them.
 *
 * The table is the one at that boot: the disk image's at the first one, another when the data partition has been added
 * or marked. Booted from the network there is none. Never sealed to.
 */
import { encodeGptEvent, type Gpt } from '../formats/gpt.ts';
import { type Measurement, measure, type PcrPrediction, predictPcr, separator } from './pcr.ts';

export interface Pcr5Options {
  /** The table of the disk that firmware boots from, as it is at that time; `network` when it boots from none. */
  readonly bootedFrom: Gpt | 'network';
}

export function predictPcr5(options: Pcr5Options): PcrPrediction {
  const { bootedFrom } = options;
  const table: Measurement[] =
    bootedFrom === 'network'
      ? []
      : [measure(`partition table (${bootedFrom.partitions.length} partitions)`, encodeGptEvent(bootedFrom))];
  return predictPcr([
    separator(),
    ...table,
    measure('exit boot services, begun', 'Exit Boot Services Invocation'),
    measure('exit boot services, done', 'Exit Boot Services Returned with Success'),
  ]);
}
