/**
 * The end of a boot that restarting would not better: wrong parameters, a data partition that does not open. PCR 11 is
 * capped, so that nothing can be unsealed any more, and the machine waits for the power button.
 */
import { createHash } from 'node:crypto';
import type { LogStore } from '../supervisor/log-store.ts';
import { type MeasureOptions, measure } from './extend-pcr.ts';

const LEAVE_INITRD = createHash('sha256').update('leave-initrd').digest();

/** An error that only a human can put right. `isCapped`: PCR 11 has `leave-initrd` already. */
export class NeedsHuman extends Error {
  readonly stage: string;
  readonly isCapped: boolean;

  constructor(stage: string, cause: unknown, { isCapped }: { readonly isCapped: boolean }) {
    super(cause instanceof Error ? cause.message : String(cause), { cause });
    this.name = 'NeedsHuman';
    this.stage = stage;
    this.isCapped = isCapped;
  }
}

/** Caps, says why, and resolves never. Rejects when capping fails: then the machine must not stay as it is. */
export async function waitForHuman(error: NeedsHuman, logStore: LogStore, tpm: MeasureOptions): Promise<never> {
  const log = logStore.logger('init');
  try {
    if (!error.isCapped) await measure(11, LEAVE_INITRD, tpm);
  } finally {
    log.error(`FAILED ${error.stage}: ${error.message}`);
  }
  log.warning('waiting: correct this, then press the power button or reset the machine');
  return new Promise<never>(() => undefined);
}
