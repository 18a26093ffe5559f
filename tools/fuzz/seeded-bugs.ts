/**
 * Bugs that fuzzing must find: what a hurried change to a decoder could do. Each is one replacement in one file of a copy
 * of `src/`; the original text must be there exactly once, so that a bug does not fade away as the code changes.
 */

export interface SeededBug {
  readonly name: string;
  readonly target: string;
  /** Relative to the source tree. */
  readonly file: string;
  readonly original: string;
  readonly replacement: string;
}

const eventLog = 'src/formats/event-log.ts';
const eventData = 'src/formats/event-data.ts';
const devicePath = 'src/formats/device-path.ts';
const binding = 'src/formats/event-binding.ts';
const variableData = 'src/formats/efi-variable-data.ts';
const replay = 'src/measure/event-log-replay.ts';
const reader = 'src/formats/byte-reader.ts';
const pe = 'src/formats/pe.ts';
const authenticode = 'src/formats/authenticode.ts';
const signatureList = 'src/formats/efi-signature-list.ts';
const structures = 'src/formats/tpm-structures.ts';
const attest = 'src/formats/tpm-attest.ts';
const publicArea = 'src/formats/tpm-public-area.ts';
const evidence = 'src/measure/evidence.ts';
const shape = 'src/formats/json-shape.ts';
const gpt = 'src/formats/gpt.ts';
const certificate = 'src/formats/certificate.ts';

