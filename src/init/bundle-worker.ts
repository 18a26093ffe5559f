/** Workers of init: the threads that may block, in tpm2-tss and libcryptsetup, while PID 1's loop goes on. */
import { readFile } from 'node:fs/promises';
import { Worker } from 'node:worker_threads';

/** Starts a bundle of `/usr/lib/ashlar` as a Worker. Rejects when there is no such file. */
export async function startBundleWorker(path: string, workerData: unknown): Promise<Worker> {
  // tpm2-tss reads this at its first call and would otherwise write its own lines to standard error.
  process.env['TSS2_LOG'] ??= 'all+NONE';
  // Evaluated code has "[worker eval]" for its file name, which koffi, bundled in, takes for the place of its module.
  const source = `globalThis.__filename = ${JSON.stringify(path)};\n${await readFile(path, 'utf8')}`;
  return new Worker(source, { eval: true, workerData });
}

/**
 * The only message of a Worker that answers once; then, or at the deadline, the Worker is ended.
 *
 * @param options.late what it is rejected with at the deadline
 */
export async function answerOf<Answer>(
  worker: Worker,
  { deadlineMs, late }: { readonly deadlineMs: number; readonly late: () => Error },
): Promise<Answer> {
  const { promise, resolve, reject } = Promise.withResolvers<Answer>();
  const timer = setTimeout(() => reject(late()), deadlineMs);
  worker.once('message', resolve);
  worker.on('error', reject);
  worker.once('exit', (code) => reject(new Error(`the worker ended with ${code} and without an answer`)));
  try {
    const answer = await promise;
    // It is done, and with it the TPM: the next caller need not wait for the thread to wind down.
    await worker.terminate();
    return answer;
  } catch (error) {
    // Not awaited: it ends when the library it may be stuck in returns, which can be never.
    void worker.terminate();
    throw error;
  } finally {
    clearTimeout(timer);
  }
}
