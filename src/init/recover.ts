/**
 * The Worker of recovery: reads why and for whom the volume can be opened, or opens it with the recovery slot's key and
 * seals it anew. Bundled as `/usr/lib/ashlar/recover.js`; `recover-client.ts` starts it.
 */
import { parentPort, workerData } from 'node:worker_threads';
import type { RecoveryState } from '../rpc/init-protocol.ts';
import { DataPartitionError, type DataPartitionRequest } from '../storage/data-partition.ts';
import { recoveryKeyFingerprint } from '../storage/luks-tokens.ts';
import { readRecovery, recoverDataPartition } from '../storage/recovery.ts';

export type RecoverTask =
  | { readonly kind: 'state'; readonly request: DataPartitionRequest }
  /** `recoveryKey` is wiped when it was used. */
  | { readonly kind: 'recover'; readonly request: DataPartitionRequest; readonly recoveryKey: Uint8Array };

/** The Worker's only message. */
export type RecoverMessage =
  | { readonly type: 'state'; readonly state: Omit<RecoveryState, 'refusal' | 'message'> }
  | { readonly type: 'recovered'; readonly summary: string }
  | { readonly type: 'refused'; readonly message: string };

async function run(task: RecoverTask): Promise<RecoverMessage> {
  try {
    if (task.kind === 'state') {
      const { recoveryToken, volumeUuid } = readRecovery(task.request);
      return {
        type: 'state',
        state: {
          volumeUuid,
          recoveryKeyFingerprint: recoveryKeyFingerprint(recoveryToken),
          encryptedRecoveryKey: recoveryToken.encryptedKey,
        },
      };
    }
    const { summary } = await recoverDataPartition(task.request, { recoveryKey: task.recoveryKey });
    return { type: 'recovered', summary };
  } catch (error) {
    if (error instanceof DataPartitionError) return { type: 'refused', message: error.message };
    return { type: 'refused', message: error instanceof Error ? error.message : String(error) };
  } finally {
    if (task.kind === 'recover') task.recoveryKey.fill(0);
  }
}

if (parentPort === null)
  throw new Error('cannot recover: this is the code of a Worker, start it through recover-client');
const port = parentPort;
void run(workerData as RecoverTask).then((message) => port.postMessage(message));
