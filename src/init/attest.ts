/**
 * The Worker of one attestation: tpm2-tss blocks, so it runs on a thread of its own, whose memory goes when it ends.
 * Bundled as `/usr/lib/ashlar/attest.js`; `attest-client.ts` starts it.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { type AttestTask, runAttestTask } from './attest-tpm.ts';

if (parentPort === null) throw new Error('cannot attest: this is the code of a Worker, start it through attest-client');
parentPort.postMessage(runAttestTask(workerData as AttestTask));
