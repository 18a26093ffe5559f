/** One line about what an event says, for people. */
import type { VariableValue } from '../../src/formats/efi-variable-data.ts';
import type { EventData } from '../../src/formats/event-data.ts';

const shownHexDigits = 64;

export function eventSummary(data: EventData): string {
  switch (data.kind) {
    case 'empty':
      return '-';
    case 'bytes':
      return hexBytes(data.hex);
    case 'text':
      return data.text;
    case 'separator':
      return `${data.meaning} (${data.value})`;
    case 'variable':
    case 'authority':
      return `${data.name}: ${variableSummary(data.value)}`;
    case 'image-load':
      return data.devicePath || `an image of ${data.sizeBytes} bytes in memory at ${data.address}`;
    case 'partition-table':
      return `disk ${data.diskGuid}: ${data.partitions.map(({ name }) => name || '(unnamed)').join(', ')}`;
    case 'firmware-blob':
      return `${data.description ?? 'firmware'}, ${data.sizeBytes} bytes at ${data.address}`;
    case 'tables':
      return `${data.description ?? 'tables'}: ${data.tables.map(({ guid }) => guid).join(', ')}`;
    case 'tag':
      return `${data.name ?? data.id}${data.text === undefined ? '' : `: ${data.text}`}`;
    case 'device':
    case 'no-action':
      return `${data.signature}: ${hexBytes(data.hex)}`;
    case 'spec-id':
      return `${data.signature}, version ${data.specVersion}`;
    case 'startup-locality':
      return `TPM started from locality ${data.locality}`;
    case 'reference-manifest':
      return `${data.signature}: ${[data.guid, ...data.strings].join(', ')}`;
  }
}

function hexBytes(hex: string): string {
  return hex.length <= shownHexDigits ? hex : `${hex.length / 2} bytes: ${hex.slice(0, shownHexDigits)}…`;
}

function variableSummary(value: VariableValue): string {
  switch (value.kind) {
    case 'boolean':
      return value.value ? 'on' : 'off';
    case 'signature-lists':
      return value.signatures.map(({ type, subject, sha256 }) => subject ?? sha256 ?? type).join('; ');
    case 'boot-order':
      return value.entries.join(', ');
    case 'load-option':
      return `${value.description} ${value.devicePath}${value.isActive ? '' : ' (inactive)'}`;
    case 'text':
      return value.text;
    case 'empty':
      return 'empty';
    case 'bytes':
      return hexBytes(value.hex);
  }
}
