/**
 * From a disk with a system partition to a mounted data partition: find, plan, get the key, apply.
 *
 *   TPM ── unseal ──▶ node unlock key ── HKDF ──▶ slot key ──▶ volume key ──▶ /dev/mapper/ashlar-data ──▶ /data
 *                                                                 └─ HMAC ──▶ PCR 15, then leave-initrd ──▶ PCR 11
 *
 * PCR 11 is extended with `leave-initrd` as soon as the volume is open, and also when it is not: nothing that runs later
 * can unseal again. Resealing comes between, before anything of the volume but its header was read. Everything that can refuse does so before the first write to the disk. This blocks: for a Worker.
 */
import { createHash, randomBytes, randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import { addPartition } from '../linux/block.ts';
import { syncDisks } from '../linux/reboot.ts';
import type { ImagePolicy } from '../tpm/sealing.ts';
import { Tpm } from '../tpm/tpm.ts';
import { type DataDevice, dataDevice } from './data-device.ts';
import { checkDataFilesystem, makeDataFilesystem, mountData, type RunProgram } from './data-filesystem.ts';
import { encodeRecoveryToken, readRecoveryPublicKey, volumeKeyMeasurement } from './data-key.ts';
import { type DataPlan, type DataStep, type DiskState, planDataPartition } from './data-partition-plan.ts';
import { DataPartitionError, explainRefusal } from './data-refusal.ts';
import { DATA_DEVICE, openDataVolume, readDataHeader, repairStaleCopy } from './data-volume.ts';
import { type RecoveryToken, recoveryKeyFingerprint, recoveryTokenOf } from './luks-tokens.ts';
import { partitionPath, readSystemDisk, writeTable } from './partition-table.ts';
import { keepRequestKey } from './reseal-request.ts';
import { sealedVolume } from './sealed-volume.ts';
import { unsealedVolume } from './unsealed-volume.ts';
import type { PreparedVolume, SealingReport, UnlockedVolume, VolumeLock } from './volume-lock.ts';

export { DataPartitionError, type DataRefusal } from './data-refusal.ts';
export { type ResealRequest, requestReseal } from './reseal-request.ts';
export type { SealingReport } from './volume-lock.ts';

/** PCR of our own measurements of the volume. */
const VOLUME_PCR = 15;
const PHASE_PCR = 11;
const LEAVE_INITRD = createHash('sha256').update('leave-initrd').digest();
const REPORTED_PCRS = [4, 7, 11, 12, 13, 14, 15] as const;

export interface DataPartitionRequest {
  /** The disk that stage 1 read the running system from, `/dev/vda`: DATA is on it and on no other. */
  readonly systemDisk: string;
  /** PARTUUID of the system partition that runs. */
  readonly systemPartitionUuid: string;
  readonly policy: ImagePolicy;
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
  /** What the data is sealed to; undefined without a TPM. */
  readonly sealing: SealingReport | undefined;
  /** SHA-256 PCRs after leave-initrd, hex by index; empty without a TPM. */
  readonly pcrs: Readonly<Record<string, string>>;
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
    const lock = chooseLock(request, tpm);
    const disk = readSystemDisk(request.systemDisk, request.systemPartitionUuid);
    const plan = planDataPartition(disk, randomUUID());
    const volume: OpenVolume = {
      recoveryKeyFingerprint: '',
      sealing: undefined,
      unlocked: undefined,
      requestKey: undefined,
    };
    const warnings = [...lock.warnings];
    const opening: Opening = { request, surroundings, tpm, lock, disk, plan, phase, volume, warnings, scope };
    await applyPlan(opening);
    if (tpm !== undefined) warnings.push(...lockoutWarning(tpm));
    return {
      state: plan.creates ? 'created' : 'opened',
      partition: deviceOf(opening).path,
      device: DATA_DEVICE,
      recoveryKeyFingerprint: opening.volume.recoveryKeyFingerprint,
      warnings,
      sealing: opening.volume.sealing,
      pcrs: tpm === undefined ? {} : reportPcrs(tpm),
    };
  } catch (error) {
    throw explainRefusal(error);
  } finally {
    phase.leave();
  }
}

interface Opening {
  readonly request: DataPartitionRequest;
  readonly surroundings: DataPartitionSurroundings;
  readonly tpm: Tpm | undefined;
  readonly lock: VolumeLock;
  readonly disk: DiskState;
  readonly plan: DataPlan;
  readonly phase: InitrdPhase;
  readonly volume: OpenVolume;
  readonly warnings: string[];
  /** Wipes what is secret when all is over. */
  readonly scope: DisposableStack;
}