/** The first of each target is in the quick run. */
export const seededBugs: readonly SeededBug[] = [
  {
    name: 'a read is not checked against the end',
    target: 'event-log',
    file: reader,
    original:
      'if (length > this.remaining) this.fail(field, `needs ${length} bytes, ${this.remaining} are left`);\n    const start',
    replacement: 'const start',
  },
  {
    name: 'a taken slice may be shorter than asked for',
    target: 'event-log',
    file: reader,
    original: 'if (!Number.isSafeInteger(length) || length < 0 || length > this.remaining) {',
    replacement: 'if (!Number.isSafeInteger(length) || length < 0) {',
  },
  {
    name: 'a digest of an algorithm that nobody names is skipped',
    target: 'event-log',
    file: eventLog,
    original: 'if (algorithm === undefined)\n      return reader.fail(',
    replacement: "if (algorithm === undefined) continue;\n    if (algorithm.name === '0x')\n      return reader.fail(",
  },
  {
    name: 'the log ends silently where an event is cut',
    target: 'event-log',
    file: eventLog,
    original: 'if (error instanceof FormatError) return stop(error.message);',
    replacement: 'if (error instanceof FormatError) return { entries, unreadBytes: 0, warnings: [] };',
  },
  {
    name: 'padding is taken for the end too early',
    target: 'event-log',
    file: eventLog,
    original: 'if (start >= paddingStart) return { entries',
    replacement: 'if (start >= paddingStart - 40) return { entries',
  },
  {
    name: 'numbers of events begin at one',
    target: 'event-log',
    file: eventLog,
    original: 'entries.push(readEntry(reader, firstIndex + entries.length));',
    replacement: 'entries.push(readEntry(reader, firstIndex + entries.length + 1));',
  },
  {
    name: 'an EV_NO_ACTION event is extended',
    target: 'event-log',
    file: replay,
    original: 'if (type === noAction) {\n      const locality = startupLocality({ ...entry, pcr });',
    replacement: 'if (type === noAction && pcr === 0) {\n      const locality = startupLocality({ ...entry, pcr });',
  },
  {
    name: 'the start-up locality is forgotten',
    target: 'event-log',
    file: replay,
    original: 'else values.set(0, initialPcr0(bank.size, locality));',
    replacement: 'else values.set(0, new Uint8Array(bank.size));',
  },
  {
    name: 'events of registers that are none are extended',
    target: 'event-log',
    file: replay,
    original: 'if (pcr > maxPcr) continue;',
    replacement: 'if (pcr > 0xffff) continue;',
  },
  {
    name: 'a node of a device path is believed about its length',
    target: 'event-log',
    file: devicePath,
    original: 'if (length < 4 || length - 4 > reader.remaining) {',
    replacement: 'if (length > 4 && length - 4 > reader.remaining) {',
  },
  {
    name: 'the bytes of an unknown node are shown many times over',
    target: 'event-log',
    file: devicePath,
    original: "const hex = Buffer.from(bytes.subarray(0, maxNodeHex)).toString('hex');",
    replacement: "const hex = Buffer.from(bytes.subarray(0, maxNodeHex)).toString('hex').repeat(1000);",
  },
  {
    name: 'a malformed variable is an error of its own',
    target: 'event-log',
    file: eventData,
    original: 'if (!(error instanceof FormatError)) throw error;\n    warnings.push(error.message);',
    replacement: 'throw new TypeError(String(error));',
  },
  {
    name: 'a separator need not be four bytes',
    target: 'event-log',
    file: eventData,
    original: "const value = reader.u32('separator');",
    replacement: "const value = reader.u8('separator');",
  },
  {
    name: 'data is bound by the digest of something else',
    target: 'event-log',
    file: binding,
    original: "if (isDigestOf(entry.data)) return 'bound';",
    replacement: "if (isDigestOf(entry.data.subarray(1))) return 'bound';",
  },
  {
    name: 'the boot order is read past its end',
    target: 'event-log',
    file: variableData,
    original: "while (reader.remaining > 0) entries.push(reader.u16('entry')",
    replacement:
      "while (reader.remaining > 0) entries.push(new DataView(data.buffer, data.byteOffset, data.length).getUint16(data.length - 1 + (reader.take(1, 'x')[0] ?? 0) * 0)",
  },
  {
    name: 'sections may reach past the end of the file',
    target: 'pe',
    file: pe,
    original: 'if (sizeOfRawData !== 0 && pointerToRawData + sizeOfRawData > fileLength) {',
    replacement: 'if (sizeOfRawData !== 0 && pointerToRawData > fileLength) {',
  },
  {
    name: 'zero fill has no limit',
    target: 'pe',
    file: pe,
    original: 'if (virtualSize - sizeOfRawData > maxZeroFill) {',
    replacement: 'if (virtualSize - sizeOfRawData > 2 ** 40) {',
  },
  {
    name: 'the section table may overlap the first section',
    target: 'pe',
    file: pe,
    original: 'if (sizeOfHeaders > bytes.length || sectionTableEnd > sizeOfHeaders) {',
    replacement: 'if (sizeOfHeaders > bytes.length || sectionTableEnd > bytes.length) {',
  },
  {
    name: 'the number of sections has no limit',
    target: 'pe',
    file: pe,
    original: 'if (sectionCount > maxSections) {',
    replacement: 'if (sectionCount > 65_535) {',
  },
  {
    name: 'the certificate table may reach past the end',
    target: 'pe',
    file: pe,
    original: 'if (certificateSize !== 0 && certificateOffset + certificateSize > bytes.length) {',
    replacement: 'if (certificateSize !== 0 && certificateOffset > bytes.length) {',
  },
  {
    name: 'a field of a section header is read one field too late',
    target: 'pe',
    file: pe,
    original:
      "reader.take(12, 'relocations and line numbers');\n  const characteristics = reader.u32('Characteristics');",
    replacement:
      "reader.take(8, 'relocations and line numbers');\n  const characteristics = reader.u32('Characteristics');\n  reader.take(4, 'rest');",
  },
  {
    name: 'the digest forgets what follows the sections',
    target: 'pe',
    file: authenticode,
    original: 'if (end > hashed) hash.update(bytes.subarray(hashed, end));',
    replacement: 'if (end > hashed + 0x200) hash.update(bytes.subarray(hashed, end));',
  },
  {
    name: 'the digest is over the sections in the order of the table',
    target: 'pe',
    file: authenticode,
    original: '.toSorted((a, b) => a.pointerToRawData - b.pointerToRawData);',
    replacement: '.toSorted(() => 0);',
  },
  {
    name: 'a signature is valid though the image was changed',
    target: 'pe',
    file: authenticode,
    original: "if (!equalBytes(parts.signedDigest, parts.digest)) return 'the image was changed after it was signed';",
    replacement: '',
  },
  {
    name: 'a missing part of a signature is not looked for',
    target: 'pe',
    file: authenticode,
    original: "if (element === undefined) return fail(undefined, field, 'missing');",
    replacement: 'if (element === undefined) return element as unknown as DerElement;',
  },
  {
    name: 'a list of signatures may have a rest',
    target: 'signature-list',
    file: signatureList,
    original: 'if (signatureSize <= 16 || bodySize <= 0 || bodySize % signatureSize !== 0) {',
    replacement: 'if (signatureSize <= 16 || bodySize <= 0) {',
  },
  {
    name: 'entries may be as short as their owner',
    target: 'signature-list',
    file: signatureList,
    original: 'signatureSize <= 16',
    replacement: 'signatureSize < 16',
  },
  {
    name: 'an empty list is taken',
    target: 'signature-list',
    file: signatureList,
    original: 'bodySize <= 0',
    replacement: 'bodySize < 0',
  },
  {
    name: 'the header of a list is not skipped',
    target: 'signature-list',
    file: signatureList,
    original: "reader.take(headerSize, 'SignatureHeader');",
    replacement: '',
  },
  {
    name: 'a TPM2B may be longer than what is there',
    target: 'tpm',
    file: structures,
    original: 'if (length > left) this.fail(field, `needs ${length} bytes, ${left} are left`);',
    replacement: '',
  },
  {
    name: 'what follows a structure is overlooked',
    target: 'tpm',
    file: structures,
    original: 'if (left !== 0) this.fail(',
    replacement: 'if (left < 0) this.fail(',
  },
  {
    name: 'registers of a selection are off by one',
    target: 'tpm',
    file: structures,
    original: 'pcrs.push(index * 8 + bit);',
    replacement: 'pcrs.push(index * 8 + bit + 1);',
  },
  {
    name: 'any number is true',
    target: 'tpm',
    file: attest,
    original: 'if (value > 1) reader.fail(field, `${value} is neither 0 nor 1`);\n  return value === 1;',
    replacement: 'return value !== 0 || (undefined as unknown as { x: boolean }).x;',
  },
  {
    name: 'a 64-bit number loses its upper half',
    target: 'tpm',
    file: attest,
    original: 'return (BigInt(reader.u32(field)) << 32n) | BigInt(reader.u32(field));',
    replacement: 'return BigInt((reader.u32(field) << 32) | reader.u32(field));',
  },
  {
    name: 'what follows a public area is overlooked',
    target: 'tpm',
    file: publicArea,
    original: 'reader.end();\n  return area;',
    replacement: 'return area;',
  },
  {
    name: 'an unknown key of a document is ignored',
    target: 'evidence',
    file: shape,
    original: 'if (!Object.hasOwn(required, name) && !Object.hasOwn(optionalFields, name))',
    replacement: 'if (name.length > 40 && !Object.hasOwn(required, name))',
  },
  {
    name: 'base64 may have more than one form',
    target: 'evidence',
    file: evidence,
    original: "if (bytes.toString('base64') !== encoded) throw new ShapeError(path, 'is not canonical base64');",
    replacement: '',
  },
  {
    name: 'a digest may be of any case',
    target: 'evidence',
    file: evidence,
    original: 'const digits = text({ min: 2 * byteCount, max: 2 * byteCount, pattern: /^[0-9a-f]*$/ });',
    replacement: 'const digits = text({ min: 2 * byteCount, max: 2 * byteCount });',
  },
  {
    name: 'an error of another kind comes through',
    target: 'evidence',
    file: evidence,
    original: 'if (error instanceof FormatError) throw error;',
    replacement: 'if (error instanceof Error) throw error;',
  },
  {
    name: 'what should be text may be anything',
    target: 'evidence',
    file: shape,
    original: "if (typeof value !== 'string') throw new ShapeError(path, `must be a string, not ${kindOf(value)}`);",
    replacement: "if (typeof value !== 'string') return String((value as { length: number }).length) as never;",
  },
  {
    name: 'a partition may end before it begins',
    target: 'gpt',
    file: gpt,
    original: 'if (startLba < usable.first || endLba < startLba || endLba > usable.last) {',
    replacement: 'if (startLba < usable.first || endLba > usable.last) {',
  },
  {
    name: 'partitions may overlap by a sector',
    target: 'gpt',
    file: gpt,
    original: 'previous.endLba >= next.startLba) return',
    replacement: 'previous.endLba > next.startLba) return',
  },
  {
    name: 'padding behind a certificate is taken for part of it',
    target: 'certificate',
    file: certificate,
    original: 'der: whole.whole,',
    replacement: 'der: bytes,',
  },
  {
    name: 'a certificate may have an extension twice',
    target: 'certificate',
    file: certificate,
    original: 'if (new Set(extensions.map(({ oid }) => oid)).size !== extensions.length)',
    replacement: 'if (extensions.length < 0)',
  },
];

/** The file's text with the bug in it. @throws Error when the original is not there exactly once */
export function plant({ name, file, original, replacement }: SeededBug, text: string): string {
  const parts = text.split(original);
  if (parts.length !== 2) {
    throw new Error(
      `cannot plant "${name}": ${file} has its text ${parts.length - 1} times; write the bug for today's code`,
    );
  }
  return parts.join(replacement);
}
