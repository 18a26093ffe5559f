/** What a judge is given and what it gives back. */
import type { AllowedImage } from './allowed-image.ts';

export interface JudgePolicy {
  /** The images that the node may run: at least one. */
  readonly images: readonly AllowedImage[];
  /** When the certificates must be valid. */
  readonly time: Date;
  /** The nonce that this verifier chose. Without it the evidence may be an old one. */
  readonly nonce?: Uint8Array;
  /** SubjectPublicKeyInfo (DER) that the connection showed. Without it only the node's own word binds the two. */
  readonly tlsSpki?: Uint8Array;
  /** Refuse what could only be accepted with reservations. @default false */
  readonly isStrict?: boolean;
  /** DER of the TPM makers' certificates that are trusted. Without them the TPM may be a program. */
  readonly ekAuthorities?: readonly Uint8Array[];
  /** What was recorded of this node before. */
  readonly enrolled?: {
    /** TPM name of its attestation key: vouches for the TPM in place of a maker. */
    readonly akName?: Uint8Array;
    /** Lower-case hex; a board whose firmware measures more than we predict has a value of its own. */
    readonly pcr7?: string;
    /** Node parameters and volume, lower-case hex; any value is accepted without. */
    readonly pcr14?: string;
    readonly pcr15?: string;
  };
}

/** `not-done`: the policy did not say what to compare with. */
export type Outcome = 'passed' | 'failed' | 'not-done';

export interface JudgeCheck {
  /** Stable, for programs: `quote-signature`. */
  readonly name: string;
  /** For people: what is claimed. */
  readonly title: string;
  readonly outcome: Outcome;
  /** What was found, and when it failed what was expected. Strings of the evidence are in it: escape or filter to show. */
  readonly detail: string;
}

/** A register as the quote has it, beside what it should be. */
export interface RegisterFinding {
  readonly pcr: number;
  /** What is measured into it. */
  readonly purpose: string;
  /** Lower-case hex. */
  readonly quoted: string;
  /** Lower-case hex; absent where any value is accepted. */
  readonly expected?: string;
  /** Where the expected value is from. */
  readonly source: string;
  readonly equal: boolean;
}

export interface Verdict {
  /** No check failed, and when the policy was strict there is no reservation. */
  readonly accepted: boolean;
  /** Whether the policy refused reservations. */
  readonly isStrict: boolean;
  /** What acceptance does not cover, or why a strict policy refuses: one sentence for each check that was not done. */
  readonly reservations: readonly string[];
  /** Name of the allowed image that the node runs. */
  readonly image?: string;
  readonly checks: readonly JudgeCheck[];
  /** Empty when the evidence cannot be read. */
  readonly registers: readonly RegisterFinding[];
}