/** What is known of the volume once it is open. */
interface OpenVolume {
  recoveryKeyFingerprint: string;
  sealing: SealingReport | undefined;
  unlocked: UnlockedVolume | undefined;
  requestKey: Buffer | undefined;
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
    // The firmware has started it, and else the kernel's driver.
    return new Tpm(path.includes(':') ? path : `device:${path}`);
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

function chooseLock({ policy, paths, isTpmRequired }: DataPartitionRequest, tpm: Tpm | undefined): VolumeLock {
  const directory = { path: paths.headers };
  if (tpm !== undefined) {
    return sealedVolume({ tpm, policy, pcrSignaturePath: paths.pcrSignature, efivars: paths.efivars }, directory);
  }
  if (!isTpmRequired) return unsealedVolume(directory);
  throw new DataPartitionError(
    'no-tpm',
    `cannot open the data partition: this machine has no TPM 2.0 (there is no ${paths.tpm}); switch it on in the ` +
      'firmware settings, or give the node parameter "tpm": {"required": false}, with which the data is as open as the disk',
  );
}

function lockoutWarning(tpm: Tpm): string[] {
  const { active, counter } = tpm.lockout();
  if (!active) return [];
  return [
    `the TPM is in dictionary attack lockout after ${counter} failed authorisations; the data partition's key is not ` +
      'subject to it, but somebody has been trying passwords',
  ];
}

async function applyPlan(opening: Opening): Promise<void> {
  const { plan, disk, surroundings } = opening;
  // Whatever can refuse a new volume does so here, before the table is touched.
  const creation = plan.creates ? prepareCreation(opening) : undefined;
  if (creation !== undefined) surroundings.report(`creating the data partition on ${disk.path}`);
  for (const step of plan.steps) await applyStep(opening, step, creation);
  // After the mark, so that a first boot that is cut before it finds a TPM without owner and can begin again.
  takeOwnership(opening);
}

/** The data is open: what fails here is for the next boot to finish. */
function takeOwnership({ volume, warnings }: Opening): void {
  try {
    volume.unlocked?.takeOwnership();
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    warnings.push(`the TPM's owner hierarchy has no authorization value yet; the next boot tries again: ${message}`);
  }
}

interface Creation {
  readonly volume: PreparedVolume;
  readonly recoveryKey: Buffer;
  readonly recoveryToken: RecoveryToken;
}

function prepareCreation({ lock, request, plan, scope }: Opening): Creation {
  const recoveryPublicKey = readRecoveryPublicKey(request.recoveryPublicKeyPem);
  const recoveryKey = randomBytes(32);
  scope.defer(() => recoveryKey.fill(0));
  const recoveryToken = encodeRecoveryToken(recoveryKey, recoveryPublicKey);
  return { volume: scope.use(lock.prepare(plan.partition.uniqueGuid)), recoveryKey, recoveryToken };
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
      return creation.volume.create(deviceOf(opening), { key: creation.recoveryKey, token: creation.recoveryToken });
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
      mountData(DATA_DEVICE, request.paths.mountPoint);
      return keepKeyOfRequests(opening);
    case 'mark-initialised':
      syncDisks();
      return writeTable(disk.path, step.gpt, step.first);
  }
}

/** Also right after creation: what was just written must pass the same checks as on every later boot. */
function openVolume(opening: Opening): void {
  const { plan, lock, request, tpm, phase, warnings, surroundings, scope, volume: open } = opening;
  const uuid = plan.partition.uniqueGuid;
  const device = deviceOf(opening);
  const header = readDataHeader(device, uuid);
  const unlocked = scope.use(lock.unlock(device, header));
  const key = { slot: unlocked.slot, key: unlocked.slotKey };
  using volume = openDataVolume(device.path, header, key, { path: request.paths.headers });
  // The slot opened, so the token names the key that the volume was made with.
  open.recoveryKeyFingerprint = recoveryKeyFingerprint(recoveryTokenOf(header.accepted.tokens));
  const settled = unlocked.settle(volume.volumeKey);
  warnings.push(...settled.warnings);
  open.sealing = settled.sealing;
  open.unlocked = unlocked;
  open.requestKey = settled.requestKey;
  scope.defer(() => settled.requestKey?.fill(0));
  if (settled.sealing?.resealed !== undefined) surroundings.report(`resealed: ${settled.sealing.resealed}`);
  volume.activate();
  tpm?.extendPcr(VOLUME_PCR, volumeKeyMeasurement(volume.volumeKey, uuid));
  phase.leave();
  if (repairStaleCopy(device, settled.header)) {
    warnings.push('one copy of the LUKS2 header was damaged or out of date and was written again');
  }
  surroundings.report(`${device.path} is open as ${DATA_DEVICE}`);
  if (settled.sealing !== undefined) {
    const { generation, policyRef } = settled.sealing;
    surroundings.report(`the data is sealed to ${policyRef} and anchored in the TPM, generation ${generation}`);
  }
  surroundings.report(`the recovery key of the data is ${open.recoveryKeyFingerprint}`);
}

async function keepKeyOfRequests(opening: Opening): Promise<void> {
  const { request, volume } = opening;
  if (volume.sealing === undefined || volume.requestKey === undefined) return;
  const { generation } = volume.sealing;
  const partition = deviceOf(opening).path;
  await keepRequestKey(request.paths.mountPoint, { partition, generation, key: volume.requestKey });
}

function deviceOf({ disk, plan }: Opening): DataDevice {
  return dataDevice(partitionPath(disk.path, plan.partition.number));
}

function reportPcrs(tpm: Tpm): Record<string, string> {
  return Object.fromEntries([...tpm.readPcrs(REPORTED_PCRS)].map(([index, value]) => [index, value.toString('hex')]));
}
