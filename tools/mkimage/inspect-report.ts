/** An inspection as text for people. Everything from the image is printed with control characters made visible. */
import type { Inspection, UkiInspection } from './inspect.ts';

type Row = readonly string[];

export function formatInspection(inspection: Inspection): string {
  const { disk, uki, pcr7, services, packages, missing, problems } = inspection;
  const blocks: string[][] = [];
  if (disk !== undefined) {
    const rows = disk.partitions.map(({ number, name, sizeBytes, uniqueGuid, rootHash }): Row => {
      const check =
        rootHash === undefined ? '' : `root hash ${rootHash === uki.system?.rootHash ? 'verified' : 'WRONG'}`;
      return [String(number), name, size(sizeBytes), uniqueGuid, check];
    });
    blocks.push([`Disk ${disk.diskGuid}, ${size(disk.sizeBytes)}`, ...table(rows)]);
  }
  blocks.push([`UKI ${disk?.ukiPath ?? inspection.file}, ${size(uki.sizeBytes)}`, ...table(identity(uki))]);
  blocks.push([
    'Sections',
    ...table(uki.sections.map(({ name, sizeBytes, sha256 }) => [name, String(sizeBytes), sha256])),
  ]);
  blocks.push(['Signatures', ...table(signatures(uki))]);
  const pcrs = [
    ...Object.entries(uki.pcrs.pcr4).map(([state, value]): Row => ['PCR 4', state, value]),
    ...Object.entries(pcr7 ?? {}).map(([profile, value]): Row => ['PCR 7', profile, value]),
    ...Object.entries(uki.pcrs.pcr11).map(([phase, value]): Row => ['PCR 11', phase, value]),
  ];
  blocks.push(['Predicted registers (SHA-256 bank)', ...table(pcrs)]);
  if (services !== undefined) blocks.push([`Services: ${services.map(visible).join(', ')}`]);
  if (packages !== undefined) {
    const inImage = packages.filter(({ isInImage }) => isInImage);
    blocks.push(['Packages in the image', ...table(inImage.map(({ name, version }) => [name, version]))]);
    const others = packages.length - inImage.length;
    blocks.push([`Of ${others} more packages of the lock the image has no file; manifest.json names them`]);
  }
  if (missing.length > 0) blocks.push([`Not shown: ${missing.map(missed).join('; ')}`]);
  if (problems.length > 0) blocks.push(['PROBLEMS', ...problems.map((problem) => `  ${visible(problem)}`)]);
  return blocks.map((lines) => lines.join('\n')).join('\n\n');
}

/** Said aloud, because a reader would take what is left out for what is not there. */
function missed(file: Inspection['missing'][number]): string {
  const untold = file === 'manifest.json' ? 'services and packages' : 'PCR 7';
  return `${untold} (${file} is not beside the image)`;
}

function identity(uki: UkiInspection): Row[] {
  const { osRelease, system } = uki;
  const optional = (label: string, value: string | undefined): Row[] => (value === undefined ? [] : [[label, value]]);
  return [
    ...optional('system', osRelease['PRETTY_NAME'] ?? osRelease['ID']),
    ...optional('version', system?.version ?? osRelease['VERSION_ID']),
    ...optional('kernel', uki.uname),
    ...optional('command line', uki.commandLine),
    ...optional('root hash', system?.rootHash),
    ...optional('partition', system?.partitionUuid),
    ['SHA-256', uki.sha256],
    ['Authenticode', uki.authenticodeDigest],
  ];
}

function signatures(uki: UkiInspection): Row[] {
  const images = uki.signatures.map(
    ({ signer, isValid, reason }): Row => [
      'Secure Boot',
      isValid ? 'valid' : 'INVALID',
      signer ?? 'unknown signer',
      reason ?? '',
    ],
  );
  const policies = uki.pcrSignatures.map(
    ({ isValid, policyRef, keyFingerprint }): Row => [
      'PCR 11 policy',
      isValid ? 'valid' : 'INVALID',
      policyRef === '' ? 'no policyRef' : policyRef,
      `key ${keyFingerprint}`,
    ],
  );
  return [...(images.length === 0 ? [['Secure Boot', 'UNSIGNED']] : images), ...policies];
}

function table(rows: readonly Row[]): string[] {
  const cells = rows.map((row) => row.map(visible));
  const columns = Math.max(0, ...cells.map((row) => row.length));
  const widths = Array.from({ length: columns }, (_, column) =>
    Math.max(...cells.map((row) => row[column]?.length ?? 0)),
  );
  return cells.map((row) => `  ${row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join('  ')}`.trimEnd());
}

/** An image's text must not drive the reader's terminal. */
function visible(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}]/gu, (character) => `\\u{${(character.codePointAt(0) ?? 0).toString(16)}}`);
}

function size(bytes: number): string {
  return bytes < 10_000_000 ? `${bytes} B` : `${(bytes / 1_000_000).toFixed(1)} MB`;
}
