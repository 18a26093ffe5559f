/**
 * PCR 12: what was handed to the stub beside the signed image (systemd-stub 257): zero when nothing was. The sealing
 * policy binds it as zero, since everything that moves it is under the control of whoever holds the disk or the
 * hypervisor.
 */
import { type PcrPrediction, predictPcr } from './pcr.ts';
import { measureCommandLine } from './pcr9.ts';

export interface Pcr12Options {
  /** Load options of the boot entry. The stub takes them only with Secure Boot off, or from a UKI without `.cmdline`. */
  readonly loadOptions?: string;
  /** SMBIOS type 11 string `io.systemd.stub.kernel-cmdline-extra=`, taken whatever Secure Boot says. */
  readonly smbiosCommandLine?: string;
}

export function predictPcr12(options: Pcr12Options = {}): PcrPrediction {
  const { loadOptions = '', smbiosCommandLine = '' } = options;
  return predictPcr([
    ...(loadOptions === '' ? [] : [measureCommandLine('load options of the boot entry', loadOptions)]),
    ...(smbiosCommandLine === '' ? [] : [measureCommandLine('command line from SMBIOS', smbiosCommandLine)]),
  ]);
}
