/**
 * The kernel command line, word by word with its reason (image/kernel-command-line.json). It is in the UKI, where it is
 * signed and measured, and compiled into the kernel, which reads nothing else: systemd-stub appends what SMBIOS says to
 * the command line, and a word such as `LD_PRELOAD=…` would become PID 1's environment before any code of ours runs.
 * That PCR 12 moves keeps the data sealed, but a machine without data yet would run a stranger's code.
 */
import words from '../../image/kernel-command-line.json' with { type: 'json' };
import { list, object, text } from '../../src/formats/json-shape.ts';

const wordsFile = list(
  object({ word: text({ min: 1, max: 200, pattern: /^\S+$/ }), reason: text({ min: 1, max: 1000 }) }),
  { max: 100 },
);

/** As written; {@link kernelCommandLine} checks them, so that a mistake is an error of the command and not of loading it. */
export const kernelCommandLineWords: readonly { readonly word: string; readonly reason: string }[] = words;

/** The words, space between. @throws ShapeError naming file and key, when the file is mistyped */
export function kernelCommandLine(from: unknown = kernelCommandLineWords): string {
  return wordsFile(from, 'image/kernel-command-line.json')
    .map(({ word }) => word)
    .join(' ');
}

/** The kernel settings that make it the only command line. Throws on a word that a configuration file cannot hold. */
export function kernelCommandLineFragment(line: string): string {
  if (!/^[!#-[\]-~ ]+$/.test(line))
    throw new Error(
      `cannot compile in the kernel command line ${JSON.stringify(line)}: quotes and backslashes are not for it`,
    );
  return `# Generated from image/kernel-command-line.json.\nCONFIG_CMDLINE_BOOL=y\nCONFIG_CMDLINE="${line}"\nCONFIG_CMDLINE_OVERRIDE=y\n`;
}
