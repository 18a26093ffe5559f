/**
 * Platform configuration registers, SHA-256 bank. A register begins as zeros and only changes by
 * `new = SHA-256(old ‖ digest)`, so a prediction is a list of measurements in order. Predictions keep every step: a
 * security engineer can follow how a value came to be.
 */
import { createHash } from 'node:crypto';

export const pcrSize = 32;

/** One extend: what was measured, in words, and its digest. */
export interface Measurement {
  readonly description: string;
  readonly digest: Uint8Array;
}

export interface PcrStep extends Measurement {
  /** The register after this extend. */
  readonly value: Uint8Array;
}

export interface PcrPrediction {
  readonly value: Uint8Array;
  readonly steps: readonly PcrStep[];
}

export function sha256(...parts: readonly (Uint8Array | string)[]): Uint8Array {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return hash.digest();
}

export const zeroPcr = (): Uint8Array => new Uint8Array(pcrSize);

/** @throws RangeError unless both are 32 bytes. */
export function extendPcr(value: Uint8Array, digest: Uint8Array): Uint8Array {
  if (value.length !== pcrSize || digest.length !== pcrSize) {
    throw new RangeError(
      `cannot extend PCR: value of ${value.length} and digest of ${digest.length} bytes; SHA-256 has ${pcrSize}`,
    );
  }
  return sha256(value, digest);
}

/** A measurement of content: its digest is the SHA-256 of these bytes. */
export function measure(description: string, ...content: readonly (Uint8Array | string)[]): Measurement {
  return { description, digest: sha256(...content) };
}

/** The register after these extends, from zero. */
export function predictPcr(measurements: readonly Measurement[], start: Uint8Array = zeroPcr()): PcrPrediction {
  let value = start;
  const steps = measurements.map(({ description, digest }) => {
    value = extendPcr(value, digest);
    return { description, digest, value };
  });
  return { value, steps };
}

/** EV_SEPARATOR: firmware ends its part of PCRs 0 to 7 with four zero bytes. */
export const separator = (): Measurement => measure('separator', new Uint8Array(4));
