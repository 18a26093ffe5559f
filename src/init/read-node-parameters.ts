/**
 * Node parameters from where an operator may have put them: the hypervisor's fw_cfg, or the ESP of the disk that the
 * system came from. Both are untrusted. The raw bytes are measured into PCR 14 before anything looks into them, so that
 * a parser's fault can neither hide nor choose what was measured.
 */
import { createHash } from 'node:crypto';
import { decodeNodeParameters, type NodeParameters, NodeParametersError } from '../formats/node-parameters.ts';
import type { Logger } from '../supervisor/log-store.ts';
import { readLimited, withEsp } from './esp.ts';
import { measure } from './extend-pcr.ts';

const FW_CFG = '/sys/firmware/qemu_fw_cfg/by_name/opt/ashlar/node-parameters/raw';
const ESP_FILE = 'EFI/ashlar/node-parameters.json';
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
  const bytes = await readLimited(FW_CFG, READ_MAX_BYTES);
  return bytes === null ? null : { name: 'fw_cfg', bytes };
}

async function readEsp(disk: string, log: Logger): Promise<Source | null> {
  const bytes = await withEsp(disk, log, (directory) => readLimited(`${directory}/${ESP_FILE}`, READ_MAX_BYTES));
  return bytes === null ? null : { name: 'the ESP', bytes };
}
