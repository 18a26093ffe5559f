/**
 * `/etc/ashlar/system.json`: what the signed initramfs knows of its system partition. It is part of the UKI, so it is as
 * trusted as this code; it is checked all the same, because a builder's mistake should end in a sentence.
 */
import { readFile } from 'node:fs/promises';
import { type Checked, exactly, integer, list, object, oneOf, text } from '../formats/json-shape.ts';
import { maxFormerPolicyKeys } from '../measure/policy.ts';

const hex = (bytes: number) => text({ max: bytes * 2, pattern: new RegExp(`^[0-9a-f]{${bytes * 2}}$`) });

const pem = text({ min: 1, max: 4096 });

const systemDescription = object({
  version: text({ min: 1, max: 64 }),
  /** Seconds since 1970: no correct clock is earlier than this. */
  buildTime: integer({ min: 0, max: 253_402_300_799 }),
  partitionUuid: text({ max: 36, pattern: /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/ }),
  rootHash: hex(32),
  salt: text({ max: 512, pattern: /^([0-9a-f]{2})*$/ }),
  dataBlocks: integer({ min: 1, max: 2 ** 32 }),
  hashStartBlock: integer({ min: 1, max: 2 ** 32 }),
  blockSize: exactly(4096),
  hashAlgorithm: oneOf('sha256'),
  policyKeyPem: pem,
  /** Policy keys of earlier images, which approve this one too. */
  formerPolicyKeyPems: list(pem, { max: maxFormerPolicyKeys }),
  sealing: object({ policyRef: text({ min: 1, max: 128 }) }),
});

export type SystemDescription = Checked<typeof systemDescription>;

/** Reads the description. Throws when it is missing or not as it should be. */
export async function readSystemDescription(path: string): Promise<SystemDescription> {
  try {
    return systemDescription(JSON.parse(await readFile(path, 'utf8')), '');
  } catch (error) {
    throw new Error(`cannot read ${path}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  }
}
