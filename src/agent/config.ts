/** What init tells the agent: `/config/config.json`, and the node's key beside it (docs/architecture.md). */
import { createPrivateKey, createPublicKey } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Checked, list, object, text } from '../formats/json-shape.ts';
import { nodeIdOf } from '../rpc/tls-names.ts';

const address = text({ min: 1, max: 256, pattern: /^[^\s]+:\d{1,5}$/ });

const agentConfig = object({
  nodeId: text({ max: 21, pattern: /^node-[0-9a-f]{16}$/ }),
  listen: address,
  /** The curator to register with. */
  curator: address,
  /** Fingerprint of its serving key, as the console shows it. */
  curatorSpkiSha256: text({ max: 50, pattern: /^SHA256:[A-Za-z0-9_-]{43}$/ }),
  initSocket: text({ min: 1, max: 107 }),
  version: text({ min: 1, max: 128 }),
  roles: list(text({ min: 1, max: 64 }), { max: 16 }),
});

export type AgentConfig = Checked<typeof agentConfig>;

/** The node's own key with the self-signed certificate of its first boot. */
export interface NodeKeys {
  readonly certificatePem: string;
  readonly privateKeyPem: string;
}

/** Throws an error that names the file and the key in it. */
export async function readAgentConfig(path: string): Promise<AgentConfig> {
  try {
    return agentConfig(JSON.parse(await readFile(path, 'utf8')), '');
  } catch (cause) {
    throw new Error(`cannot use ${path}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

/** @param directory `/config` */
export async function readNodeKeys(directory: string, nodeId: string): Promise<NodeKeys> {
  const [certificatePem, privateKeyPem] = await Promise.all([
    readFile(join(directory, 'node.crt'), 'utf8'),
    readFile(join(directory, 'node.key'), 'utf8'),
  ]);
  const actual = nodeIdOf(createPublicKey(createPrivateKey(privateKeyPem)));
  if (actual !== nodeId) throw new Error(`cannot be ${nodeId}: the key in ${directory} is that of ${actual}`);
  return { certificatePem, privateKeyPem };
}
