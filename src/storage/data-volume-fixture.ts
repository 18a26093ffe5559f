/** Volumes in files, for tests: made by the code of the node, small enough for a test. */

import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { deriveSlotKey, encodeRecoveryToken, readRecoveryPublicKey } from './data-key.ts';
import { createDataVolume } from './data-volume.ts';
import { HEADER_BYTES } from './luks-header.ts';
import { type DataToken, encodeTpm2Token } from './luks-tokens.ts';

export const FIXTURE_UUID = '11111111-2222-4333-8444-555555555555';

export interface FixtureVolume extends Disposable {
  /** A directory of its own. */
  readonly directory: string;
  /** The file that stands for the partition. */
  readonly path: string;
  readonly uuid: string;
  readonly slotKey: Buffer;
  readonly recoveryKey: Buffer;
  /** PEM, PKCS#8. */
  readonly recoveryPrivateKeyPem: string;
}

/** A token as a TPM gives it, with bytes that no TPM knows. */
export function fixtureTpm2Token(): DataToken {
  const sealed = {
    publicArea: randomBytes(78),
    privateArea: randomBytes(137),
    storageRootKeyName: Buffer.concat([Buffer.from([0x00, 0x0b]), randomBytes(32)]),
    pcr7: randomBytes(32),
  };
  return encodeTpm2Token(sealed, 'ashlar-epoch-1');
}

export function makeVolume(nodeTokens?: readonly DataToken[]): FixtureVolume {
  const directory = mkdtempSync(join(tmpdir(), 'ashlar-volume-'));
  const path = join(directory, 'partition');
  const fd = openSync(path, 'w');
  ftruncateSync(fd, HEADER_BYTES + 4 * 1024 * 1024);
  closeSync(fd);
  const { publicKey, privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const recoveryKey = randomBytes(32);
  const recoveryPem = publicKey.export({ format: 'pem', type: 'spki' }).toString();
  const absent = new Uint8Array();
  const recoveryToken = encodeRecoveryToken(recoveryKey, readRecoveryPublicKey(recoveryPem));
  const slotKey = deriveSlotKey({
    nodeUnlockKey: randomBytes(32),
    share: absent,
    clusterUnlockKey: absent,
    partitionUuid: FIXTURE_UUID,
    recoveryPublicKeySha256: recoveryToken.publicKeySha256,
  });
  const token = fixtureTpm2Token();
  createDataVolume(path, {
    uuid: FIXTURE_UUID,
    slotKey,
    recoveryKey,
    nodeTokens: nodeTokens ?? [token, token],
    recoveryToken,
  });
  return {
    directory,
    path,
    uuid: FIXTURE_UUID,
    slotKey,
    recoveryKey,
    recoveryPrivateKeyPem: privateKey.export({ format: 'pem', type: 'pkcs8' }).toString(),
    [Symbol.dispose]: () => rmSync(directory, { recursive: true }),
  };
}

/** The header of such a volume. */
export function madeHeader(): { bytes: Buffer; uuid: string } {
  using volume = makeVolume();
  return { bytes: readFileSync(volume.path).subarray(0, HEADER_BYTES), uuid: volume.uuid };
}
