/**
 * A volume on a machine with a TPM.
 *
 *   prepare   storage root key ─▶ key sealed and unsealed ─▶ anchor defined         nothing on the disk yet
 *   create    header written ─▶ its MAC in the anchor
 *   unlock    newest generation that the TPM opens ─▶ its anchor knows this header ─▶ slot key
 *   settle    finish what a cut has left ─▶ reseal when asked ─▶ forget the request
 */

import { sealedPcrs } from '../measure/policy.ts';
import { AnchorError } from '../tpm/anchor-store.ts';
import { knownStorageRootKey, provisionStorageRootKey, requireUnowned, takeOwnership } from '../tpm/provisioning.ts';
import { requireZeroPcrs } from '../tpm/sealing.ts';
import { readSecureBootState } from '../tpm/secure-boot.ts';
import type { StorageRootKey } from '../tpm/tpm.ts';
import type { DataDevice } from './data-device.ts';
import { deriveOwnerAuth, deriveRequestKey } from './data-key.ts';
import { forgetAnchor, Generation, type SealingMachine } from './generation.ts';
import { type HeaderDirectory, newHeader, writeFirstHeader } from './header-edit.ts';
import type { DataHeader } from './header-mac.ts';
import { LuksHeaderError, REQUEST_OFFSET } from './luks-metadata.ts';
import { GENERATION, PLACES, recoveryTokenOf, sealedGenerations } from './luks-tokens.ts';
import { clearResealRequest, decodeResealRequest, type ResealRequest } from './reseal-request.ts';
import { sealedPolicyKey } from './sealed-policy-key.ts';
import type { GenerationState } from './sealing-plan.ts';
import { SealedVolumeSteps } from './sealing-steps.ts';
import {
  NoNodeKeyError,
  type SealingReport,
  type SettledVolume,
  type UnlockedVolume,
  type VolumeLock,
} from './volume-lock.ts';

/** Secure Boot is off, so PCR 7 would vouch for nothing. */
export class SecureBootOffError extends Error {
  override readonly name = 'SecureBootOffError';
}

export function sealedVolume(machine: SealingMachine, directory: HeaderDirectory): VolumeLock {
  return {
    warnings: [],
    prepare: (uuid) => prepare(machine, directory, uuid),
    unlock: (device, header) => unlock(machine, directory, device, header),
  };
}

function prepare(machine: SealingMachine, directory: HeaderDirectory, uuid: string): ReturnType<VolumeLock['prepare']> {
  const { tpm, efivars } = machine;
  requireZeroPcrs(tpm.readPcrs(sealedPcrs));
  requireSecureBoot(efivars);
  requireUnowned(tpm);
  const rootKey = provisionStorageRootKey(tpm);
  const generation = Generation.make({ machine, rootKey, uuid }, { place: 'a', number: 1 });
  try {
    generation.proveSealed();
    // A first boot that was cut may have left them; nothing is lost with them, since no partition is initialised.
    for (const place of PLACES) forgetAnchor(machine, rootKey, place);
    generation.defineAnchor();
  } catch (error) {
    generation[Symbol.dispose]();
    throw error;
  }
  return {
    create(device, recovery) {
      const slot = generation.slot(recovery.token);
      const volume = { uuid, generation: slot, recoveryKey: recovery.key, recoveryToken: recovery.token };
      const header = newHeader(device.path, volume, directory);
      slot.slotKey.fill(0);
      writeFirstHeader(device, header);
      generation.writeAnchor(header);
    },
    [Symbol.dispose]: () => generation[Symbol.dispose](),
  };
}

export function requireSecureBoot(efivars: string): void {
  const { isEnforced, isSetupMode } = readSecureBootState(efivars);
  if (isEnforced && !isSetupMode) return;
  const state = isSetupMode ? 'the firmware is in Setup Mode: anybody may enrol keys' : 'Secure Boot is off';
  throw new SecureBootOffError(
    `${state}, so PCR 7 vouches for nothing and no key is sealed to it; enrol the Secure Boot keys of this image ` +
      'and switch Secure Boot on in the firmware settings (in Setup Mode the node can do so itself: docs/signing.md)',
  );
}

function unlock(
  machine: SealingMachine,
  directory: HeaderDirectory,
  device: DataDevice,
  header: DataHeader,
): UnlockedVolume {
  const { tokens, uuid } = header.accepted;
  if (tokens.some(({ type }) => type === 'ashlar-unsealed')) {
    throw new NoNodeKeyError(
      'the data partition keeps its key unsealed, though this machine has a TPM: it was made without one, or put ' +
        'there by somebody',
    );
  }
  const generations = sealedGenerations(tokens);
  if (generations.length === 0) throw new NoNodeKeyError('both copies of the sealed key are damaged');
  const rootKey = knownStorageRootKey(
    machine.tpm,
    generations.map(({ sealed }) => sealed.storageRootKeyName),
  );
  const generation = openNewest(machine, rootKey, header);
  const slotKey = generation.slotKey(recoveryTokenOf(tokens));
  let ownerAuth: Buffer | undefined;
  return {
    slot: GENERATION[generation.place].slot,
    slotKey,
    settle(volumeKey) {
      ownerAuth = deriveOwnerAuth(volumeKey, uuid);
      if (machine.tpm.ownership().ownerAuthSet) machine.tpm.useAuth('owner', ownerAuth);
      using steps = new SealedVolumeSteps({ machine, rootKey, device, directory }, header, generation, volumeKey);
      return settle(machine, steps, { device, volumeKey, uuid });
    },
    takeOwnership() {
      if (ownerAuth !== undefined) takeOwnership(machine.tpm, rootKey, ownerAuth);
    },
    [Symbol.dispose]() {
      slotKey.fill(0);
      ownerAuth?.fill(0);
      generation[Symbol.dispose]();
    },
  };
}

