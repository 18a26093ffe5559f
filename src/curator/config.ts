/** What init tells the curator: `/config/config.json`, and keys beside it (docs/architecture.md). */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Checked, object, text } from '../formats/json-shape.ts';

const pem = text({ min: 1, max: 16 * 1024 });
const address = text({ min: 1, max: 256, pattern: /^[^\s]+:\d{1,5}$/ });

const curatorConfig = object({
  nodeId: text({ max: 21, pattern: /^node-[0-9a-f]{16}$/ }),
  /** Who may take ownership of a cluster that does not exist yet; one that exists knows its owner. */
  ownerCertificatePem: pem,
  /** The self-signed certificate of the node that the curator runs on. */
  nodeCertificatePem: pem,
  /** Of the data partition that the curator's state lies on, as the console shows it. */
  recoveryKeyFingerprint: text({ max: 50, pattern: /^SHA256:[A-Za-z0-9_-]{43}$/ }),
  listen: address,
  etcd: address,
  version: text({ min: 1, max: 128 }),
});

export type CuratorConfig = Checked<typeof curatorConfig>;

export interface CuratorKeys {
  /** The serving key, whose fingerprint the console shows. */
  readonly servingKeyPem: string;
  readonly etcd: { readonly caPem: string; readonly certificatePem: string; readonly privateKeyPem: string };
}

/** Throws an error that names the file and the key in it. */
export async function readCuratorConfig(path: string): Promise<CuratorConfig> {
  try {
    return curatorConfig(JSON.parse(await readFile(path, 'utf8')), '');
  } catch (cause) {
    throw new Error(`cannot use ${path}: ${cause instanceof Error ? cause.message : String(cause)}`, { cause });
  }
}

/** @param directory `/config` */
export async function readCuratorKeys(directory: string): Promise<CuratorKeys> {
  const read = (path: string) => readFile(join(directory, path), 'utf8');
  const [servingKeyPem, caPem, certificatePem, privateKeyPem] = await Promise.all([
    read('curator.key'),
    read('etcd-ca.crt'),
    read('etcd-client.crt'),
    read('etcd-client.key'),
  ]);
  return { servingKeyPem, etcd: { caPem, certificatePem, privateKeyPem } };
}
