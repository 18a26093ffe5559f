/**
 * Random lives of random trees, held against what must always be true of a supervised tree and what must be true once
 * it is left in peace.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { createLogStore } from './log-store.ts';
import { manualClock, settle } from './manual-clock.ts';
import { type Runnable, type RunnableContext, startSupervisor } from './supervisor.ts';

/** A tree as data: each group a list of members, each member its own groups. */
interface Shape {
  groups: Shape[][];
}

interface Life {
  name: string;
  ctx: RunnableContext;
  end: PromiseWithResolvers<void>;
  active: boolean;
}

type Step = { kind: 'die' | 'healthy' | 'finish' | 'obey'; pick: number } | { kind: 'wait'; ms: number };

function shapeOfDepth(depth: number): fc.Arbitrary<Shape> {
  if (depth === 0) return fc.constant({ groups: [] });
  const group = fc.array(shapeOfDepth(depth - 1), { minLength: 1, maxLength: 2 });
  return fc.record({ groups: fc.array(group, { maxLength: 2 }) });
}

const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ kind: fc.constantFrom('die', 'healthy', 'finish', 'obey'), pick: fc.nat(50) }),
  fc.record({ kind: fc.constant('wait' as const), ms: fc.nat(3000) }),
);

/** Lives that a tree of `shape` has had; each member starts its children, then waits to be told how to end. */
function play(lives: Life[], overlaps: string[], of: Shape): Runnable {
  return async (ctx) => {
    for (const life of lives) {
      const same = life.name === ctx.name || life.name.startsWith(`${ctx.name}.`) || ctx.name === 'init';
      // Noted, not thrown: an error here would only be one more death.
      if (same && life.active) overlaps.push(`${ctx.name} started while ${life.name} of its last start still ran`);
    }
    const life: Life = { name: ctx.name, ctx, end: Promise.withResolvers(), active: true };
    lives.push(life);
    of.groups.forEach((members, group) => {
      ctx.runGroup(Object.fromEntries(members.map((member, i) => [`g${group}m${i}`, play(lives, overlaps, member)])));
    });
    try {
      await life.end.promise;
    } finally {
      life.active = false;
    }
  };
}

async function take(lives: Life[], action: Step, advance: (ms: number) => Promise<void>): Promise<void> {
  if (action.kind === 'wait') {
    await advance(action.ms);
    return;
  }
  const obeying = action.kind === 'obey';
  const able = lives.filter((life) => life.active && (!obeying || life.ctx.signal.aborted));
  const life = able[action.pick % Math.max(1, able.length)];
  if (life === undefined) return;
  if (action.kind === 'healthy') {
    try {
      life.ctx.healthy();
    } catch {
      // Saying it twice is refused; the tree must not mind.
    }
    return;
  }
  if (action.kind === 'finish') life.ctx.done();
  if (action.kind === 'die') life.end.reject(new Error('died'));
  else life.end.resolve();
  await settle();
}

function siblingsOf(name: string, lives: Life[]): Life[] {
  const group = name.replace(/m\d+$/, 'm');
  if (group === name) return [];
  return lives.filter((life) => life.name.startsWith(group) && /^\d+$/.test(life.name.slice(group.length)));
}

test('no life overlaps its successor, and a tree left in peace runs again whole', async () => {
  await fc.assert(
    fc.asyncProperty(shapeOfDepth(3), fc.array(step, { maxLength: 30 }), async (tree, steps) => {
      const clock = manualClock();
      const lives: Life[] = [];
      const overlaps: string[] = [];
      const log = createLogStore({ clock });
      const supervisor = startSupervisor(play(lives, overlaps, tree), { log, clock, random: () => 0.5 });
      await settle();

      for (const action of steps) {
        await take(lives, action, (ms) => clock.advance(ms));
        const states = new Map(supervisor.status().map((status) => [status.name, status.state]));
        for (const life of lives.filter((one) => one.active)) {
          // Whoever runs below or beside something that fell has been told to end.
          const parent = life.name.includes('.') ? life.name.slice(0, life.name.lastIndexOf('.')) : 'init';
          const fell = [parent, ...siblingsOf(life.name, lives).map((one) => one.name)].some((name) =>
            ['STOPPING', 'BACKOFF', 'STOPPED'].includes(states.get(name) ?? ''),
          );
          if (fell && life.name !== 'init') assert.ok(life.ctx.signal.aborted, `${life.name} was not told to end`);
        }
      }

      // In peace: everything told to end does so, and time passes.
      for (;;) {
        const told = lives.filter((life) => life.active && life.ctx.signal.aborted);
        if (told.length === 0) break;
        for (const life of told) life.end.resolve();
        await settle();
      }
      await clock.advance(61_000);
      for (const { name, state } of supervisor.status()) {
        assert.ok(['STARTING', 'HEALTHY', 'DONE'].includes(state), `${name} is ${state}`);
        const running = lives.filter((life) => life.name === name && life.active);
        assert.equal(running.length, state === 'DONE' ? 0 : 1, `${name} in ${state} runs ${running.length} times`);
        assert.ok(running.every((life) => !life.ctx.signal.aborted));
      }
      assert.equal(supervisor.status().length, countOf(tree), 'the tree is whole');

      assert.deepEqual(overlaps, []);

      const stopped = supervisor.stop(1000);
      await clock.advance(0);
      for (let round = 0; round < 60; round++) {
        for (const life of lives.filter((one) => one.active && one.ctx.signal.aborted)) life.end.resolve();
        await settle();
      }
      assert.deepEqual(await stopped, []);
      assert.equal(lives.filter((life) => life.active).length, 0);
      assert.equal(clock.pending(), 0, 'no timer is left');
    }),
    { numRuns: 300 },
  );
});

function countOf(tree: Shape): number {
  return 1 + tree.groups.flat().reduce((sum, member) => sum + countOf(member), 0);
}
