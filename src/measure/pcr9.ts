/**
 * PCR 9: what the kernel's own EFI stub is given, measured by it (Linux, drivers/firmware/efi/libstub): its command line
 * and its initramfs. systemd-stub 257 appends archives to the initramfs that it makes itself, and with them the PCR
 * signature, so that this register depends on the signature and is never sealed to.
 */
import { decodePe, findPeSection, peSectionContent } from '../formats/pe.ts';
import { type Measurement, measure, type PcrPrediction, predictPcr } from './pcr.ts';

export interface Pcr9Options {
  /** Load options of the boot entry, which replace the UKI's command line when the stub takes them. @default '' */
  readonly loadOptions?: string;
  /**
   * Added to the command line in the UKI, with a space between, as the stub does with what SMBIOS says. @default ''
   */
  readonly commandLineExtra?: string;
}

/** Sections that the stub hands on as files in `/.extra`, in the order of its archives. */
const extraFiles = [
  ['.pcrsig', 'tpm2-pcr-signature.json'],
  ['.pcrpkey', 'tpm2-pcr-public-key.pem'],
  ['.osrel', 'os-release'],
  ['.profile', 'profile'],
] as const;

/** @throws RangeError when the UKI has no command line: then the boot entry decides. FormatError when it is no PE image. */
export function predictPcr9(uki: Uint8Array, options: Pcr9Options = {}): PcrPrediction {
  const image = decodePe(uki);
  const content = (name: string): Uint8Array | undefined => {
    const section = findPeSection(image, name);
    return section === undefined ? undefined : peSectionContent(uki, section);
  };
  const embedded = options.loadOptions ? Buffer.from(options.loadOptions, 'utf8') : content('.cmdline');
  if (embedded === undefined)
    throw new RangeError(
      'cannot predict PCR 9: the UKI has no .cmdline section, so the boot entry gives the command line',
    );
  const commandLine = [mangle(Buffer.from(embedded).toString('utf8')), options.commandLineExtra ?? '']
    .filter((part) => part !== '')
    .join(' ');
  const initrd = mergedInitrd(content);
  return predictPcr([
    measureCommandLine('command line', commandLine),
    ...(initrd.length === 0 ? [] : [measure(`initramfs (${initrd.length} bytes)`, initrd)]),
  ]);
}

/** A command line as EFI passes it: UTF-16 with its NUL. */
export function measureCommandLine(description: string, commandLine: string): Measurement {
  return measure(`${description} (${commandLine.length} characters)`, Buffer.from(`${commandLine}\0`, 'utf16le'));
}

/** As the stub does: text ends at a NUL, control characters become spaces, spaces at the end are dropped. */
function mangle(text: string): string {
  return text
    .replace(/\0.*$/s, '')
    .replace(/[\x01-\x1f]/g, ' ')
    .replace(/ +$/, '');
}

function mergedInitrd(content: (name: string) => Uint8Array | undefined): Uint8Array {
  const archives = extraFiles.flatMap(([section, name]) => {
    const data = content(section);
    return data === undefined ? [] : [extraArchive(name, data)];
  });
  const parts = [content('.ucode'), content('.initrd'), ...archives].filter((part) => part !== undefined);
  return Buffer.concat(parts.flatMap((part) => [part, Buffer.alloc(-part.length & 3)]));
}

/** The archive that the stub writes around one file: byte for byte, since the kernel measures it (systemd, cpio.c). */
function extraArchive(name: string, data: Uint8Array): Uint8Array {
  const directory = '.extra';
  const header = (fields: { inode: number; mode: number; size: number; path: string }): Uint8Array => {
    const { inode, mode, size, path } = fields;
    const words = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, path.length + 1, 0];
    const text = `070701${words.map((word) => word.toString(16).padStart(8, '0')).join('')}${path}\0`;
    return Buffer.from(text.padEnd(text.length + (-text.length & 3), '\0'), 'latin1');
  };
  // The stub's trailer is a constant, with an upper-case digit where all others are lower-case.
  const trailer = `070701${'0'.repeat(32)}00000001${'0'.repeat(48)}0000000B00000000TRAILER!!!\0\0\0\0`;
  return Buffer.concat([
    header({ inode: 1, mode: 0o040555, size: 0, path: directory }),
    header({ inode: 2, mode: 0o100444, size: data.length, path: `${directory}/${name}` }),
    data,
    Buffer.alloc(-data.length & 3),
    Buffer.from(trailer, 'latin1'),
  ]);
}
