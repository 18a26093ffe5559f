/** TPM event logs: framing, what events say, device paths, variables, replay. */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { DigestAlgorithm, EventLog, EventLogEntry } from '../../src/formats/event-log.ts';
import { decodedOrRefused, dictionaryOf, type FuzzTarget, mustHold, neverThrows } from './fuzz-target.ts';

const maxJsonPerByte = 400;

/** The specification's numbers, written down once more. */
const algorithmIds: Readonly<Record<string, number>> = {
  sha1: 4,
  sha256: 11,
  sha384: 12,
  sha512: 13,
  'sm3-256': 0x12,
  'sha3-256': 0x27,
  'sha3-384': 0x28,
  'sha3-512': 0x29,
};
const noAction = 3;
/** Of these, a part of the data may be what was extended. */
const variableTypes = [0x8000_0001, 0x8000_0002, 0x8000_000c, 0x8000_00e0];
const lastPcr = 23;

export const eventLogTarget: FuzzTarget = {
  name: 'event-log',
  files: [
    'src/formats/event-log.ts',
    'src/formats/event-data.ts',
    'src/formats/event-data-no-action.ts',
    'src/formats/event-binding.ts',
    'src/formats/device-path.ts',
    'src/formats/efi-variable-data.ts',
    'src/measure/event-log-replay.ts',
  ],
  maxBytes: 4096,
  campaignExecutions: 500_000,
  dictionary: dictionaryOf(
    'Spec ID Event03\0',
    'Spec ID Event00\0',
    'StartupLocality\0',
    'SP800-155 Event2',
    '0x04001400',
    '0x0b002000',
    '0x0c003000',
    '0x01000080',
    '0x02000080',
    '0x03000080',
    '0x06000080',
    '0x08000080',
    '0x0a000080',
    '0x0b000080',
    '0xe0000080',
    '0xe1000080',
    '0x06000000',
    '0x0d000000',
    '0x61dfe48bca93d211aa0d00e098032b8c',
    '0xcbb219d73a3d9645a3bcdad00e67656f',
    'd\0b\0',
    'P\0K\0',
    'B\0o\0o\0t\0',
    'O\0r\0d\0e\0r\0',
    '0x7fff0400',
    '0x02010c00d041030a00000000',
    '0x04012a00',
    '0x04040e00',
    '0x030b2500',
    '0x030c1b00',
    '0x5741424c',
    '0xffffffff',
  ),
  load: async (tree) => {
    const from = async (file: string): Promise<unknown> => await import(pathToFileURL(join(tree, file)).href);
    const { decodeEventLog } = (await from(
      'src/formats/event-log.ts',
    )) as typeof import('../../src/formats/event-log.ts');
    const { decodeEventData } = (await from(
      'src/formats/event-data.ts',
    )) as typeof import('../../src/formats/event-data.ts');
    const { formatDevicePath } = (await from(
      'src/formats/device-path.ts',
    )) as typeof import('../../src/formats/device-path.ts');
    const { eventBinding } = (await from(
      'src/formats/event-binding.ts',
    )) as typeof import('../../src/formats/event-binding.ts');
    const { replayAllBanks, replayEventLog } = (await from(
      'src/measure/event-log-replay.ts',
    )) as typeof import('../../src/measure/event-log-replay.ts');
    return (input) => {
      const log = decodedOrRefused(() => decodeEventLog(input));
      if (log === undefined) return;
      checkFrames(input, log);
      for (const entry of log.entries) {
        const { data, warnings } = neverThrows('any event can be shown', () => decodeEventData(entry));
        const jsonBytes = JSON.stringify(data).length;
        mustHold(
          jsonBytes <= maxJsonPerByte * entry.data.length + 1024,
          'what an event says stays in proportion to it',
        );
        mustHold(warnings.length <= 64, 'an event has few warnings');
        if (data.kind === 'separator' && data.value === '0x0')
          mustHold(Buffer.from(entry.data.subarray(0, 4)).readUInt32LE() === 0, 'a separator says its value');
        neverThrows('any bytes can be shown as a device path', () => formatDevicePath(entry.data));
        checkBinding(
          entry,
          neverThrows('any event is bound or not', () => eventBinding(entry)),
        );
      }
      const { banks } = neverThrows('any log can be replayed', () => replayAllBanks(log));
      checkReplay(log, banks.get('sha256'));
      const sha256 = decodedOrRefused(() => replayEventLog(log));
      if (sha256 !== undefined) checkReplay(log, sha256);
    };
  },
};

