/** Volumes in files, for tests: made by the code of the node, small enough for a test. */

import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type DataDevice, dataDevice } from './data-device.ts';
import { deriveSlotKey, encodeRecoveryToken, readRecoveryPublicKey } from './data-key.ts';
import { newHeader, writeFirstHeader } from './header-edit.ts';
import { HEADER_BYTES } from './luks-metadata.ts';
import { type DataToken, encodeTpm2Token, type Place } from './luks-tokens.ts';

export const FIXTURE_UUID = '11111111-2222-4333-8444-555555555555';

export interface FixtureVolume extends Disposable {
  /** A directory of its own. */
  readonly directory: string;
  /** The file that stands for the partition. */
  readonly path: string;
  readonly device: DataDevice;
  readonly uuid: string;
  readonly slotKey: Buffer;
  readonly recoveryKey: Buffer;
  /** PEM, PKCS#8. */
  readonly recoveryPrivateKeyPem: string;
}

/** A token as a TPM gives it, with bytes that no TPM knows. */
export function fixtureTpm2Token(place: Place = 'a', number = 1): DataToken {
  const sealed = {
    publicArea: randomBytes(78),
    privateArea: randomBytes(137),
    storageRootKeyName: Buffer.concat([Buffer.from([0x00, 0x0b]), randomBytes(32)]),
    pcr7: randomBytes(32),
  };
  return encodeTpm2Token({ place, number, policyRef: 'ashlar-epoch-1', sealed });
}

/** A file as large as a small partition, all zeros. */
export function makePartitionFile(path: string): void {
  const fd = openSync(path, 'w');
  ftruncateSync(fd, HEADER_BYTES + 4 * 1024 * 1024);
  closeSync(fd);
}

export function makeVolume(nodeTokens?: readonly DataToken[]): FixtureVolume {
  const directory = mkdtempSync(join(tmpdir(), 'ashlar-volume-'));
  const path = join(directory, 'partition');
  makePartitionFile(path);
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
  const generation = { place: 'a' as const, slotKey, tokens: nodeTokens ?? [token, token] };
  const volume = { uuid: FIXTURE_UUID, generation, recoveryKey, recoveryToken };
  const device = dataDevice(path);
  writeFirstHeader(device, newHeader(path, volume, { path: directory }));
  return {
    directory,
    path,
    device,
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
