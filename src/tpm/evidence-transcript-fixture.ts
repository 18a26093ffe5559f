/** The commands of docs/evidence.md, exactly as they stand there, for tests that follow them. Nothing that ships imports it. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { decodePem, encodePem } from '../formats/x509.ts';
import type { AllowedImage } from '../measure/allowed-image.ts';

const DOCS = join(import.meta.dirname, '../../docs');

export const evidenceDocument = readFileSync(join(DOCS, 'evidence.md'), 'utf8');
const script = [...evidenceDocument.matchAll(/^```sh\n([\s\S]*?)^```$/gm)].map(([, block]) => block ?? '').join('\n');

/** What docs/evidence-sample/ holds: evidence of a node in the lab, and what it is judged by. */
export function evidenceSample(): { evidence: string; measurements: string; authority: Uint8Array } {
  const read = (name: string) => readFileSync(join(DOCS, 'evidence-sample', name), 'utf8');
  return {
    evidence: read('evidence.json'),
    measurements: read('measurements.json'),
    authority: decodePem('CERTIFICATE', read('ek-ca.pem')),
  };
}

/** What of measurements.json is looked at. */
export function measurementsOf({ authenticode, pcr7, pcr11 }: AllowedImage): string {
  const step = { description: 'Authenticode digest of the UKI', digest: authenticode };
  return JSON.stringify({ bank: 'sha256', pcr7, pcr11, steps: { pcr4: { 'secure-boot-on': [step] } } });
}

export interface TranscriptOutcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs them in a new directory with these files. */
export function followTranscript(files: {
  /** Text of evidence.json. */
  readonly evidence: string;
  /** Text of measurements.json. */
  readonly measurements: string;
  /** DER of the trusted maker's certificate. */
  readonly authority: Uint8Array;
}): TranscriptOutcome {
  const directory = mkdtempSync(join(tmpdir(), 'ashlar-transcript-'));
  try {
    writeFileSync(join(directory, 'evidence.json'), files.evidence);
    writeFileSync(join(directory, 'measurements.json'), files.measurements);
    writeFileSync(join(directory, 'ek-ca.pem'), encodePem('CERTIFICATE', files.authority));
    const { status, stdout, stderr } = spawnSync('bash', ['-c', script], { cwd: directory, encoding: 'utf8' });
    return { status, stdout, stderr };
  } finally {
    rmSync(directory, { recursive: true });
  }
}
