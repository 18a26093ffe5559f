/** All targets. Decoders are loaded only when asked for, after the coverage counters are on. */
import { certificateTarget } from './certificate-target.ts';
import { eventLogTarget } from './event-log-target.ts';
import { evidenceTarget } from './evidence-target.ts';
import type { FuzzTarget } from './fuzz-target.ts';
import { gptTarget } from './gpt-target.ts';
import { peTarget } from './pe-target.ts';
import { signatureListTarget } from './signature-list-target.ts';
import { tpmTarget } from './tpm-target.ts';

export const fuzzTargets: readonly FuzzTarget[] = [
  eventLogTarget,
  peTarget,
  signatureListTarget,
  tpmTarget,
  evidenceTarget,
  gptTarget,
  certificateTarget,
];

export function fuzzTarget(name: string): FuzzTarget {
  const found = fuzzTargets.find((target) => target.name === name);
  if (found === undefined) {
    throw new RangeError(
      `cannot fuzz ${JSON.stringify(name)}: there are ${fuzzTargets.map((target) => target.name).join(', ')}`,
    );
  }
  return found;
}
