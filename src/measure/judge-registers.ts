/** The checks of what the machine ran: event log and registers against the allowed images. `judge.ts` runs them. */
import { createHash } from 'node:crypto';
import { efiGlobalVariable } from '../formats/efi-signature-list.ts';
import { eventBinding } from '../formats/event-binding.ts';
import { type EventLogEntry, noAction } from '../formats/event-log.ts';
import type { AllowedImage } from './allowed-image.ts';
import { afterBootPhases, type CheckRule, type Finding, failed, hex, type JudgedCase, passed } from './judged-case.ts';
import { separator } from './pcr.ts';
import { encodeVariableData } from './pcr7.ts';
import type { RegisterFinding } from './verdict.ts';

/** EV_EFI_VARIABLE_DRIVER_CONFIG: the digest is of the event's data (Platform Firmware Profile §10.4.1). */
const variableEvent = 0x8000_0001;
const zeros = '00'.repeat(32);
/** Registers that software extends after the firmware's log has ended. */
const softwarePcrs = { phases: 11, nodeParameters: 14, volume: 15 } as const;
const firmwarePcrs = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13] as const;

const purposes = new Map<number, string>([
  [0, 'firmware code'],
  [1, 'firmware configuration'],
  [2, 'option ROMs'],
  [3, 'option ROM configuration'],
  [4, 'boot applications'],
  [5, 'partition table, end of firmware'],
  [6, 'maker’s own'],
  [7, 'Secure Boot policy'],
  [8, 'not used'],
  [9, 'command line and initrd as loaded'],
  [10, 'not used'],
  [11, 'the image, then boot phases'],
  [12, 'injected command lines, credentials, add-ons'],
  [13, 'injected system extensions'],
  [14, 'node parameters'],
  [15, 'the opened data volume'],
]);

function eventLog({ eventLog: decode }: JudgedCase): Finding {
  const log = decode();
  const detail = `${log.format}, ${log.entries.length} events, banks ${log.algorithms.join(', ')}`;
  if (!log.algorithms.includes('sha256')) return failed(`${detail}; expected sha256 among them`);
  if (log.unreadBytes > 0) return failed(`${detail}; the last ${log.unreadBytes} bytes cannot be read`);
  // Replay takes digests only. What the log says of Secure Boot in words is shown to people, so it must be what was measured.
  const altered = log.entries.filter((entry) => eventBinding(entry) === 'contradicts');
  const unlike = altered.map(
    ({ index, typeName, pcr }) => `event ${index} (${typeName}, PCR ${pcr}) does not have the digest of what it says`,
  );
  if (altered.some(({ pcr }) => pcr === 7)) return failed([detail, ...unlike].join('; '));
  // In other registers boards have rules of their own: said, and not refused.
  return passed([detail, ...log.warnings, ...unlike].join('; '));
}

function replay({ replayed, quoted }: JudgedCase): Finding {
  const values = replayed();
  const expected = (pcr: number): string => hex(values.get(pcr) ?? new Uint8Array(0));
  const differences = firmwarePcrs
    .filter((pcr) => quoted(pcr) !== expected(pcr))
    .map((pcr) => `PCR ${pcr} is ${quoted(pcr)}, the log gives ${expected(pcr)}`);
  const capped = hex(afterBootPhases(values.get(softwarePcrs.phases) ?? new Uint8Array(32)));
  if (quoted(softwarePcrs.phases) !== capped)
    differences.push(`PCR 11 is ${quoted(softwarePcrs.phases)}, the log and both boot phases give ${capped}`);
  // Firmware measures nothing there: what software did extend begins from zeros.
  for (const pcr of [softwarePcrs.nodeParameters, softwarePcrs.volume])
    if (expected(pcr) !== zeros) differences.push(`PCR ${pcr} has events in the log, expected none`);
  return differences.length > 0
    ? failed(differences.join('; '))
    : passed('PCR 0 to 10, 12 and 13 are what the log gives, PCR 11 after both boot phases');
}

