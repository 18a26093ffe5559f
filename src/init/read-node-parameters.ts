/**
 * Node parameters from where an operator may have put them: the hypervisor's fw_cfg, or the ESP of the disk that the
 * system came from. Both are untrusted. The raw bytes are measured into PCR 14 before anything looks into them, so that
 * a parser's fault can neither hide nor choose what was measured.
 */
import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { decodeNodeParameters, type NodeParameters, NodeParametersError } from '../formats/node-parameters.ts';
import { listPartitions } from '../linux/block.ts';
import { isErrno } from '../linux/libc.ts';
import { MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, mount, unmount } from '../linux/mount.ts';
import type { Logger } from '../supervisor/log-store.ts';
import { measure } from './extend-pcr.ts';

const FW_CFG = '/sys/firmware/qemu_fw_cfg/by_name/opt/ashlar/node-parameters/raw';
const ESP_MOUNT = '/efi';
const ESP_FILE = `${ESP_MOUNT}/EFI/ashlar/node-parameters.json`;
/** The ESP is the first partition (docs/architecture.md). */
const ESP_NUMBER = 1;
const NODE_PARAMETERS_PCR = 14;
/** More than the decoder takes, so that it can say how much too many there are; a file longer than this is cut here. */
const READ_MAX_BYTES = 1024 * 1024;

export interface NodeParametersPlace {
  /** The disk that the system came from, `vda`. */
  readonly disk: string;
  /** Stage 1 found a TPM. */
  readonly hasTpm: boolean;
}

/** Reads, measures and checks the node parameters. Throws `NodeParametersError`: then a human has to act. */
export async function readNodeParameters({ disk, hasTpm }: NodeParametersPlace, log: Logger): Promise<NodeParameters> {
  const found = [await readFwCfg(), await readEsp(disk, log)].filter((source) => source !== null);
  const [first, second] = found;
  if (first === undefined)
    throw new NodeParametersError(
      'there are none; write EFI/ashlar/node-parameters.json to the ESP of this disk (or give fw_cfg opt/ashlar/node-parameters)',
    );
  for (const { bytes } of found)
    await measure(NODE_PARAMETERS_PCR, createHash('sha256').update(bytes).digest(), { hasTpm });
  if (second !== undefined && !first.bytes.equals(second.bytes))
    throw new NodeParametersError(`${first.name} and ${second.name} both have some, and they differ; remove one`);
  const parameters = decodeNodeParameters(first.bytes);
  log.info(`node parameters from ${found.map(({ name }) => name).join(' and ')}, ${first.bytes.length} bytes`);
  return parameters;
}

interface Source {
  readonly name: string;
  readonly bytes: Buffer;
}

async function readFwCfg(): Promise<Source | null> {
  const bytes = await readLimited(FW_CFG);
  return bytes === null ? null : { name: 'fw_cfg', bytes };
}

async function readEsp(disk: string, log: Logger): Promise<Source | null> {
  const esp = listPartitions(disk).find(({ number }) => number === ESP_NUMBER);
  if (esp === undefined) return null;
  const flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
  try {
    mount({ source: esp.path, target: ESP_MOUNT, type: 'vfat', flags });
  } catch (error) {
    log.warning(`cannot look for node parameters on ${esp.path}: ${String(error)}`);
    return null;
  }
  try {
    const bytes = await readLimited(ESP_FILE);
    return bytes === null ? null : { name: 'the ESP', bytes };
  } finally {
    unmount(ESP_MOUNT);
  }
}

/** Null when there is no such file. */
async function readLimited(path: string): Promise<Buffer | null> {
  try {
    await using file = await open(path, 'r');
    const chunks: Buffer[] = [];
    for (let length = 0; length < READ_MAX_BYTES; ) {
      const chunk = Buffer.alloc(64 * 1024);
      const { bytesRead } = await file.read(chunk, 0, chunk.length, null);
      if (bytesRead === 0) break;
      chunks.push(chunk.subarray(0, bytesRead));
      length += bytesRead;
    }
    return Buffer.concat(chunks);
  } catch (error) {
    if (isErrno(error, 'ENOENT', 'ENOTDIR')) return null;
    throw error;
  }
}
