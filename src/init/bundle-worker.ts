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