function secureBoot({ eventLog: decode }: JudgedCase): Finding {
  const wanted = encodeVariableData('SecureBoot', efiGlobalVariable, Uint8Array.of(1));
  const prefix = encodeVariableData('SecureBoot', efiGlobalVariable, new Uint8Array(0)).subarray(0, 24);
  const found = decode().entries.filter(
    (entry) =>
      entry.pcr === 7 && entry.type === variableEvent && isSame(entry.data.subarray(0, 24), prefix) && isNamed(entry),
  );
  if (found.length === 0) return failed('the log has no SecureBoot variable in PCR 7, expected one that says 1');
  for (const entry of found) {
    if (hex(sha256(entry.data)) !== digestOf(entry))
      return failed(`event ${entry.index} does not have the digest of what it says: ${digestOf(entry)}`);
    if (!isSame(entry.data, wanted))
      return failed(`the SecureBoot variable says ${hex(entry.data.subarray(52))}, expected 01`);
  }
  return passed('the SecureBoot variable says 01, in PCR 7');
}

function isNamed(entry: EventLogEntry): boolean {
  return Buffer.from(entry.data.subarray(32, 52)).toString('utf16le') === 'SecureBoot';
}

function pcr7({ policy, quoted, image }: JudgedCase): Finding {
  const found = quoted(7);
  const enrolled = policy.enrolled?.pcr7;
  if (enrolled !== undefined)
    return found === enrolled ? passed(`${found}, as enrolled`) : failed(`${found}, enrolled was ${enrolled}`);
  const images = candidates(policy.images, image());
  const profiles = images.flatMap((one) => Object.entries(one.pcr7));
  const profile = profiles.find(([, value]) => value === found)?.[0];
  if (profile !== undefined) return passed(`${found}, profile ${profile}`);
  return failed(`${found}, expected one of ${profiles.map(([name, value]) => `${value} (${name})`).join(', ')}`);
}

/**
 * Only the image itself may have run. Digests decide, not the labels that the log gives them: another boot application,
 * whatever it is called, has a digest that is not in the list.
 */
function pcr4({ policy, eventLog: decode, image }: JudgedCase): Finding {
  const images = candidates(policy.images, image());
  const known = new Set([
    hex(sha256('Calling EFI Application from Boot Option')),
    hex(sha256('Returning from EFI Application from Boot Option')),
    hex(separator().digest),
  ]);
  const events = decode().entries.filter(({ pcr, type }) => pcr === 4 && type !== noAction);
  const programs = events.filter((entry) => !known.has(digestOf(entry)));
  const expected = images.map(({ authenticode }) => authenticode);
  const other = programs.find((entry) => !expected.includes(digestOf(entry)));
  const wanted = `expected ${expected.join(' or ')} alone`;
  if (other !== undefined) return failed(`event ${other.index} (${other.typeName}) is ${digestOf(other)}, ${wanted}`);
  const [first] = programs;
  if (first === undefined) return failed(`the log has no boot application, ${wanted}`);
  return passed(`${digestOf(first)}, the image, and no other boot application`);
}

function pcr11({ policy, quoted, image }: JudgedCase): Finding {
  const found = quoted(11);
  const ran = image();
  if (ran !== undefined) return passed(`${found}, ${ran.name} after leave-initrd`);
  for (const { name, pcr11: values } of policy.images) {
    if (found === values['enter-initrd'])
      return failed(`${found}, ${name} before leave-initrd: its data could still be unsealed`);
    if (found === values.firmware) return failed(`${found}, ${name} before its init measured a boot phase`);
  }
  const expected = policy.images.map(({ name, pcr11: values }) => `${values['leave-initrd']} (${name})`);
  return failed(`${found}, expected ${expected.join(' or ')}`);
}

function injected({ quoted }: JudgedCase): Finding {
  const problems = [12, 13].filter((pcr) => quoted(pcr) !== zeros).map((pcr) => `PCR ${pcr} is ${quoted(pcr)}`);
  if (problems.length > 0) return failed(`${problems.join('; ')}, expected zeros: something was passed to the stub`);
  return passed('both are zeros');
}

const enrolledRegister =
  (pcr: 14 | 15, empty: string) =>
  ({ policy, quoted }: JudgedCase): Finding => {
    const found = quoted(pcr);
    const expected = pcr === 14 ? policy.enrolled?.pcr14 : policy.enrolled?.pcr15;
    if (expected !== undefined)
      return found === expected ? passed(`${found}, as enrolled`) : failed(`${found}, enrolled was ${expected}`);
    return passed(found === zeros ? `zeros: ${empty}` : `${found}; this node’s own, any value is accepted`);
  };

