/**
 * The Worker that opens the data partition. tpm2-tss and libcryptsetup block, so they run on this thread and PID 1's
 * event loop goes on feeding the watchdog. Bundled as `/usr/lib/ashlar/unlock.js`; `unlock-client.ts` starts it.
 *
 * A Worker must not spawn (PID 1's reaper knows only the children of the main thread), so programs are run by the client:
 *
 *   worker ── run ──▶ client ── spawn ──▶ mkfs.ext4, e2fsck
 *          ◀── ran ──
 */
import { once } from 'node:events';
import { parentPort, workerData } from 'node:worker_threads';
import {
  DataPartitionError,
  type DataPartitionRequest,
  type DataPartitionResult,
  type DataRefusal,
  openDataPartition,
} from '../storage/data-partition.ts';

/** Worker to client. The last message is `opened` or `refused`; by then PCR 11 has `leave-initrd`. */
export type UnlockMessage =
  | { readonly type: 'report'; readonly text: string }
  | { readonly type: 'run'; readonly program: string; readonly args: readonly string[] }
  | { readonly type: 'opened'; readonly result: DataPartitionResult }
  | { readonly type: 'refused'; readonly refusal: DataRefusal; readonly message: string };

/** Client to worker: how the program of the last `run` ended. */
export interface ProgramEnd {
  readonly code: number | null;
  readonly output: string;
}

async function main(): Promise<void> {
  const port = parentPort;
  if (port === null) throw new Error('cannot unlock: this is the code of a Worker, start it through unlock-client');
  const send = (message: UnlockMessage) => port.postMessage(message);
  try {
    const result = await openDataPartition(workerData as DataPartitionRequest, {
      report: (text) => send({ type: 'report', text }),
      run: async (program, args) => {
        send({ type: 'run', program, args });
        const [end] = (await once(port, 'message')) as [ProgramEnd];
        return end;
      },
    });
    send({ type: 'opened', result });
  } catch (error) {
    const refusal = error instanceof DataPartitionError ? error.refusal : 'failed';
    send({ type: 'refused', refusal, message: error instanceof Error ? error.message : String(error) });
  }
}

void main();
