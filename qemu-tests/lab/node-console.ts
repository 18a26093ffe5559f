/** What a node says on its console, as docs/architecture.md fixes it; tests, demo and benchmark read it from here. */
import type { SerialLine } from '../machine/serial-console.ts';

export const nodeConsole = {
  stage1: /init\.stage1: start/,
  systemVerified: /init\.stage1: system verified/,
  stage2: /init\.stage2: start/,
  network: /init\.network: up (\S+)/,
  dataOpen: /init\.data: open\b/,
  /** Read from the data partition: who says it has opened it. */
  identity: /init\.identity: this is (node-[0-9a-f]{16})/,
  etcd: /init\.services: etcd healthy/,
  agent: /init\.services: agent healthy/,
  curator: /init\.services: curator healthy/,
  ready: /init: node (node-[0-9a-f]{16}) ready/,
  /** Of the cluster API's key, not the recovery key's, which is on the console, too. */
  fingerprint: /the cluster API's key is (SHA256:[A-Za-z0-9_-]{43})/,
  shutdownComplete: /init: shutdown complete/,
  /** The unlock is over, well or badly: what it did not say by then, it will not say. */
  unlockOver: /init\.data: open\b|init: FAILED /,
  failed: /init: FAILED ([^:]+): (.*)/,
} as const;

export interface TimelineEntry {
  readonly stage: string;
  /** Milliseconds since power-on, by the host's clock. */
  readonly atMs: number;
}

/** The stages that the console shows, in the order in which a boot passes them. Later ones may change places. */
const STAGES: readonly (readonly [stage: string, pattern: RegExp])[] = [
  ['stage 1', nodeConsole.stage1],
  ['system verified', nodeConsole.systemVerified],
  ['stage 2', nodeConsole.stage2],
  ['network', nodeConsole.network],
  ['data open', nodeConsole.dataOpen],
  ['etcd healthy', nodeConsole.etcd],
  ['curator healthy', nodeConsole.curator],
  ['agent healthy', nodeConsole.agent],
  ['ready', nodeConsole.ready],
];

/** The stage a line ends, if it ends one. */
export function stageOf(line: SerialLine): string | undefined {
  return STAGES.find(([, pattern]) => pattern.test(line.text))?.[0];
}

/**
 * A boot from its console lines. Each line of a node carries the kernel's clock; so the moment the kernel started is
 * known even though a quiet kernel does not announce it: everything before is the firmware's.
 */
export function bootTimeline(lines: readonly SerialLine[]): TimelineEntry[] {
  const entries: TimelineEntry[] = [];
  for (const line of lines) {
    const stage = stageOf(line);
    if (stage === undefined || entries.some((entry) => entry.stage === stage)) continue;
    if (entries.length === 0) {
      const stamp = kernelTimeMs(line.text);
      if (stamp !== undefined) entries.push({ stage: 'firmware', atMs: line.atMs - stamp });
    }
    entries.push({ stage, atMs: line.atMs });
  }
  return entries;
}

/** `[   12.345] …` → 12345 */
export function kernelTimeMs(text: string): number | undefined {
  const match = /^\[\s*(\d+)\.(\d{3})\d*\]/.exec(text);
  return match === null ? undefined : Number(match[1]) * 1000 + Number(match[2]);
}
