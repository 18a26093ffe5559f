/**
 * The keys of the data partition. Pure.
 *
 *   node unlock key  32 random bytes, sealed to the TPM
 *   share            32 bytes in the TPM's NV anchor            empty without a TPM
 *   cluster key      32 bytes the cluster releases to a node    not used in a cluster of one: empty
 *   slot key         HKDF-SHA256(node unlock key ‖ share ‖ cluster key, salt = partition UUID,
 *                    "ashlar/data/1 recovery " ‖ SHA-256 of the recovery public key)
 *   recovery key     32 random bytes, encrypted to the operator's recovery public key
 *
 * From the node unlock key comes also the authorization of the anchor; from the volume key, which every way in gives
 * (the node's or the recovery key) and which no resealing changes, come the authorization of the TPM's owner hierarchy and
 * the key that authenticates requests to reseal.
 */
import {
  constants,
  createHash,
  createHmac,
  createPublicKey,
  hkdfSync,
  type KeyObject,
  publicEncrypt,
} from 'node:crypto';
import type { RecoveryToken } from './luks-tokens.ts';

export const UNLOCK_KEY_BYTES = 32;
const RECOVERY_KEY_MIN_BITS = 2048;
const RECOVERY_KEY_MAX_BITS = 8192;

/**
 * The key of the node's slot. Parts that a machine does not use are empty. Wipe it after use.
 *
 * The recovery public key takes part because the token that names it has no MAC: with another name in it the slot does
 * not open, so a volume that opens says truly for whom its recovery slot was made.
 */
export function deriveSlotKey(parts: {
  readonly nodeUnlockKey: Uint8Array;
  readonly share: Uint8Array;
  readonly clusterUnlockKey: Uint8Array;
  readonly partitionUuid: string;
  /** SHA-256 of its SPKI, lower-case hex, as in the recovery token. */
  readonly recoveryPublicKeySha256: string;
}): Buffer {
  const { nodeUnlockKey, share, clusterUnlockKey, partitionUuid, recoveryPublicKeySha256 } = parts;
  if (nodeUnlockKey.length !== UNLOCK_KEY_BYTES) {
    throw new RangeError(`cannot derive the slot key: the node unlock key has ${nodeUnlockKey.length} bytes, not 32`);
  }
  for (const [name, part] of Object.entries({ share, clusterUnlockKey })) {
    // Only whole or absent parts, so that the concatenation is unambiguous for a given kind of unlock.
    if (part.length !== 0 && part.length !== UNLOCK_KEY_BYTES) {
      throw new RangeError(`cannot derive the slot key: ${name} has ${part.length} bytes, not 0 or 32`);
    }
  }
  if (!/^[0-9a-f]{64}$/.test(recoveryPublicKeySha256)) {
    throw new RangeError('cannot derive the slot key: the SHA-256 of the recovery public key is not 64 hex digits');
  }
  const input = Buffer.concat([nodeUnlockKey, share, clusterUnlockKey]);
  const info = `ashlar/data/1 recovery ${recoveryPublicKeySha256}`;
  const key = hkdfSync('sha256', input, uuidBytes(partitionUuid), info, UNLOCK_KEY_BYTES);
  input.fill(0);
  return Buffer.from(key);
}

/** The authorization value of a generation's anchor. Wipe it after use. */
export function deriveAnchorAuth(nodeUnlockKey: Uint8Array, partitionUuid: string): Buffer {
  return Buffer.from(hkdfSync('sha256', nodeUnlockKey, uuidBytes(partitionUuid), 'ashlar/anchor/1', 32));
}

/**
 * The authorization value of the TPM's owner hierarchy. It is kept nowhere: whoever opens the volume, the node or the
 * operator with the recovery key, can derive it. Wipe it after use.
 */
export function deriveOwnerAuth(volumeKey: Uint8Array, partitionUuid: string): Buffer {
  return Buffer.from(hkdfSync('sha256', volumeKey, uuidBytes(partitionUuid), 'ashlar/tpm-owner/1', 32));
}

/** The key of requests to reseal, which the running node keeps among its data. */
export function deriveRequestKey(volumeKey: Uint8Array, partitionUuid: string): Buffer {
  return Buffer.from(hkdfSync('sha256', volumeKey, uuidBytes(partitionUuid), 'ashlar/reseal-request/1', 32));
}

/** Two sources of randomness joined, so that neither alone decides. */
export function xorBytes(a: Uint8Array, b: Uint8Array): Buffer {
  if (a.length !== b.length) throw new RangeError(`cannot xor ${a.length} with ${b.length} bytes`);
  return Buffer.from(a.map((byte, index) => byte ^ (b[index] ?? 0)));
}

/** The 16 bytes of a UUID in reading order. */
export function uuidBytes(uuid: string): Buffer {
  const hex = uuid.replaceAll('-', '');
  if (!/^[0-9a-f]{32}$/i.test(hex)) throw new RangeError(`cannot read UUID ${JSON.stringify(uuid)}`);
  return Buffer.from(hex, 'hex');
}

/** What goes into PCR 15 for an opened volume: it identifies the volume key and does not give it away. */
export function volumeKeyMeasurement(volumeKey: Uint8Array, uuid: string): Buffer {
  return createHmac('sha256', volumeKey).update(`ashlar/data/1 volume ${uuid}`).digest();
}

/** Reads the operator's recovery key. Throws for anything but RSA of 2048 to 8192 bits. */
export function readRecoveryPublicKey(pem: string): KeyObject {
  let key: KeyObject;
  try {
    key = createPublicKey(pem);
  } catch (error) {
    throw new Error('cannot use recovery.publicKeyPem: it is no public key in PEM', { cause: error });
  }
  const bits = key.asymmetricKeyDetails?.modulusLength ?? 0;
  if (key.asymmetricKeyType !== 'rsa' || bits < RECOVERY_KEY_MIN_BITS || bits > RECOVERY_KEY_MAX_BITS) {
    throw new Error(
      `cannot use recovery.publicKeyPem: it is ${key.asymmetricKeyType} of ${bits} bits, ` +
        `RSA of ${RECOVERY_KEY_MIN_BITS} to ${RECOVERY_KEY_MAX_BITS} is needed`,
    );
  }
  return key;
}

/** The token with the recovery slot's key, which only the operator's private key opens. */
export function encodeRecoveryToken(recoveryKey: Uint8Array, publicKey: KeyObject): RecoveryToken {
  const padding = constants.RSA_PKCS1_OAEP_PADDING;
  const encryptedKey = publicEncrypt({ key: publicKey, padding, oaepHash: 'sha256' }, recoveryKey);
  return {
    type: 'ashlar-recovery',
    keyslots: ['1'],
    version: 1,
    algorithm: 'RSA-OAEP-SHA256',
    publicKeySha256: createHash('sha256')
      .update(publicKey.export({ format: 'der', type: 'spki' }))
      .digest('hex'),
    encryptedKey: encryptedKey.toString('base64'),
  };
}
