/**
 * The part of measurements.json (what mkimage writes beside an image) that a judge compares with. The file holds more;
 * what is not read here may come and go.
 */
import { FormatError } from '../formats/byte-reader.ts';
import { type Check, dictionary, list, ShapeError, text } from '../formats/json-shape.ts';
import { parseJson } from './evidence.ts';

export const maxMeasurementsBytes = 4 * 1024 * 1024;

/** An image that a node may run. All digests are lower-case hex. */
export interface AllowedImage {
  /** For reasons: where it was read from. */
  readonly name: string;
  /** Authenticode digest of the UKI: what firmware measures when it starts it. */
  readonly authenticode: string;
  /** Values of PCR 7 by machine profile. */
  readonly pcr7: Readonly<Record<string, string>>;
  readonly pcr11: Readonly<Record<'firmware' | 'enter-initrd' | 'leave-initrd', string>>;
}

const digest = text({ min: 64, max: 64, pattern: /^[0-9a-f]*$/ });
const digests = dictionary(/^[\w.-]{1,60}$/, digest, { max: 64 });
const imageStep = 'Authenticode digest of the UKI';

/** @throws FormatError that names the key and what is wrong with it. */
export function decodeAllowedImage(source: string, name: string): AllowedImage {
  try {
    if (source.length > maxMeasurementsBytes) throw new RangeError(`over the limit of ${maxMeasurementsBytes} bytes`);
    const root = parseJson(source);
    if (member(root, 'bank', '') !== 'sha256') throw new ShapeError('bank', 'must be sha256');
    const steps = member(member(root, 'steps', ''), 'pcr4', 'steps');
    const pcr11 = member(root, 'pcr11', '');
    const phase = (key: string): string => digest(member(pcr11, key, 'pcr11'), `pcr11.${key}`);
    return {
      name,
      authenticode: imageDigest(member(steps, 'secure-boot-on', 'steps.pcr4'), 'steps.pcr4.secure-boot-on'),
      pcr7: digests(member(root, 'pcr7', ''), 'pcr7'),
      pcr11: {
        firmware: phase('firmware'),
        'enter-initrd': phase('enter-initrd'),
        'leave-initrd': phase('leave-initrd'),
      },
    };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new FormatError(`cannot read measurements: ${reason}; give the measurements.json of an image`, {
      cause: error,
    });
  }
}

function imageDigest(value: unknown, path: string): string {
  const anything: Check<unknown> = (entry) => entry;
  const step = list(anything, { max: 256 })(value, path).find(
    (entry) => typeof entry === 'object' && entry !== null && member(entry, 'description', path) === imageStep,
  );
  if (step === undefined) throw new ShapeError(path, `has no step "${imageStep}"`);
  return digest(member(step, 'digest', path), `${path}.digest`);
}

function member(value: unknown, key: string, path: string): unknown {
  const where = path === '' ? key : `${path}.${key}`;
  if (typeof value !== 'object' || value === null || !Object.hasOwn(value, key))
    throw new ShapeError(where, 'is missing');
  return (value as Record<string, unknown>)[key];
}
