/** Options by which an operator says what evidence is judged by, and the policy that follows from them. */
import { writeFile } from 'node:fs/promises';
import { decodeCertificate } from '../../src/formats/certificate.ts';
import { decodePem } from '../../src/formats/x509.ts';
import { type AllowedImage, decodeAllowedImage, maxMeasurementsBytes } from '../../src/measure/allowed-image.ts';
import { nonceBytes } from '../../src/measure/evidence.ts';
import type { JudgePolicy, Verdict } from '../../src/measure/judge.ts';
import { type OptionTable, UsageError } from '../host/command-line.ts';
import { attestationReport } from './attestation-report.ts';
import { decodeInput, readInputFile, reasonOf } from './input-file.ts';

const maxAuthoritiesBytes = 4 * 1024 * 1024;

export const JUDGE_OPTIONS = {
  image: {
    type: 'string',
    value: 'FILE',
    multiple: true,
    summary: 'measurements.json of an image that the node may run; may be given more than once',
  },
  'ek-ca': {
    type: 'string',
    value: 'FILE',
    summary: 'certificates of the TPM makers that are trusted, PEM or DER; without it nobody vouches for the TPM',
  },
  pcr7: {
    type: 'string',
    value: 'HEX',
    summary: 'PCR 7 as recorded when the node was enrolled, for boards that measure more than is predicted',
  },
  report: { type: 'string', value: 'FILE', summary: 'write evidence and verdict as one HTML page, for people' },
  strict: { type: 'boolean', summary: 'refuse what could be accepted with reservations only' },
} as const satisfies OptionTable;

export interface JudgeValues {
  readonly image: readonly string[] | undefined;
  readonly 'ek-ca': string | undefined;
  readonly pcr7: string | undefined;
  readonly strict?: boolean;
}

/** Reads the files that the options name. Throws one sentence with the file's name. */
export async function readJudgePolicy(values: JudgeValues): Promise<JudgePolicy> {
  const paths = values.image ?? [];
  if (paths.length === 0) throw new UsageError('give --image FILE: the measurements.json of an image it may run');
  const images: AllowedImage[] = [];
  for (const path of paths) {
    const bytes = await readInputFile(path, 'the measurements', maxMeasurementsBytes);
    images.push(decodeInput(path, () => decodeAllowedImage(Buffer.from(bytes).toString('utf8'), path)));
  }
  const { pcr7 } = values;
  if (pcr7 !== undefined && !/^[0-9a-f]{64}$/.test(pcr7))
    throw new UsageError(`--pcr7 is 64 lower-case hex digits, not ${JSON.stringify(pcr7.slice(0, 80))}`);
  return {
    images,
    time: new Date(),
    isStrict: values.strict ?? false,
    ...(values['ek-ca'] !== undefined && { ekAuthorities: await readAuthorities(values['ek-ca']) }),
    ...(pcr7 !== undefined && { enrolled: { pcr7 } }),
  };
}

/** Writes evidence and verdict for people. Throws one sentence with the file's name. */
export async function writeReport(path: string, source: string | Uint8Array, verdict: Verdict): Promise<void> {
  try {
    await writeFile(path, attestationReport({ source, verdict, madeAt: new Date() }));
  } catch (error) {
    throw new Error(`cannot write the report ${path}: ${reasonOf(error)}`, { cause: error });
  }
}

export function parseNonce(text: string): Uint8Array {
  if (text.length !== 2 * nonceBytes || !/^[0-9a-f]*$/i.test(text))
    throw new UsageError(`--nonce is ${2 * nonceBytes} hex digits, not ${JSON.stringify(text.slice(0, 80))}`);
  return Buffer.from(text, 'hex');
}

async function readAuthorities(path: string): Promise<Uint8Array[]> {
  const bytes = await readInputFile(path, "the makers' certificates", maxAuthoritiesBytes);
  const text = Buffer.from(bytes).toString('latin1');
  const blocks = text.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g);
  return decodeInput(path, () =>
    (blocks ?? []).length > 0
      ? (blocks ?? []).map((block) => decodeCertificate(decodePem('CERTIFICATE', block)).der)
      : [decodeCertificate(bytes).der],
  );
}
