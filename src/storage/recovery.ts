/**
 * Recovery: the volume is opened with the recovery slot's key, and sealed anew to the TPM, image and PCR 7 of now.
 *
 *   slot 1 ─▶ volume key ─▶ owner's value ─▶ storage root key ─▶ new generation ─▶ anchor ─▶ header ─▶ old anchors gone
 *
 * The header cannot be authenticated here: its MAC is with a TPM that is gone or does not unseal. Its shape is checked as
 * ever, and its recovery slot opens with the operator's key; that it is this node's volume, and none that somebody made for
 * the same operator, is for the operator to know (docs/data-partition.md, "Recovery"). It works on a machine that has left
 * its initrd phase, and takes effect with the next boot. A power cut leaves a volume that can be recovered again, or that
 * opens.
 */
import { provisionStorageRootKey, takeOwnership } from '../tpm/provisioning.ts';
import { Tpm } from '../tpm/tpm.ts';
import { type DataDevice, dataDevice } from './data-device.ts';
import { deriveOwnerAuth } from './data-key.ts';
import type { DataPartitionRequest } from './data-partition.ts';
import { planDataPartition } from './data-partition-plan.ts';
import { DataPartitionError, explainRefusal } from './data-refusal.ts';
import { openDataVolume, readDataHeader } from './data-volume.ts';
import { forgetAnchor, Generation, presentPcr7, type SealingMachine } from './generation.ts';
import { editedHeader, type HeaderDirectory, replaceHeader, wipeLeftovers } from './header-edit.ts';
import {
  GENERATION,
  otherPlace,
  PLACES,
  RECOVERY_SLOT,
  type RecoveryToken,
  recoveryTokenOf,
  sealedGenerations,
} from './luks-tokens.ts';
import { partitionPath, readSystemDisk } from './partition-table.ts';
import { clearResealRequest } from './reseal-request.ts';
import { requireSecureBoot } from './sealed-volume.ts';

/** For whom the recovery slot was made, with its key encrypted to him. Throws `DataPartitionError`. */
export function readRecovery(request: DataPartitionRequest): {
  readonly recoveryToken: RecoveryToken;
  readonly volumeUuid: string;
} {
  return explained(() => {
    const { device, uuid } = findVolume(request);
    return { recoveryToken: recoveryTokenOf(readDataHeader(device, uuid).accepted.tokens), volumeUuid: uuid };
  });
}

/**
 * Opens the volume with the recovery slot's key and seals it to this machine. Reboot afterwards.
 *
 * @returns what was sealed, for a reader. Throws `DataPartitionError`.
 */
export async function recoverDataPartition(
  request: DataPartitionRequest,
  { recoveryKey }: { readonly recoveryKey: Uint8Array },
): Promise<{ readonly summary: string }> {
  return explained(() => {
    const { paths, policy } = request;
    const { device, uuid } = findVolume(request);
    using tpm = new Tpm(paths.tpm.includes(':') ? paths.tpm : `device:${paths.tpm}`);
    const machine = { tpm, policy, pcrSignaturePath: paths.pcrSignature, efivars: paths.efivars };
    return { summary: recoverVolume(machine, { device, uuid, directory: { path: paths.headers } }, recoveryKey) };
  });
}

/** The same, for a volume that is at hand. */
export function recoverVolume(
  machine: SealingMachine,
  volume: { readonly device: DataDevice; readonly uuid: string; readonly directory: HeaderDirectory },
  recoveryKey: Uint8Array,
): string {
  const { device, uuid, directory } = volume;
  const { tpm } = machine;
  requireSecureBoot(machine.efivars);
  const header = readDataHeader(device, uuid);
  const { tokens, slotAreas } = header.accepted;
  const generations = sealedGenerations(tokens);
  const [newest] = generations;
  if (newest === undefined) {
    throw new DataPartitionError(
      'no-node-key',
      'cannot recover the data partition: it was made on a machine without TPM and keeps its key in the clear',
    );
  }
  using opened = openDataVolume(device.path, header, { slot: RECOVERY_SLOT, key: recoveryKey }, directory);
  const { volumeKey } = opened;
  using secrets = new DisposableStack();
  const ownerAuth = deriveOwnerAuth(volumeKey, uuid);
  secrets.defer(() => ownerAuth.fill(0));
  if (tpm.ownership().ownerAuthSet) tpm.useAuth('owner', ownerAuth);
  const rootKey = provisionStorageRootKey(tpm);

  const place = otherPlace(newest.place);
  const target = { place, number: newest.number + 1, pcr7: presentPcr7(machine) };
  const made = secrets.use(Generation.make({ machine, rootKey, uuid }, target));
  const add = made.slot(recoveryTokenOf(tokens));
  secrets.defer(() => add.slotKey.fill(0));
  const remove = PLACES.filter((old) => slotAreas.some(({ slot }) => slot === GENERATION[old].slot));
  const next = editedHeader(header, device.path, { add, remove, volumeKey }, directory);

  forgetAnchor(machine, rootKey, place);
  made.defineAnchor();
  made.writeAnchor(next);
  replaceHeader(device, header, next);
  wipeLeftovers(device, next);
  clearResealRequest(device);
  forgetAnchor(machine, rootKey, otherPlace(place));
  takeOwnership(tpm, rootKey, ownerAuth);
  const pcr7 = Buffer.from(target.pcr7).toString('hex');
  return `sealed as generation ${target.number} to ${machine.policy.policyRef} and PCR 7 ${pcr7}; restart to open it`;
}

function findVolume(request: DataPartitionRequest): { readonly device: DataDevice; readonly uuid: string } {
  const disk = readSystemDisk(request.systemDisk, request.systemPartitionUuid);
  // The GUID is for a partition that would be added; none is.
  const { partition, creates } = planDataPartition(disk, '00000000-0000-4000-8000-000000000000');
  if (creates) throw new Error(`there is no initialised data partition on ${disk.path}`);
  return { device: dataDevice(partitionPath(disk.path, partition.number)), uuid: partition.uniqueGuid };
}

function explained<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw explainRefusal(error);
  }
}
