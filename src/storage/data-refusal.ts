/** Why the data partition stays closed: one error for the reader, with what failed, why, and the way out. */
import { TpmInUseError } from '../tpm/provisioning.ts';
import { SealingError, type SealingFailure } from '../tpm/sealing.ts';
import { FilesystemDamagedError } from './data-filesystem.ts';
import { DiskTooSmallError } from './data-partition-plan.ts';
import { WrongSlotKeyError } from './data-volume.ts';
import { LuksHeaderError } from './luks-metadata.ts';
import { SecureBootOffError } from './sealed-volume.ts';
import { TwoSystemDisksError } from './system-disk.ts';
import { NoNodeKeyError } from './volume-lock.ts';

/** Why the data partition is not open, for callers that branch. */
export type DataRefusal =
  | SealingFailure
  | 'no-tpm'
  /** The TPM does not do what it is told, so PCR 11 may not be capped. */
  | 'tpm-failed'
  | 'tpm-in-use'
  | 'secure-boot-off'
  | 'disk-too-small'
  | 'two-system-disks'
  | 'header-refused'
  | 'wrong-key'
  | 'no-node-key'
  | 'filesystem-damaged'
  | 'failed';

/** The data partition is not open. The message says what failed, why, and the way out; it holds no secret. */
export class DataPartitionError extends Error {
  override readonly name = 'DataPartitionError';
  readonly refusal: DataRefusal;

  constructor(refusal: DataRefusal, message: string, options?: ErrorOptions) {
    super(message, options);
    this.refusal = refusal;
  }
}

const RECOVER = 'the data is untouched; open it with the recovery key: docs/data-partition.md, "Recovery"';

const HEADER_WAY_OUT =
  'nothing was written; put back a copy of the header, or give the data up: docs/data-partition.md, "A refused header"';

/** Any error of opening the data partition, explained. */
export function explainRefusal(error: unknown): DataPartitionError {
  if (error instanceof DataPartitionError) return error;
  const message = error instanceof Error ? error.message : String(error);
  const failed = (refusal: DataRefusal, text: string) => new DataPartitionError(refusal, text, { cause: error });
  if (error instanceof TwoSystemDisksError) return failed('two-system-disks', message);
  if (error instanceof DiskTooSmallError) return failed('disk-too-small', message);
  if (error instanceof TpmInUseError) return failed('tpm-in-use', `cannot use the TPM: ${message}`);
  if (error instanceof SecureBootOffError) return failed('secure-boot-off', `cannot seal the node key: ${message}`);
  if (error instanceof SealingError) {
    if (error.failure === 'pcr-not-zero') return failed('pcr-not-zero', `cannot open the data partition: ${message}`);
    const what =
      error.failure === 'another-tpm'
        ? `this data partition belongs to another TPM: ${message}`
        : `cannot unseal the node key: ${message}`;
    return failed(error.failure, `${what}; ${RECOVER}`);
  }
  if (error instanceof LuksHeaderError) {
    return failed(
      'header-refused',
      `cannot open the data partition: its LUKS2 header is refused: ${message}; ${HEADER_WAY_OUT}`,
    );
  }
  if (error instanceof NoNodeKeyError)
    return failed('no-node-key', `cannot open the data partition: ${message}; ${RECOVER}`);
  if (error instanceof WrongSlotKeyError) {
    return failed(
      'wrong-key',
      `cannot open the data partition: ${message}; it is another volume than the key's, or its header ` +
        `names another recovery key than it was made with; ${RECOVER}`,
    );
  }
  if (error instanceof FilesystemDamagedError) return failed('filesystem-damaged', message);
  return failed('failed', `cannot open the data partition: ${message}`);
}
