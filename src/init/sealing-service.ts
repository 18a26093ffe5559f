/** What init answers about the sealing of the data: as the unlock found it, and whether the next boot is to renew it. */
import { existsSync } from 'node:fs';
import { type InitParams, InitRefusal, type Sealing } from '../rpc/init-protocol.ts';
import { writeOwnedFile } from './owned-files.ts';

const ROOT = 0;

export interface SealingServiceOptions {
  /** As the unlock found it; undefined on a machine without TPM. */
  readonly sealing: Omit<Sealing, 'resealRequested'> | undefined;
  /** `/data` */
  readonly dataDirectory: string;
  /** Owner of what is written. @default 0 */
  readonly uid?: number;
}

/** Both reject with `InitRefusal` UNAVAILABLE when the data is not sealed. */
export interface SealingService {
  sealing(): Promise<Sealing>;
  /** Leaves the request where the next unlock finds it (docs/data-partition.md). */
  requestReseal(request: InitParams<'requestReseal'>): Promise<void>;
}

export function createSealingService({ sealing, dataDirectory, uid = ROOT }: SealingServiceOptions): SealingService {
  const requestPath = `${dataDirectory}/node/reseal.json`;
  const whenSealed = () => {
    if (sealing === undefined)
      throw new InitRefusal('UNAVAILABLE', 'the data of this node is not sealed: its key lies beside it');
    return sealing;
  };
  return {
    sealing: async () => ({ ...whenSealed(), resealRequested: existsSync(requestPath) }),
    async requestReseal({ reason, pcr7 }) {
      whenSealed();
      const request = { reason, ...(pcr7 !== undefined && { pcr7 }) };
      await writeOwnedFile(requestPath, `${JSON.stringify(request)}\n`, uid);
    },
  };
}
