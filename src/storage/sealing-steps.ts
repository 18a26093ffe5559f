/** Carries out the steps of `sealing-plan.ts` on the disk and the TPM. */
import { epochOfPolicyRef } from '../measure/policy.ts';
import { definedAnchors } from '../tpm/anchor-store.ts';
import { explainOwner } from '../tpm/provisioning.ts';
import type { StorageRootKey } from '../tpm/tpm.ts';
import type { DataDevice } from './data-device.ts';
import { openDataVolume, readDataHeader } from './data-volume.ts';
import { forgetAnchor, Generation, presentPcr7, type SealingMachine } from './generation.ts';
import { editedHeader, type HeaderDirectory, hasLeftovers, replaceHeader, wipeLeftovers } from './header-edit.ts';
import type { DataHeader } from './header-mac.ts';
import {
  GENERATION,
  PLACES,
  type Place,
  recoveryTokenOf,
  type SealedGeneration,
  sealedGenerations,
} from './luks-tokens.ts';
import { policyKeyFingerprintHex, sealedPolicyKey } from './sealed-policy-key.ts';
import {
  type GenerationState,
  type HeaderPlaces,
  planResealing,
  planSettling,
  type SealingState,
  type SealingStep,
  type SealingTarget,
} from './sealing-plan.ts';

export interface SealedDisk {
  readonly machine: SealingMachine;
  readonly rootKey: StorageRootKey;
  readonly device: DataDevice;
  readonly directory: HeaderDirectory;
}

/** A volume that one of its generations has opened. Generations that it makes or proves are wiped with it. */
export class SealedVolumeSteps implements Disposable {
  readonly #disk: SealedDisk;
  readonly #volumeKey: Uint8Array;
  readonly #generations = new Map<Place, Generation>();
  readonly #made = new DisposableStack();
  #header: DataHeader;
  #opened: Place;
  /** The header that is about to be written, once a MAC of it was needed. */
  #next: DataHeader | undefined;

  constructor(disk: SealedDisk, header: DataHeader, opened: Generation, volumeKey: Uint8Array) {
    this.#disk = disk;
    this.#header = header;
    this.#volumeKey = volumeKey;
    this.#generations.set(opened.place, opened);
    this.#opened = opened.place;
  }

  /** As it is on the disk. */
  get header(): DataHeader {
    return this.#header;
  }

  /** The generation that a boot would open now. */
  get opened(): Generation {
    return this.#generation(this.#opened);
  }

  /** What the opened generation is sealed to. */
  get sealedTo(): SealingTarget {
    return this.#targetOf(this.opened.facts);
  }

  /** The generation that counts from the first boot in its state on, if there is one whose policy key is known. */
  get waiting(): GenerationState | undefined {
    const { number } = this.opened.facts;
    return Object.values(this.#generationStates()).find(
      (generation) => generation.number > number && generation.policyKeyFingerprint !== '',
    );
  }