export const registerRules: readonly CheckRule[] = [
  { name: 'event-log', title: 'The firmware’s event log can be read and covers SHA-256', check: eventLog },
  { name: 'replay', title: 'The event log explains the quoted registers', check: replay },
  { name: 'secure-boot', title: 'Secure Boot was on', check: secureBoot },
  { name: 'pcr-7', title: 'The Secure Boot policy is a known one (PCR 7)', check: pcr7 },
  { name: 'pcr-4', title: 'Firmware started the image and nothing else (PCR 4)', check: pcr4 },
  { name: 'pcr-11', title: 'The image is an allowed one, and has left its initrd (PCR 11)', check: pcr11 },
  { name: 'pcr-12-13', title: 'Nothing was injected into the image (PCR 12, 13)', check: injected },
  {
    name: 'pcr-14',
    title: 'Node parameters (PCR 14)',
    check: enrolledRegister(14, 'none were given'),
  },
  { name: 'pcr-15', title: 'The data volume (PCR 15)', check: enrolledRegister(15, 'none is open') },
];

/** Every register beside what it should be, for people to see; the checks above decide. Never throws. */
export function findRegisters(judged: JudgedCase): RegisterFinding[] {
  const replayed = replayOrNothing(judged);
  return [...judged.evidence.pcrs.keys()].map((pcr) => {
    const quoted = judged.quoted(pcr);
    const { expected, source } = expectationOf(pcr, judged, replayed);
    return {
      pcr,
      purpose: purposes.get(pcr) ?? '',
      quoted,
      ...(expected !== undefined && { expected }),
      source,
      equal: expected === undefined || expected === quoted,
    };
  });
}

function expectationOf(
  pcr: number,
  { policy, image, quoted }: JudgedCase,
  replayed: ReadonlyMap<number, Uint8Array> | undefined,
): { expected?: string; source: string } {
  const ran = image();
  switch (pcr) {
    case 7: {
      const enrolled = policy.enrolled?.pcr7;
      if (enrolled !== undefined) return { expected: enrolled, source: 'enrolled' };
      const profiles = candidates(policy.images, ran).flatMap((one) => Object.entries(one.pcr7));
      const [profile, value] = profiles.find(([, known]) => known === quoted(7)) ?? profiles[0] ?? ['', ''];
      return { expected: value, source: `image, profile ${profile}` };
    }
    case softwarePcrs.phases: {
      const [wanted] = candidates(policy.images, ran);
      return { expected: wanted?.pcr11['leave-initrd'] ?? '', source: 'image, after leave-initrd' };
    }
    case 12:
    case 13:
      return { expected: zeros, source: 'nothing injected' };
    case softwarePcrs.nodeParameters:
    case softwarePcrs.volume: {
      const enrolled = pcr === softwarePcrs.nodeParameters ? policy.enrolled?.pcr14 : policy.enrolled?.pcr15;
      return enrolled === undefined
        ? { source: 'any value: this node’s own' }
        : { expected: enrolled, source: 'enrolled' };
    }
    default: {
      const value = replayed?.get(pcr);
      return value === undefined
        ? { expected: '', source: 'event log, which cannot be replayed' }
        : { expected: hex(value), source: 'event log' };
    }
  }
}

function replayOrNothing({ replayed }: JudgedCase): ReadonlyMap<number, Uint8Array> | undefined {
  try {
    return replayed();
  } catch {
    // Why is in the check "replay".
    return undefined;
  }
}

/** What is compared with: the image that PCR 11 names, or all when it names none. */
function candidates(images: readonly AllowedImage[], ran: AllowedImage | undefined): readonly AllowedImage[] {
  return ran === undefined ? images : [ran];
}

function digestOf(entry: EventLogEntry): string {
  return hex(entry.digests.get('sha256') ?? new Uint8Array(0));
}

function sha256(content: Uint8Array | string): Uint8Array {
  return createHash('sha256').update(content).digest();
}

function isSame(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}
