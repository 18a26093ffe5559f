/** The dm-verity hash tree (kernel documentation: admin-guide/device-mapper/verity), format 1, SHA-256. */
import { createHash } from 'node:crypto';

const digestSize = 32;

/**
 * The root hash of some data: each block is hashed with the salt before it, the hashes are packed into blocks padded with
 * zeros, and so on until one block is left, whose hash is the root.
 *
 * @param blocks the data in pieces, each a whole number of blocks.
 */
export async function computeVerityRootHash(
  blocks: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  options: { salt: Uint8Array; blockSize: number },
): Promise<Uint8Array> {
  const { salt, blockSize } = options;
  const hashesOf = (bytes: Uint8Array): Buffer => {
    if (bytes.length % blockSize !== 0)
      throw new RangeError(`cannot hash: ${bytes.length} bytes are not whole blocks of ${blockSize}`);
    const digests: Buffer[] = [];
    for (let at = 0; at < bytes.length; at += blockSize) {
      digests.push(
        createHash('sha256')
          .update(salt)
          .update(bytes.subarray(at, at + blockSize))
          .digest(),
      );
    }
    return Buffer.concat(digests);
  };
  const firstLevel: Buffer[] = [];
  for await (const piece of blocks) firstLevel.push(hashesOf(piece));
  let level: Uint8Array = Buffer.concat(firstLevel);
  if (level.length === 0) throw new RangeError('cannot hash: there are no blocks');
  while (level.length > digestSize) {
    const padded = Buffer.alloc(Math.ceil(level.length / blockSize) * blockSize);
    padded.set(level);
    level = hashesOf(padded);
  }
  return level;
}
