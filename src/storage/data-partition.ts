/**
 * From a disk with a system partition to a mounted data partition: find, plan, get the key, apply.
 *
 *   TPM ── unseal ──▶ node unlock key ── HKDF ──▶ slot key ──▶ volume key ──▶ /dev/mapper/ashlar-data ──▶ /data
 *                                                                 └─ HMAC ──▶ PCR 15, then leave-initrd ──▶ PCR 11
 *
 * PCR 11 is extended with `leave-initrd` as soon as the volume is open, and also when it is not: nothing that runs later
 * can unseal again. Everything that can refuse does so before the first write to the disk. This blocks: for a Worker.
 */
import { createHash, randomBytes, randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import { addPartition, listPartitions } from '../linux/block.ts';
import { syncDisks } from '../linux/reboot.ts';
import { SealingError, type SealingFailure, type SealingPolicy } from '../tpm/sealing.ts';
import { Tpm } from '../tpm/tpm.ts';
import {
  checkDataFilesystem,
  FilesystemDamagedError,
  makeDataFilesystem,
  mountData,
  type RunProgram,
} from './data-filesystem.ts';
import { deriveSlotKey, encodeRecoveryToken, readRecoveryPublicKey, volumeKeyMeasurement } from './data-key.ts';
import {
  type DataPlan,
  type DataStep,
  type DiskState,
  DiskTooSmallError,
  planDataPartition,
} from './data-partition-plan.ts';
import { createDataVolume, DATA_DEVICE, openDataVolume, readDataHeader, WrongSlotKeyError } from './data-volume.ts';
import { LuksHeaderError } from './luks-header.ts';
import { type RecoveryToken, recoveryKeyFingerprint, recoveryTokenOf } from './luks-tokens.ts';
import {
  type NewNodeKey,
  type NodeKeyKeeper,
  NoNodeKeyError,
  SecureBootOffError,
  tpmKeeper,
  unsealedKeeper,
} from './node-key.ts';
import { readSystemDisk, writeTable } from './partition-table.ts';
import { TwoSystemDisksError } from './system-disk.ts';

/** PCR of our own measurements of the volume. */
const VOLUME_PCR = 15;
const PHASE_PCR = 11;
const LEAVE_INITRD = createHash('sha256').update('leave-initrd').digest();
const REPORTED_PCRS = [4, 7, 11, 12, 13, 14, 15] as const;
/** The NV anchor's share and the cluster's key take part in the slot key when they come; now they are empty. */
const ABSENT = new Uint8Array();

export interface DataPartitionRequest {
  /** The disk that stage 1 read the running system from, `/dev/vda`: DATA is on it and on no other. */
  readonly systemDisk: string;
  /** PARTUUID of the system partition that runs. */
  readonly systemPartitionUuid: string;
  readonly policy: SealingPolicy;
  /** The operator's RSA public key, PEM. */
  readonly recoveryPublicKeyPem: string;
  /** False lets a machine without TPM keep the key in the clear. */
  readonly isTpmRequired: boolean;
  /** The machine started with a TPM. One that is gone since is an error, and never a machine without. */
  readonly hasTpm: boolean;
  readonly paths: DataPartitionPaths;
}

export interface DataPartitionPaths {
  /** The kernel's TPM resource manager, `/dev/tpmrm0`. */
  readonly tpm: string;
  /** `/sys/firmware/efi/efivars` */
  readonly efivars: string;
  /** The image's `.pcrsig`, `/run/ashlar/tpm2-pcr-signature.json`. */
  readonly pcrSignature: string;
  /** A tmpfs for detached headers, `/run/ashlar`. */
  readonly headers: string;
  /** `/data` */
  readonly mountPoint: string;
}

/** What the flow needs from its surroundings. */
export interface DataPartitionSurroundings {
  readonly run: RunProgram;
  /** A stage that began or ended, for the console. */
  readonly report: (text: string) => void;
}

export interface DataPartitionResult {
  readonly state: 'created' | 'opened';
  /** The partition, `/dev/vda4`. */
  readonly partition: string;
  /** What is mounted, `/dev/mapper/ashlar-data`. */
  readonly device: string;
  /** For whom the recovery slot was made: `SHA256:` and base64url of the SHA-256 of the public key's SPKI. */
  readonly recoveryKeyFingerprint: string;
  readonly warnings: readonly string[];
  /** SHA-256 PCRs after leave-initrd, hex by index; empty without a TPM. */
  readonly pcrs: Readonly<Record<string, string>>;
}

/** Why the data partition is not open, for callers that branch. */
export type DataRefusal =
  | SealingFailure
  | 'no-tpm'
  /** The TPM does not do what it is told, so PCR 11 may not be capped. */
  | 'tpm-failed'
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

/**
 * Opens the data partition, creating it when it was never initialised. PCR 11 is capped afterwards in any case.
 *
 * Throws `DataPartitionError`.
 */
export async function openDataPartition(
  request: DataPartitionRequest,
  surroundings: DataPartitionSurroundings,
): Promise<DataPartitionResult> {
  using tpm = openTpm(request);
  const phase = initrdPhase(tpm);
  try {
    using scope = new DisposableStack();
    const keeper = chooseKeeper(request, tpm, scope);
    const disk = readSystemDisk(request.systemDisk, request.systemPartitionUuid);
    const plan = planDataPartition(disk, randomUUID());
    const volume = { recoveryKeyFingerprint: '' };
    const opening = { request, surroundings, tpm, keeper, disk, plan, phase, volume, warnings: [...keeper.warnings] };
    await applyPlan(opening, scope);
    return {
      state: plan.creates ? 'created' : 'opened',
      partition: partitionPath(opening),
      device: DATA_DEVICE,
      recoveryKeyFingerprint: opening.volume.recoveryKeyFingerprint,
      warnings: opening.warnings,
      pcrs: tpm === undefined ? {} : reportPcrs(tpm),
    };
  } catch (error) {
    throw explain(error);
  } finally {
    phase.leave();
  }
}

interface Opening {
  readonly request: DataPartitionRequest;
  readonly surroundings: DataPartitionSurroundings;
  readonly tpm: Tpm | undefined;
  readonly keeper: NodeKeyKeeper;
  readonly disk: DiskState;
  readonly plan: DataPlan;
  readonly phase: InitrdPhase;
  /** Of the volume once it is open. */
  readonly volume: { recoveryKeyFingerprint: string };
  readonly warnings: string[];
}

interface InitrdPhase {
  /** Extends PCR 11 with `leave-initrd`, once. */
  leave(): void;
}

function initrdPhase(tpm: Tpm | undefined): InitrdPhase {
  let hasLeft = false;
  return {
    leave() {
      if (hasLeft) return;
      trustTpm('cap PCR 11', () => tpm?.extendPcr(PHASE_PCR, LEAVE_INITRD));
      hasLeft = true;
    },
  };
}

function openTpm({ paths: { tpm: path }, hasTpm }: DataPartitionRequest): Tpm | undefined {
  const isThere = path.includes(':') || existsSync(path);
  if (!isThere && !hasTpm) return undefined;
  return trustTpm('use the TPM', () => {
    if (!isThere) throw new Error(`there is no ${path}, though this machine started with a TPM`);
    const tpm = new Tpm(path.includes(':') ? path : `device:${path}`);
    tpm.startup();
    return tpm;
  });
}

function trustTpm<T>(action: string, call: () => T): T {
  try {
    return call();
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    throw new DataPartitionError('tpm-failed', `cannot ${action}: ${message}; restart the machine`, { cause: error });
  }
}

function chooseKeeper(request: DataPartitionRequest, tpm: Tpm | undefined, scope: DisposableStack): NodeKeyKeeper {
  const { policy, paths, isTpmRequired } = request;
  if (tpm !== undefined) {
    const rootKey = scope.use(tpm.storageRootKey());
    return tpmKeeper(tpm, rootKey, { policy, pcrSignaturePath: paths.pcrSignature, efivars: paths.efivars });
  }
  if (!isTpmRequired) return unsealedKeeper();
  throw new DataPartitionError(
    'no-tpm',
    `cannot open the data partition: this machine has no TPM 2.0 (there is no ${paths.tpm}); switch it on in the ` +
      'firmware settings, or give the node parameter "tpm": {"required": false}, with which the data is as open as the disk',
  );
}

async function applyPlan(opening: Opening, scope: DisposableStack): Promise<void> {
  const { plan, keeper, request, disk, surroundings } = opening;
  // Whatever can refuse a new volume does so here, before the table is touched.
  const creation = plan.creates ? prepareCreation(keeper, request, scope) : undefined;
  if (creation !== undefined) surroundings.report(`creating the data partition on ${disk.path}`);
  for (const step of plan.steps) await applyStep(opening, step, creation);
}

interface Creation {
  readonly nodeKey: NewNodeKey;
  readonly recoveryKey: Buffer;
  readonly recoveryToken: ReturnType<typeof encodeRecoveryToken>;
}

function prepareCreation(keeper: NodeKeyKeeper, request: DataPartitionRequest, scope: DisposableStack): Creation {
  const recoveryPublicKey = readRecoveryPublicKey(request.recoveryPublicKeyPem);
  const recoveryKey = randomBytes(32);
  scope.defer(() => recoveryKey.fill(0));
  const nodeKey = keeper.create();
  scope.defer(() => nodeKey.key.fill(0));
  return { nodeKey, recoveryKey, recoveryToken: encodeRecoveryToken(recoveryKey, recoveryPublicKey) };
}

async function applyStep(opening: Opening, step: DataStep, creation: Creation | undefined): Promise<void> {
  const { disk, surroundings, request } = opening;
  switch (step.kind) {
    case 'write-table':
      surroundings.report(`writing the partition table of ${disk.path}: ${step.reason}`);
      return writeTable(disk.path, step.gpt, step.first);
    case 'show-to-kernel':
      return addPartition(disk.path, step);
    case 'create-volume':
      if (creation === undefined) throw new Error('cannot create the data volume: its keys were not prepared');
      return createVolume(opening, creation);
    case 'open-volume':
      return openVolume(opening);
    case 'make-filesystem':
      surroundings.report('making the file system');
      return makeDataFilesystem(DATA_DEVICE, surroundings.run);
    case 'check-filesystem': {
      const output = await checkDataFilesystem(DATA_DEVICE, surroundings.run);
      if (output !== undefined) surroundings.report(`file system checked: ${output.trim()}`);
      return;
    }
    case 'mount':
      return mountData(DATA_DEVICE, request.paths.mountPoint);
    case 'mark-initialised':
      syncDisks();
      return writeTable(disk.path, step.gpt, step.first);
  }
}

function createVolume(opening: Opening, { nodeKey, recoveryKey, recoveryToken }: Creation): void {
  const uuid = opening.plan.partition.uniqueGuid;
  const slotKey = slotKeyOf(nodeKey.key, uuid, recoveryToken);
  try {
    const nodeTokens = nodeKey.tokens;
    createDataVolume(partitionPath(opening), { uuid, slotKey, recoveryKey, nodeTokens, recoveryToken });
  } finally {
    slotKey.fill(0);
  }
}

/** Also right after creation: what was just written must pass the same checks as on every later boot. */
function openVolume(opening: Opening): void {
  const { plan, keeper, request, tpm, phase, warnings, surroundings } = opening;
  const uuid = plan.partition.uniqueGuid;
  const path = partitionPath(opening);
  const header = readDataHeader(path, uuid);
  const nodeKey = keeper.recall(header.accepted.tokens);
  const recoveryToken = recoveryTokenOf(header.accepted.tokens);
  const slotKey = slotKeyOf(nodeKey, uuid, recoveryToken);
  nodeKey.fill(0);
  try {
    using volume = openDataVolume(path, header, slotKey, { path: request.paths.headers });
    // The slot opened, so the token names the key that the volume was made with.
    opening.volume.recoveryKeyFingerprint = recoveryKeyFingerprint(recoveryToken);
    volume.activate();
    tpm?.extendPcr(VOLUME_PCR, volumeKeyMeasurement(volume.volumeKey, uuid));
    phase.leave();
    if (volume.repair()) warnings.push('one copy of the LUKS2 header was damaged or out of date and was written again');
    surroundings.report(`${path} is open as ${DATA_DEVICE}`);
    surroundings.report(`the recovery key of the data is ${opening.volume.recoveryKeyFingerprint}`);
  } finally {
    slotKey.fill(0);
  }
}

function slotKeyOf(
  nodeUnlockKey: Uint8Array,
  partitionUuid: string,
  { publicKeySha256 }: Pick<RecoveryToken, 'publicKeySha256'>,
): Buffer {
  const absent = { share: ABSENT, clusterUnlockKey: ABSENT };
  return deriveSlotKey({ nodeUnlockKey, ...absent, partitionUuid, recoveryPublicKeySha256: publicKeySha256 });
}

function partitionPath({ disk, plan }: Pick<Opening, 'disk' | 'plan'>): string {
  const name = disk.path.slice('/dev/'.length);
  const found = listPartitions(name).find(({ number }) => number === plan.partition.number);
  if (found === undefined) throw new Error(`cannot find partition ${plan.partition.number} of ${disk.path} in /sys`);
  return found.path;
}

function reportPcrs(tpm: Tpm): Record<string, string> {
  return Object.fromEntries([...tpm.readPcrs(REPORTED_PCRS)].map(([index, value]) => [index, value.toString('hex')]));
}

const RECOVER = 'the data is untouched; open it with the recovery key: docs/data-partition.md, "Recovery"';

const HEADER_WAY_OUT =
  'nothing was written; put back a copy of the header, or give the data up: docs/data-partition.md, "A refused header"';

/** One error for the reader: what failed, why, the way out. */
function explain(error: unknown): DataPartitionError {
  if (error instanceof DataPartitionError) return error;
  const message = error instanceof Error ? error.message : String(error);
  const failed = (refusal: DataRefusal, text: string) => new DataPartitionError(refusal, text, { cause: error });
  if (error instanceof TwoSystemDisksError) return failed('two-system-disks', message);
  if (error instanceof DiskTooSmallError) return failed('disk-too-small', message);
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
