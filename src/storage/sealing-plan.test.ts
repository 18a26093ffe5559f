import assert from 'node:assert/strict';
import { test } from 'node:test';
import { epochOfPolicyRef } from '../measure/policy.ts';
import { PLACES, type Place } from './luks-tokens.ts';
import {
  type GenerationState,
  planResealing,
  planSettling,
  type SealingState,
  type SealingStep,
  type SealingTarget,
} from './sealing-plan.ts';

/** A disk and a TPM, as far as the plan goes: a header is a number, and an anchor knows the numbers it accepts. */
interface World {
  disk: { header: number; generations: Partial<Record<Place, GenerationState>> };
  hasLeftovers: boolean;
  anchors: Partial<Record<Place, { number: number; current?: number; next?: number }>>;
  headersMade: number;
}

const EPOCH_1 = { policyKeyFingerprint: 'first', policyRef: 'ashlar-epoch-1', pcr7: 'aa' };
const EPOCH_2 = { ...EPOCH_1, policyRef: 'ashlar-epoch-2' };
const OTHER_PCR7 = { ...EPOCH_1, pcr7: 'bb' };
/** Under an image of the next policy key, which the first one approves too. */
const NEXT_KEY = { ...EPOCH_1, policyKeyFingerprint: 'next' };

function provisioned(): World {
  return {
    disk: { header: 1, generations: { a: { number: 1, ...EPOCH_1 } } },
    hasLeftovers: false,
    anchors: { a: { number: 1, current: 1 } },
    headersMade: 1,
  };
}

/** As on the node: the newest generation that the TPM's policy, its anchor and the header's MAC let through. */
function opening({ disk, anchors }: World, running: SealingTarget): Place | undefined {
  return PLACES.filter((place) => {
    const [generation, anchor] = [disk.generations[place], anchors[place]];
    if (generation === undefined || anchor === undefined) return false;
    const isKeyKnown = generation.policyKeyFingerprint === 'first' || running.policyKeyFingerprint === 'next';
    const isImageAllowed = isKeyKnown && epochOf(generation.policyRef) <= epochOf(running.policyRef);
    const isHeaderKnown = anchor.current === disk.header || anchor.next === disk.header;
    return generation.pcr7 === running.pcr7 && isImageAllowed && anchor.number === generation.number && isHeaderKnown;
  }).sort((a, b) => (disk.generations[b]?.number ?? 0) - (disk.generations[a]?.number ?? 0))[0];
}

const epochOf = (policyRef: string) => epochOfPolicyRef(policyRef) ?? 0;

function observe(world: World, opened: Place, running: SealingTarget): SealingState {
  const anchor = world.anchors[opened];
  return {
    generations: world.disk.generations,
    anchors: PLACES.filter((place) => world.anchors[place] !== undefined),
    opened,
    isSettled: anchor?.current === world.disk.header && anchor.next === undefined,
    hasLeftovers: world.hasLeftovers,
    running,
  };
}

/** Carries out the first `count` steps. */
function carryOut(
  world: World,
  steps: readonly SealingStep[],
  count: number,
  target: SealingTarget,
  running: SealingTarget,
) {
  const newest = Math.max(...Object.values(world.disk.generations).map(({ number }) => number));
  const generationOf = (place: Place) => world.disk.generations[place] ?? { number: newest + 1, ...target };
  let written: World['disk'] | undefined;
  const headerOf = (places: readonly Place[]) => {
    const generations = Object.fromEntries(places.map((place) => [place, generationOf(place)]));
    written ??= { header: ++world.headersMade, generations };
    return written;
  };
  const anchorOf = (place: Place) => world.anchors[place] ?? assert.fail(`no anchor ${place}`);
  for (const step of steps.slice(0, count)) {
    switch (step.kind) {
      case 'settle-anchor':
        world.anchors[step.place] = { number: anchorOf(step.place).number, current: world.disk.header };
        break;
      case 'define-anchor':
        assert.equal(world.anchors[step.place], undefined, 'an index that exists cannot be defined');
        world.anchors[step.place] = { number: newest + 1 };
        break;
      case 'write-anchor':
        world.anchors[step.place] = { number: newest + 1, current: headerOf(step.header).header };
        break;
      case 'allow-header':
        anchorOf(step.place).next = headerOf(step.header).header;
        break;
      case 'write-header': {
        const before = Object.keys(world.disk.generations);
        world.disk = headerOf(step.header);
        written = undefined;
        world.hasLeftovers = before.some((place) => world.disk.generations[place as Place] === undefined);
        break;
      }
      case 'prove':
        assert.equal(opening(world, running), step.place, 'the new generation opens, before the old one goes');
        break;
      case 'undefine-anchor':
        assert.notEqual(world.anchors[step.place], undefined, 'an index that is gone cannot be undefined');
        delete world.anchors[step.place];
        break;
      case 'wipe-leftovers':
        world.hasLeftovers = false;
        break;
    }
  }
}

