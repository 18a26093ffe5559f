/** A volume on a machine without TPM: its key lies in the clear in a token, and it is as open as the disk. */
import { randomBytes } from 'node:crypto';
import { deriveSlotKey, UNLOCK_KEY_BYTES } from './data-key.ts';
import { type HeaderDirectory, newHeader, writeFirstHeader } from './header-edit.ts';
import { GENERATION, type RecoveryToken, recoveryTokenOf } from './luks-tokens.ts';
import { NoNodeKeyError, type VolumeLock } from './volume-lock.ts';

const ABSENT = new Uint8Array();

export function unsealedVolume(directory: HeaderDirectory): VolumeLock {
  return {
    warnings: [
      'this machine has no TPM: the key of the data partition lies unsealed beside it, whoever has the disk has the data',
    ],
    prepare(uuid) {
      const key = randomBytes(UNLOCK_KEY_BYTES);
      return {
        create(device, recovery) {
          const slotKey = slotKeyOf(key, uuid, recovery.token);
          const token = {
            type: 'ashlar-unsealed' as const,
            keyslots: [`${GENERATION.a.slot}`],
            version: 1 as const,
            nodeUnlockKey: key.toString('base64'),
          };
          const generation = { place: 'a' as const, slotKey, tokens: [token] };
          const volume = { uuid, generation, recoveryKey: recovery.key, recoveryToken: recovery.token };
          writeFirstHeader(device, newHeader(device.path, volume, directory));
          slotKey.fill(0);
        },
        [Symbol.dispose]: () => void key.fill(0),
      };
    },
    unlock(_device, header) {
      const { tokens, uuid } = header.accepted;
      const token = tokens.find(({ type }) => type === 'ashlar-unsealed');
      if (token?.type !== 'ashlar-unsealed') {
        throw new NoNodeKeyError('the key of the data partition is sealed to a TPM, and this machine has none');
      }
      const slotKey = slotKeyOf(Buffer.from(token.nodeUnlockKey, 'base64'), uuid, recoveryTokenOf(tokens));
      return {
        slot: GENERATION.a.slot,
        slotKey,
        settle: () => ({ header, warnings: [], sealing: undefined, requestKey: undefined }),
        takeOwnership: () => undefined,
        [Symbol.dispose]: () => void slotKey.fill(0),
      };
    },
  };
}

function slotKeyOf(nodeUnlockKey: Uint8Array, partitionUuid: string, { publicKeySha256 }: RecoveryToken): Buffer {
  const absent = { share: ABSENT, clusterUnlockKey: ABSENT };
  return deriveSlotKey({ nodeUnlockKey, ...absent, partitionUuid, recoveryPublicKeySha256: publicKeySha256 });
}
