/**
 * PID 1's side of recovery: one Worker (`recover.ts`) at a time, within a deadline. The key that it is given came over an
 * attested channel and goes through here unread; a wrong one costs a pause, so that nobody tries many.
 */
import type { Worker } from 'node:worker_threads';
import { InitRefusal } from '../rpc/init-protocol.ts';
import type { DataPartitionRequest } from '../storage/data-partition.ts';
import { answerOf, startBundleWorker } from './bundle-worker.ts';
import type { RecoveryMode } from './init-server.ts';
import type { RecoverMessage, RecoverTask } from './recover.ts';

const WORKER_PATH = '/usr/lib/ashlar/recover.js';
const DEADLINE_MS = 180_000;
const PAUSE_MS = 2_000;

export interface RecoveryOptions {
  readonly request: DataPartitionRequest;
  /** Why the data is closed: a word for programs and the console's sentence. */
  readonly refusal: string;
  readonly message: string;
  /** The Worker's bundle. @default `/usr/lib/ashlar/recover.js` */
  readonly workerPath?: string;
  /** @default 180 000 */
  readonly deadlineMs?: number;
  /** Between two attempts. @default 2 000 */
  readonly pauseMs?: number;
}

/** Both reject with `InitRefusal`: UNAVAILABLE when disk or TPM refuse, BUSY while another attempt runs or just ran. */
export function createRecovery(options: RecoveryOptions): RecoveryMode {
  const { request, refusal, message, pauseMs = PAUSE_MS } = options;
  let isBusy = false;
  /** One that the deadline has passed and native code does not let go of may still write. */
  let worker: Worker | undefined;
  let triedAtMs = Number.NEGATIVE_INFINITY;
  const ask = async (task: RecoverTask): Promise<RecoverMessage> => {
    if (isBusy || worker !== undefined) throw new InitRefusal('BUSY', 'a recovery runs already; ask again');
    isBusy = true;
    try {
      const started = await startBundleWorker(options.workerPath ?? WORKER_PATH, task);
      worker = started;
      started.once('exit', () => {
        worker = undefined;
      });
      const { deadlineMs = DEADLINE_MS } = options;
      return await answerOf<RecoverMessage>(started, {
        deadlineMs,
        late: () => new InitRefusal('UNAVAILABLE', `the volume could not be recovered within ${deadlineMs / 1000} s`),
      });
    } finally {
      isBusy = false;
    }
  };
  return {
    async state() {
      const answer = await ask({ kind: 'state', request });
      if (answer.type === 'refused') throw new InitRefusal('UNAVAILABLE', answer.message);
      if (answer.type !== 'state') throw new Error(`cannot read the volume: the worker sent "${answer.type}"`);
      return { ...answer.state, refusal, message: message.slice(0, 4096) };
    },
    async recover({ recoverySecret }) {
      const waitMs = Math.ceil(triedAtMs + pauseMs - performance.now());
      if (waitMs > 0) throw new InitRefusal('BUSY', `the last attempt was just now; ask again in ${waitMs} ms`);
      const recoveryKey = Buffer.from(recoverySecret, 'base64');
      try {
        const answer = await ask({ kind: 'recover', request, recoveryKey });
        if (answer.type === 'refused') throw new InitRefusal('UNAVAILABLE', answer.message);
        if (answer.type !== 'recovered') throw new Error(`cannot recover: the worker sent "${answer.type}"`);
        return { summary: answer.summary };
      } finally {
        recoveryKey.fill(0);
        triedAtMs = performance.now();
      }
    },
  };
}
