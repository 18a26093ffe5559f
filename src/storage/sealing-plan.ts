/**
 * What has to happen to a volume's generations, as steps, each of which writes one thing. Pure.
 *
 *   reseal    define anchor ─▶ write anchor ─▶ allow header ─▶ write header ─▶ prove ─▶ retire the old one
 *   retire    undefine anchor ─▶ allow header ─▶ write header ─▶ wipe key material ─▶ settle anchor
 *
 * The order is the power cut's: at each moment one generation opens the volume, with its key slot and tokens in the header
 * on the disk, its anchor in the TPM, and that header's MAC in its anchor. The old one's anchor goes first of all when it
 * is retired, so that from then on no copy of the disk brings it back. Whatever a cut leaves, the next boot sees as a
 * state like any other and plans from there: there is no journal.
 */
import { otherPlace, PLACES, type Place } from './luks-tokens.ts';

/** What a generation is sealed to. */
export interface SealingTarget {
  /** Of the policy key, lower-case hex; empty for one that this image does not know. */
  readonly policyKeyFingerprint: string;
  readonly policyRef: string;
  /** Lower-case hex. */
  readonly pcr7: string;
}

export interface GenerationState extends SealingTarget {
  readonly number: number;
}

/** What is found after a generation has opened the volume. */
export interface SealingState {
  /** In the accepted header, by place. */
  readonly generations: Readonly<Partial<Record<Place, GenerationState>>>;
  /** Places whose anchor the TPM has, whatever is in it. */
  readonly anchors: readonly Place[];
  /** Which generation opened the volume. */
  readonly opened: Place;
  /** The opened generation's anchor names this header as `current`, and no `next`. */
  readonly isSettled: boolean;
  /** Key material of removed slots is still on the disk. */
  readonly hasLeftovers: boolean;
  /** This boot's image and PCR 7: what would be sealed to now. */
  readonly running: SealingTarget;
}

/** Which generations a header holds. */
export type HeaderPlaces = readonly Place[];

export type SealingStep =
  /** Names the header on the disk as the only one in the anchor of `place`. */
  | { readonly kind: 'settle-anchor'; readonly place: Place }
  /** Makes the NV index of a new generation. */
  | { readonly kind: 'define-anchor'; readonly place: Place }
  /** Writes its share, and the MAC of the header that is about to be written. */
  | { readonly kind: 'write-anchor'; readonly place: Place; readonly header: HeaderPlaces }
  /** Lets a generation that is in use accept the header that is about to be written. */
  | { readonly kind: 'allow-header'; readonly place: Place; readonly header: HeaderPlaces }
  | { readonly kind: 'write-header'; readonly header: HeaderPlaces }
  /** Opens the new generation by the TPM, as a boot would; from here on it is the opened one. */
  | { readonly kind: 'prove'; readonly place: Place }
  | { readonly kind: 'undefine-anchor'; readonly place: Place }
  | { readonly kind: 'wipe-leftovers' };

/** What is left to do for a volume that is not being resealed: what a cut has interrupted, or a prediction has come true. */
export function planSettling(state: SealingState): SealingStep[] {
  const { generations, anchors, opened, isSettled, hasLeftovers } = state;
  const steps: SealingStep[] = [];
  const other = otherPlace(opened);
  const isOtherDone = generations[other] !== undefined && !isAwaited(state, other);
  if (!isSettled && !isOtherDone) steps.push({ kind: 'settle-anchor', place: opened });
  if (isOtherDone) steps.push(...retire(other, anchors.includes(other)));
  else {
    if (generations[other] === undefined && anchors.includes(other))
      steps.push({ kind: 'undefine-anchor', place: other });
    if (hasLeftovers) steps.push({ kind: 'wipe-leftovers' });
  }
  return steps;
}

/**
 * Makes a new generation for `target`, after {@link planSettling}. When the machine is in that state now, the new one is
 * proved and the old one gone at the end; for a predicted state both stay until a boot opens with the new one.
 */
export function planResealing(state: SealingState, target: SealingTarget): SealingStep[] {
  const { generations, anchors, opened } = state;
  const place = otherPlace(opened);
  const steps: SealingStep[] = [];
  if (generations[place] !== undefined) steps.push(...retire(place, anchors.includes(place)));
  steps.push(
    { kind: 'define-anchor', place },
    { kind: 'write-anchor', place, header: PLACES },
    { kind: 'allow-header', place: opened, header: PLACES },
    { kind: 'write-header', header: PLACES },
  );
  if (!isSame(target, state.running)) return [...steps, { kind: 'settle-anchor', place: opened }];
  return [...steps, { kind: 'prove', place }, ...retire(opened, true)];
}

/** Ends a generation, when the other one has opened. */
function retire(place: Place, hasAnchor: boolean): SealingStep[] {
  const survivor = otherPlace(place);
  return [
    ...(hasAnchor ? [{ kind: 'undefine-anchor', place } as const] : []),
    { kind: 'allow-header', place: survivor, header: [survivor] },
    { kind: 'write-header', header: [survivor] },
    { kind: 'wipe-leftovers' },
    { kind: 'settle-anchor', place: survivor },
  ];
}

/**
 * A generation that did not open this time and may yet: newer than the one that did, complete, and for another state of
 * the machine than this one.
 */
function isAwaited({ generations, anchors, opened, running }: SealingState, place: Place): boolean {
  const [candidate, current] = [generations[place], generations[opened]];
  if (candidate === undefined || current === undefined || !anchors.includes(place)) return false;
  return candidate.number > current.number && !isSame(candidate, running);
}

function isSame(a: SealingTarget, b: SealingTarget): boolean {
  return a.policyKeyFingerprint === b.policyKeyFingerprint && a.policyRef === b.policyRef && a.pcr7 === b.pcr7;
}