/** Boots in every state that may come up, cutting the power after each step of what it does then, `cuts` more times. */
function explore(world: World, states: readonly SealingTarget[], cuts: number): number {
  let boots = 0;
  for (const running of states) {
    const opened = opening(world, running);
    assert.ok(opened !== undefined, `nothing opens in ${JSON.stringify({ world, running })}`);
    boots += 1;
    const steps = planSettling(observe(world, opened, running));
    for (let count = 0; count <= steps.length; count += 1) {
      const next = structuredClone(world);
      carryOut(next, steps, count, running, running);
      if (count < steps.length && cuts > 0) boots += explore(next, states, cuts - 1);
      if (count === steps.length) assertSettled(next, running);
    }
  }
  return boots;
}

function assertSettled(world: World, running: SealingTarget): void {
  const opened = opening(world, running);
  assert.ok(opened !== undefined);
  assert.deepEqual(planSettling(observe(world, opened, running)), [], 'a settled volume needs nothing more');
  assert.equal(world.hasLeftovers, false);
  assert.deepEqual(Object.keys(world.anchors).sort(), Object.keys(world.disk.generations).sort());
}

for (const [name, target, states] of [
  ['the same state', EPOCH_1, [EPOCH_1]],
  ['a new epoch', EPOCH_2, [EPOCH_2]],
  ['a new policy key', NEXT_KEY, [NEXT_KEY]],
] as const) {
  test(`resealing to ${name} leaves, at each cut and at each cut of what follows, one generation that opens`, () => {
    const running = states[0];
    const steps = planResealing(observe(provisioned(), 'a', running), target);
    let boots = 0;
    for (let count = 0; count <= steps.length; count += 1) {
      const world = provisioned();
      carryOut(world, steps, count, target, running);
      boots += explore(world, states, 2);
    }
    assert.ok(boots > steps.length * 2, `${boots} boots`);
  });
}

test('resealing to a PCR 7 that is only predicted opens at each cut with the PCR 7 of before, and with the predicted one after it', () => {
  const steps = planResealing(observe(provisioned(), 'a', EPOCH_1), OTHER_PCR7);
  for (let count = 0; count <= steps.length; count += 1) {
    const world = provisioned();
    carryOut(world, steps, count, OTHER_PCR7, EPOCH_1);
    explore(world, [EPOCH_1], 2);
    if (count === steps.length) {
      explore(structuredClone(world), [OTHER_PCR7], 3);
      const opened = opening(world, OTHER_PCR7);
      assert.equal(opened, 'b');
      const settling = planSettling(observe(world, opened, OTHER_PCR7));
      carryOut(world, settling, settling.length, OTHER_PCR7, OTHER_PCR7);
      assertSettled(world, OTHER_PCR7);
      assert.equal(opening(world, EPOCH_1), undefined, 'the PCR 7 of before opens nothing any more');
    }
  }
});

test('a prediction that has not come true waits, and is replaced by the next request', () => {
  const world = provisioned();
  const prediction = planResealing(observe(world, 'a', EPOCH_1), OTHER_PCR7);
  carryOut(world, prediction, prediction.length, OTHER_PCR7, EPOCH_1);
  assert.deepEqual(planSettling(observe(world, 'a', EPOCH_1)), []);
  const steps = planResealing(observe(world, 'a', EPOCH_2), EPOCH_2);
  for (let count = 0; count <= steps.length; count += 1) {
    const cut = structuredClone(world);
    carryOut(cut, steps, count, EPOCH_2, EPOCH_2);
    explore(cut, [EPOCH_2], 1);
  }
});

test('the copy of a disk from before a resealing opens nothing, in no state, as soon as the old anchor is gone', () => {
  const world = provisioned();
  const copy = structuredClone(world.disk);
  const steps = planResealing(observe(world, 'a', EPOCH_2), EPOCH_2);
  const gone = steps.findIndex((step) => step.kind === 'undefine-anchor') + 1;
  assert.ok(gone > 0 && gone < steps.length);
  for (let count = gone; count <= steps.length; count += 1) {
    const later = provisioned();
    carryOut(later, steps, count, EPOCH_2, EPOCH_2);
    for (const running of [EPOCH_1, EPOCH_2]) assert.equal(opening({ ...later, disk: copy }, running), undefined);
  }
});

test('a newer generation that should have opened and did not is given up', () => {
  const world = provisioned();
  const both = planResealing(observe(world, 'a', EPOCH_1), OTHER_PCR7);
  carryOut(world, both, both.length, EPOCH_1, EPOCH_1);
  const steps = planSettling(observe(world, 'a', EPOCH_1));
  assert.deepEqual(steps[0], { kind: 'undefine-anchor', place: 'b' });
  carryOut(world, steps, steps.length, EPOCH_1, EPOCH_1);
  assertSettled(world, EPOCH_1);
});
