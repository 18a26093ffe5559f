/** What init knows of the node, put together when someone asks. */
import { readFile } from 'node:fs/promises';
import { globalAddresses } from '../net/addresses.ts';
import type { NodeStatus } from '../rpc/init-protocol.ts';
import type { Timeline } from './boot-record.ts';
import { readMemory, readPcrs, readSecureBoot } from './machine.ts';

/** PCRs cost one TPM command each; they change rarely, and the TPM has other users. */
const PCRS_FRESH_MS = 10_000;

/** The parts that stage 2 fills in as the boot goes on. */
export type BootFacts = Pick<NodeStatus, 'nodeId' | 'version' | 'slot' | 'stage' | 'roles' | 'tpm' | 'data'>;

/** A function that gives the node's status, from the facts as they are at that moment. */
export function nodeStatusReader(
  facts: Readonly<BootFacts>,
  timeline: Pick<Timeline, 'entries'>,
): () => Promise<NodeStatus> {
  let pcrs: { readonly readAtMs: number; readonly values: Promise<Record<string, string>> } | null = null;
  const freshPcrs = () => {
    if (pcrs === null || performance.now() - pcrs.readAtMs > PCRS_FRESH_MS)
      pcrs = { readAtMs: performance.now(), values: readPcrs() };
    return pcrs.values;
  };
  return async () => {
    const [bootId, pcrValues, secureBoot, memory] = await Promise.all([
      readFile('/proc/sys/kernel/random/boot_id', 'ascii'),
      freshPcrs(),
      readSecureBoot(),
      readMemory(),
    ]);
    return {
      ...facts,
      bootId: bootId.trim(),
      bootTimeMs: Date.now() - Number(process.hrtime.bigint() / 1_000_000n),
      addresses: globalAddresses().map(({ cidr }) => cidr),
      pcrs: pcrValues,
      secureBoot,
      memory,
      pid1RssBytes: process.memoryUsage.rss(),
      timeline: [...timeline.entries],
    };
  };
}
