/** What init answers about the sealing of the data: as the unlock found it, and whether the next boot is to renew it. */
import { type InitParams, InitRefusal, type Sealing } from '../rpc/init-protocol.ts';
import { isResealRequested, requestReseal } from '../storage/reseal-request.ts';
import type { SealingReport } from '../storage/volume-lock.ts';

/** What a request may say (src/storage/reseal-request.ts); who asked stands at the end and is cut first. */
const REASON_MAX_CHARACTERS = 200;

export interface SealingServiceOptions {
  /** As the unlock found it; undefined on a machine without TPM. */
  readonly sealing: SealingReport | undefined;
  /** `/data` */
  readonly dataDirectory: string;
}

/** Both reject with `InitRefusal` UNAVAILABLE when the data is not sealed. */
export interface SealingService {
  sealing(): Promise<Sealing>;
  /** Leaves the request where the next unlock finds it (docs/data-partition.md). */
  requestReseal(request: InitParams<'requestReseal'>): Promise<void>;
}

export function createSealingService({ sealing, dataDirectory }: SealingServiceOptions): SealingService {
  const whenSealed = () => {
    if (sealing === undefined)
      throw new InitRefusal('UNAVAILABLE', 'the data of this node is not sealed: its key lies beside it');
    return sealing;
  };
  return {
    async sealing() {
      const report = whenSealed();
      return { resealed: '', ...report, resealRequested: await isResealRequested(dataDirectory) };
    },
    async requestReseal({ reason, pcr7 }) {
      whenSealed();
      const said = reason.slice(0, REASON_MAX_CHARACTERS).toWellFormed();
      await requestReseal(dataDirectory, { reason: said, ...(pcr7 !== undefined && { pcr7 }) });
    },
  };
}