  /**
   * A generation of a later epoch than this image's, or of a policy key that it does not know, is in the header: its image
   * has begun a resealing that was cut.
   */
  get awaitsNewerImage(): boolean {
    const epoch = epochOfPolicyRef(this.#disk.machine.policy.policyRef) ?? 0;
    return Object.values(this.#generationStates()).some(
      ({ policyRef, policyKeyFingerprint }) =>
        (epochOfPolicyRef(policyRef) ?? 0) > epoch || policyKeyFingerprint === '',
    );
  }

  /** Finishes what an earlier boot has begun. */
  settle(): readonly SealingStep[] {
    const steps = planSettling(this.#observe());
    this.#run(steps);
    return steps;
  }

  /** Makes a new generation for this image, and for the present PCR 7 unless told. */
  reseal(pcr7?: Uint8Array): Generation {
    const { machine, rootKey } = this.#disk;
    const state = this.#observe();
    const place = this.#opened === 'a' ? 'b' : 'a';
    const number = 1 + Math.max(...Object.values(state.generations).map((generation) => generation.number));
    const where = { machine, rootKey, uuid: this.#header.accepted.uuid };
    const made = this.#made.use(Generation.make(where, { place, number, pcr7 }));
    const steps = planResealing(state, this.#targetOf(made.facts));
    const define = steps.findIndex(({ kind }) => kind === 'define-anchor');
    // Until then the place may still be that of a generation that waits.
    this.#run(steps.slice(0, define));
    this.#generations.set(place, made);
    this.#run(steps.slice(define));
    return made;
  }

  [Symbol.dispose](): void {
    this.#made.dispose();
  }

  #observe(): SealingState {
    const { machine } = this.#disk;
    const anchors = new Set(definedAnchors(machine.tpm));
    return {
      generations: this.#generationStates(),
      anchors: PLACES.filter((place) => anchors.has(GENERATION[place].anchorIndex)),
      opened: this.#opened,
      isSettled: this.opened.isSettledOn(this.#header),
      hasLeftovers: hasLeftovers(this.#header),
      running: {
        policyKeyFingerprint: policyKeyFingerprintHex(machine.policy.policyKeyPem),
        policyRef: machine.policy.policyRef,
        pcr7: hex(presentPcr7(machine)),
      },
    };
  }

  /** In the header. */
  #generationStates(): Partial<Record<Place, GenerationState>> {
    const states: Partial<Record<Place, GenerationState>> = {};
    for (const facts of sealedGenerations(this.#header.accepted.tokens)) {
      states[facts.place] = { number: facts.number, ...this.#targetOf(facts) };
    }
    return states;
  }

  #targetOf({ policyRef, sealed }: Pick<SealedGeneration, 'policyRef' | 'sealed'>): SealingTarget {
    const pem = sealedPolicyKey(this.#disk.machine.policy, { policyRef, sealed });
    const policyKeyFingerprint = pem === undefined ? '' : policyKeyFingerprintHex(pem);
    return { policyKeyFingerprint, policyRef, pcr7: hex(sealed.pcr7) };
  }

  #run(steps: readonly SealingStep[]): void {
    for (const step of steps) this.#runStep(step);
  }

  #runStep(step: SealingStep): void {
    const { machine, rootKey, device } = this.#disk;
    switch (step.kind) {
      case 'settle-anchor':
        return this.#generation(step.place).writeAnchor(this.#header);
      case 'define-anchor':
        return asOwner(() => this.#generation(step.place).defineAnchor());
      case 'write-anchor':
        return this.#generation(step.place).writeAnchor(this.#nextHeader(step.header));
      case 'allow-header':
        return this.#generation(step.place).writeAnchor(this.#header, this.#nextHeader(step.header));
      case 'write-header': {
        const next = this.#nextHeader(step.header);
        replaceHeader(device, this.#header, next);
        this.#header = next;
        this.#next = undefined;
        return;
      }
      case 'prove':
        return this.#prove(step.place);
      case 'undefine-anchor':
        return asOwner(() => forgetAnchor(machine, rootKey, step.place));
      case 'wipe-leftovers':
        wipeLeftovers(device, this.#header);
    }
  }

  #generation(place: Place): Generation {
    const found = this.#generations.get(place);
    if (found === undefined) throw new Error(`cannot use generation ${place}: its key was not unsealed`);
    return found;
  }

  /** The header with these generations, made once: its salts are random, and its MAC must be of what is written. */
  #nextHeader(places: HeaderPlaces): DataHeader {
    if (this.#next !== undefined) return this.#next;
    const { device, directory } = this.#disk;
    const { tokens } = this.#header.accepted;
    const present = new Set(sealedGenerations(tokens).map(({ place }) => place));
    const added = places.find((place) => !present.has(place));
    const add = added && this.#generation(added).slot(recoveryTokenOf(tokens));
    const change = { add, remove: [...present].filter((place) => !places.includes(place)), volumeKey: this.#volumeKey };
    this.#next = editedHeader(this.#header, device.path, change, directory);
    add?.slotKey.fill(0);
    return this.#next;
  }

  /** Opens a generation as the next boot will: from the header on the disk, by the TPM, to the volume key. */
  #prove(place: Place): void {
    const { machine, rootKey, device, directory } = this.#disk;
    const { uuid } = this.#header.accepted;
    const header = readDataHeader(device, uuid);
    const facts = sealedGenerations(header.accepted.tokens).find((generation) => generation.place === place);
    if (facts === undefined)
      throw new Error(`cannot prove the new generation: the header on the disk has none at ${place}`);
    const proved = this.#made.use(Generation.open({ machine, rootKey, uuid }, facts));
    if (proved.matches(header) === undefined) {
      throw new Error('cannot prove the new generation: its anchor does not know the header that was written');
    }
    const key = proved.slotKey(recoveryTokenOf(header.accepted.tokens));
    try {
      using volume = openDataVolume(device.path, header, { slot: GENERATION[place].slot, key }, directory);
      if (!volume.volumeKey.equals(this.#volumeKey))
        throw new Error('cannot prove the new generation: it opens another volume');
    } finally {
      key.fill(0);
    }
    this.#generations.set(place, proved);
    this.#opened = place;
  }
}

function asOwner<T>(call: () => T): T {
  try {
    return call();
  } catch (error) {
    throw explainOwner(error);
  }
}

function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}
