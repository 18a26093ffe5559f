/** The thread in which one target is fuzzed: its coverage counters, heap limit and end are its own. */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { parentPort, workerData } from 'node:worker_threads';
import { seededRandom } from '../../src/formats/fixtures.ts';
import { installAllocationGuard } from './allocation-guard.ts';
import { noCoverage, startBlockCoverage } from './block-coverage.ts';
import { fuzz } from './engine.ts';
import { announceTo, type FuzzJob, type WorkerReport } from './run-fuzz.ts';
import { fuzzTarget } from './targets.ts';

const job = workerData as FuzzJob;
const target = fuzzTarget(job.target);
const files = new Map(target.files.map((file) => [pathToFileURL(join(job.tree, file)).href, file]));
const coverage = job.measuresCoverage ? startBlockCoverage(files) : noCoverage();
const decode = await target.load(job.tree);
installAllocationGuard();
const startMs = performance.now();
const result = fuzz({
  target,
  decode,
  coverage,
  seeds: job.seeds,
  random: seededRandom(job.seed),
  executions: job.executions,
  isGuided: job.isGuided,
  maxFindings: job.maxFindings,
  announce: announceTo(job.shared),
});
parentPort?.postMessage({
  ...result,
  durationMs: performance.now() - startMs,
  coverage: coverage.report(),
} satisfies WorkerReport);