const u16 = (value: number): Buffer => Buffer.of(value & 0xff, value >>> 8);
const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
};

/** Put together again, the events are the bytes that they came from, up to what was left out and said to be. */
function checkFrames(input: Uint8Array, log: EventLog): void {
  const all = log.header === undefined ? log.entries : [log.header, ...log.entries];
  mustHold(
    all.every(({ index }, position) => index === position),
    'events are numbered from 0',
  );
  mustHold(log.unreadBytes >= 0 && log.unreadBytes <= input.length, 'what is unread is part of the log');
  mustHold(log.unreadBytes === 0 || log.warnings.length > 0, 'what is unread is said');
  // Of two digests of one bank only the first is kept.
  if (log.entries.some(({ warnings }) => warnings.some((warning) => warning.includes('two')))) return;
  const frames = all.map((entry) =>
    log.format === 'sha1' || entry === log.header ? sha1Frame(entry) : agileFrame(entry),
  );
  const again = Buffer.concat(frames);
  mustHold(Buffer.compare(again, input.subarray(0, again.length)) === 0, 'events are the bytes of the log');
  const rest = input.subarray(again.length);
  const padding = rest.at(-1);
  mustHold(
    log.unreadBytes > 0 || rest.every((octet) => octet === padding && (octet === 0 || octet === 0xff)),
    'only padding is passed over in silence',
  );
}

function sha1Frame({ pcr, type, digests, data }: EventLogEntry): Buffer {
  return Buffer.concat([u32(pcr), u32(type), digests.get('sha1') ?? Buffer.alloc(0), u32(data.length), data]);
}

function agileFrame({ pcr, type, digests, data }: EventLogEntry): Buffer {
  const list = [...digests].flatMap(([name, digest]) => [u16(algorithmIds[name] ?? Number(name)), digest]);
  return Buffer.concat([u32(pcr), u32(type), u32(digests.size), ...list, u32(data.length), data]);
}

function checkBinding(entry: EventLogEntry, binding: string): void {
  if (entry.type === noAction) return mustHold(binding === 'free', 'what is never extended is not bound');
  const known = ['sha1', 'sha256', 'sha384', 'sha512'].flatMap((name) => {
    const digest = entry.digests.get(name as DigestAlgorithm);
    return digest === undefined ? [] : [{ name, digest }];
  });
  const isOfData =
    known.length > 0 &&
    known.every(({ name, digest }) => Buffer.compare(createHash(name).update(entry.data).digest(), digest) === 0);
  mustHold(!isOfData || binding === 'bound', 'data whose digests were extended is bound');
  mustHold(isOfData || binding !== 'bound' || variableTypes.includes(entry.type), 'other data is not bound');
}

function checkReplay(log: EventLog, replayed: ReadonlyMap<number, Uint8Array> | undefined): void {
  if (replayed === undefined) return;
  const values = new Map<number, Buffer>();
  for (const { pcr, type, digests, data } of log.entries) {
    if (type === noAction) {
      const isLocality = Buffer.from(data).toString('latin1').startsWith('StartupLocality\0') && data.length === 17;
      if (isLocality && pcr === 0 && !values.has(0)) {
        const start = Buffer.alloc(32);
        start[31] = data[16] ?? 0;
        values.set(0, start);
      }
      continue;
    }
    const digest = digests.get('sha256');
    if (pcr > lastPcr || digest === undefined) continue;
    const before = values.get(pcr) ?? Buffer.alloc(32);
    values.set(pcr, createHash('sha256').update(before).update(digest).digest());
  }
  mustHold(values.size === replayed.size, 'the replay has the registers that have events');
  for (const [pcr, value] of values)
    mustHold(Buffer.compare(value, replayed.get(pcr) ?? Buffer.alloc(0)) === 0, 'the replay is the chain of digests');
}