/** The newest generation that the TPM opens and whose anchor knows the header. What is told otherwise is of the oldest. */
function openNewest(machine: SealingMachine, rootKey: StorageRootKey, header: DataHeader): Generation {
  let refusal: unknown;
  for (const facts of sealedGenerations(header.accepted.tokens)) {
    try {
      return openMatching(machine, rootKey, header, facts);
    } catch (error) {
      refusal = error;
    }
  }
  if (refusal instanceof AnchorError) throw new LuksHeaderError(refusal.message, { cause: refusal });
  throw refusal;
}

function openMatching(
  machine: SealingMachine,
  rootKey: StorageRootKey,
  header: DataHeader,
  facts: Parameters<typeof Generation.open>[1],
): Generation {
  const generation = Generation.open({ machine, rootKey, uuid: header.accepted.uuid }, facts);
  if (generation.matches(header) !== undefined) return generation;
  generation[Symbol.dispose]();
  throw new LuksHeaderError(
    'it is not the one that the TPM knows: it was changed, or an older copy of it was put back (the MAC in the anchor of ' +
      `generation ${facts.number} is another)`,
  );
}

function settle(
  machine: SealingMachine,
  steps: SealedVolumeSteps,
  { device, volumeKey, uuid }: { device: DataDevice; volumeKey: Uint8Array; uuid: string },
): SettledVolume {
  const warnings: string[] = [];
  let resealed: string | undefined;
  const requestKey = deriveRequestKey(volumeKey, uuid);
  try {
    // Before anything is settled: a header that is written then has no request in it.
    const request = takeRequest(steps, requestKey, warnings);
    steps.settle();
    if (request !== undefined && steps.awaitsNewerImage) {
      // It would end the newer image's generation, and with it the epoch that was asked for.
      warnings.push('the request to reseal the data partition is left to the newer image that has begun with it');
    } else {
      if (request !== undefined) resealed = reseal(machine, steps, request);
      clearResealRequest(device);
    }
  } catch (error) {
    // One generation still opens the volume: that is what the order of the steps is for.
    const message = error instanceof Error ? error.message : String(error);
    warnings.push(
      `the data partition could not be resealed; it opens as before, and the next boot tries again: ${message}`,
    );
  }
  const sealing = report(machine, steps, resealed);
  if (sealing.policyKeyPem !== machine.policy.policyKeyPem) warnings.push(ofFormerKey(sealing));
  return { header: steps.header, warnings, sealing, requestKey };
}

function takeRequest(steps: SealedVolumeSteps, key: Uint8Array, warnings: string[]): ResealRequest | undefined {
  const block = steps.header.bytes.subarray(REQUEST_OFFSET);
  const request = decodeResealRequest(block, steps.opened.facts.number, key);
  if (typeof request !== 'string') return request;
  warnings.push(`the request to reseal the data partition is not carried out: ${request}`);
  return undefined;
}

function reseal(machine: SealingMachine, steps: SealedVolumeSteps, { reason, pcr7 }: ResealRequest): string {
  requireSecureBoot(machine.efivars);
  const made = steps.reseal(pcr7 === undefined ? undefined : Buffer.from(pcr7, 'hex'));
  const { number, policyRef, sealed } = made.facts;
  const to = `generation ${number} for ${policyRef} and PCR 7 ${Buffer.from(sealed.pcr7).toString('hex')}`;
  const isWaiting = steps.opened.place !== made.place;
  return `${to}${isWaiting ? ', which counts from the first boot with that PCR 7 on' : ''}: ${reason}`;
}

function report(machine: SealingMachine, steps: SealedVolumeSteps, resealed: string | undefined): SealingReport {
  const { facts } = steps.opened;
  const policyKeyPem = sealedPolicyKey(machine.policy, facts);
  if (policyKeyPem === undefined) throw new Error('cannot tell the policy key of the generation that was opened');
  const { waiting } = steps;
  return {
    ...steps.sealedTo,
    policyKeyPem,
    generation: facts.number,
    anchor: 'ok',
    ...(resealed === undefined ? {} : { resealed }),
    ...(waiting === undefined ? {} : { waiting: waitingReport(waiting) }),
  };
}

function waitingReport({ number, ...target }: GenerationState): NonNullable<SealingReport['waiting']> {
  return { ...target, generation: number };
}

/** Whoever still has that key can have an image of his opened. */
function ofFormerKey({ policyKeyFingerprint }: SealingReport): string {
  return (
    `the data is still sealed to the former policy key ${policyKeyFingerprint.slice(0, 16)}…; when this image is to stay, ` +
    "move it to the image's own key with: ashlarctl node reseal NODE, and reboot"
  );
}
