/** A boot as a person follows it: one calm line for each stage that ends, the rest of the console only as movement. */

import type { StepUpdate } from '../../tools/host/progress.ts';
import type { Machine } from '../machine/machine.ts';
import { nodeConsole, stageOf } from './node-console.ts';

const MEANING: Readonly<Record<string, string>> = {
  'stage 1': 'firmware verified and measured the image; Node.js runs as PID 1',
  'system verified': 'the system partition matches the root hash in the signed image (dm-verity)',
  'stage 2': 'PID 1 moved over to the verified system',
  network: 'an address over DHCP, behind a default-deny firewall',
  'data open': 'the TPM released the key: the data partition is open',
  'etcd healthy': 'the cluster’s store answers',
  'curator healthy': 'the cluster API answers',
  'agent healthy': 'the node API answers',
  ready: 'every service is healthy',
};

/** Tells stages through `say` and everything else through `report`, until disposed. */
export function narrateBoot(
  machine: Machine,
  say: (line: string) => void,
  report: (update: StepUpdate) => void,
): Disposable {
  const told = new Set<string>();
  return machine.console.onLine((line) => {
    const stage = stageOf(line);
    if (stage === undefined || told.has(stage)) {
      report({ detail: line.text });
      return;
    }
    told.add(stage);
    const seconds = `${(line.atMs / 1000).toFixed(1)} s`.padStart(8);
    const address = nodeConsole.network.exec(line.text)?.[1];
    const meaning = MEANING[stage] ?? '';
    say(`${seconds}  ${stage.padEnd(16)} ${meaning}${address === undefined ? '' : ` (${address})`}`);
  });
}
