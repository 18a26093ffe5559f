/** One piece of evidence before the judge: its parts decoded when a check asks for them, and the policy beside them. */
import { decodeEventLog, type EventLog } from '../formats/event-log.ts';
import {
  type Attest,
  decodeAttest,
  decodeTpmPublicKey,
  decodeTpmSignature,
  type TpmPublicKey,
  type TpmSignature,
} from '../formats/tpm-attest.ts';
import { objectName } from '../formats/tpm-public-area.ts';
import type { AllowedImage } from './allowed-image.ts';
import { replayEventLog } from './event-log-replay.ts';
import type { Evidence } from './evidence.ts';
import { extendPcr, zeroPcr } from './pcr.ts';
import { bootPhase } from './pcr11.ts';
import type { JudgePolicy, Outcome } from './verdict.ts';

export interface Finding {
  readonly outcome: Outcome;
  readonly detail: string;
}

export const passed = (detail: string): Finding => ({ outcome: 'passed', detail });
export const failed = (detail: string): Finding => ({ outcome: 'failed', detail });
export const notDone = (detail: string): Finding => ({ outcome: 'not-done', detail });

/** A check that is one claim about one case. Whatever it throws fails it, with the error's message as its detail. */
export interface CheckRule {
  readonly name: string;
  readonly title: string;
  readonly check: (judged: JudgedCase) => Finding;
  /** What acceptance does not cover when the check is not done. */
  readonly reservation?: string;
}

/** The getters throw FormatError or RangeError about their own part. */
export interface JudgedCase {
  readonly evidence: Evidence;
  readonly policy: JudgePolicy;
  readonly attest: () => Attest;
  readonly signature: () => TpmSignature;
  readonly ak: () => TpmPublicKey;
  readonly akName: Uint8Array;
  readonly ek: () => TpmPublicKey;
  readonly eventLog: () => EventLog;
  /** The log's registers of the SHA-256 bank, all that are quoted. */
  readonly replayed: () => ReadonlyMap<number, Uint8Array>;
  /** Lower-case hex. */
  readonly quoted: (pcr: number) => string;
  /** The allowed image whose PCR 11 is in the quote. */
  readonly image: () => AllowedImage | undefined;
}

export function openCase(evidence: Evidence, policy: JudgePolicy): JudgedCase {
  const eventLog = once(() => decodeEventLog(evidence.eventLog));
  const quoted = (pcr: number): string => hex(evidence.pcrs.get(pcr) ?? new Uint8Array(0));
  return {
    evidence,
    policy,
    attest: once(() => decodeAttest(evidence.quote.attest)),
    signature: once(() => decodeTpmSignature(evidence.quote.signature)),
    ak: once(() => decodeTpmPublicKey(evidence.ak.publicArea)),
    akName: objectName(evidence.ak.publicArea),
    ek: once(() => decodeTpmPublicKey(evidence.ek.publicArea)),
    eventLog,
    replayed: once(() => {
      const values = replayEventLog(eventLog());
      return new Map([...evidence.pcrs.keys()].map((pcr) => [pcr, values.get(pcr) ?? zeroPcr()]));
    }),
    quoted,
    image: () => policy.images.find(({ pcr11 }) => pcr11['leave-initrd'] === quoted(11)),
  };
}

/** PCR 11 after init's own measurements, from where firmware and stub left it. */
export function afterBootPhases(pcr11: Uint8Array): Uint8Array {
  return extendPcr(extendPcr(pcr11, bootPhase('enter-initrd').digest), bootPhase('leave-initrd').digest);
}

export const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

/** Decodes at the first call; every later call gives the same value, or throws the same error. */
function once<T>(decode: () => T): () => T {
  let result: (() => T) | undefined;
  return () => {
    if (result === undefined) {
      try {
        const value = decode();
        result = () => value;
      } catch (error) {
        result = () => {
          throw error;
        };
      }
    }
    return result();
  };
}
