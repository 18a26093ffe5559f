import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createLogStore } from './log-store.ts';
import { manualClock, settle } from './manual-clock.ts';
import { backoffMs, type Runnable, type RunnableContext, type RunnableState, startSupervisor } from './supervisor.ts';

function untilAborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve();
    else signal.addEventListener('abort', () => resolve(), { once: true });
  });
}

/** A runnable that does what the test says; `starts` holds the context of each start. */
function puppet(options: { stopsByItself?: boolean } = {}) {
  const starts: RunnableContext[] = [];
  let end: PromiseWithResolvers<void> = Promise.withResolvers();
  const runnable: Runnable = async (ctx) => {
    starts.push(ctx);
    end = Promise.withResolvers();
    await (options.stopsByItself === false ? end.promise : Promise.race([end.promise, untilAborted(ctx.signal)]));
  };
  return {
    runnable,
    starts,
    get ctx(): RunnableContext {
      const last = starts.at(-1);
      assert.ok(last, 'it was never started');
      return last;
    },
    returns: async () => {
      end.resolve();
      await settle();
    },
    fails: async (message: string) => {
      end.reject(new Error(message));
      await settle();
    },
  };
}

async function treeOf(root: Runnable) {
  const clock = manualClock();
  const log = createLogStore({ clock });
  const supervisor = startSupervisor(root, { log, clock, random: () => 0 });
  await settle();
  const stateOf = (name: string): RunnableState | undefined =>
    supervisor.status().find((status) => status.name === name)?.state;
  const statusOf = (name: string) => {
    const found = supervisor.status().find((status) => status.name === name);
    assert.ok(found, `${name} is not in the tree`);
    return found;
  };
  return { clock, log, supervisor, stateOf, statusOf };
}

test('a runnable is STARTING until it says healthy', async () => {
  const root = puppet();
  const { stateOf } = await treeOf(root.runnable);
  assert.equal(stateOf('init'), 'STARTING');
  root.ctx.healthy();
  assert.equal(stateOf('init'), 'HEALTHY');
  assert.throws(() => root.ctx.healthy(), /cannot call healthy\(\) twice in init/);
});

test('returning before done() is death: it starts again after the first backoff', async () => {
  const root = puppet();
  const { clock, statusOf } = await treeOf(root.runnable);
  await root.returns();
  assert.equal(statusOf('init').state, 'BACKOFF');
  assert.equal(statusOf('init').lastExit, 'returned before it was done');
  await clock.advance(499);
  assert.equal(root.starts.length, 1);
  await clock.advance(1);
  assert.equal(root.starts.length, 2);
  assert.equal(statusOf('init').restarts, 1);
});

test('returning after done() is success, and its children live on', async () => {
  const child = puppet();
  const root: Runnable = async (ctx) => {
    ctx.run('child', child.runnable);
    ctx.done();
  };
  const { clock, stateOf } = await treeOf(root);
  await clock.advance(120_000);
  assert.equal(stateOf('init'), 'DONE');
  assert.equal(child.ctx.signal.aborted, false);
  assert.equal(child.starts.length, 1);
});

test('a thrown error is death even after done(), and its message is the last exit', async () => {
  const root = puppet();
  const { statusOf, log } = await treeOf(root.runnable);
  root.ctx.done();
  await root.fails('disk on fire');
  assert.equal(statusOf('init').state, 'BACKOFF');
  assert.equal(statusOf('init').lastExit, 'disk on fire');
  assert.ok(log.read({ name: 'init' }).some((entry) => entry.text === 'died: disk on fire'));
});

test('death cancels the subtree, and the restart waits until all of it has stopped', async () => {
  const grandchild = puppet({ stopsByItself: false });
  const child = puppet();
  const root = puppet();
  const { clock, stateOf } = await treeOf(root.runnable);
  root.ctx.run('child', child.runnable);
  await settle();
  child.ctx.run('leaf', grandchild.runnable);
  await settle();
  await root.fails('gone');
  assert.equal(child.ctx.signal.aborted, true);
  assert.equal(grandchild.ctx.signal.aborted, true);
  await clock.advance(600_000);
  assert.equal(root.starts.length, 1, 'a leaf still runs');
  assert.equal(stateOf('init'), 'STOPPING');
  await grandchild.returns();
  assert.equal(stateOf('init'), 'BACKOFF');
  await clock.advance(500);
  assert.equal(root.starts.length, 2);
});

test('the death of a child does not reach its parent or a sibling of another group', async () => {
  const [a, b] = [puppet(), puppet()];
  const root = puppet();
  const { clock } = await treeOf(root.runnable);
  root.ctx.run('a', a.runnable);
  root.ctx.run('b', b.runnable);
  await settle();
  await a.fails('boom');
  await clock.advance(500);
  assert.equal(a.starts.length, 2);
  assert.equal(b.starts.length, 1);
  assert.equal(b.ctx.signal.aborted, false);
  assert.equal(root.ctx.signal.aborted, false);
});

test('members of a group die together and start together', async () => {
  const [a, b] = [puppet(), puppet({ stopsByItself: false })];
  const root = puppet();
  const { clock, statusOf } = await treeOf(root.runnable);
  root.ctx.runGroup({ a: a.runnable, b: b.runnable });
  await settle();
  await a.fails('boom');
  assert.equal(b.ctx.signal.aborted, true);
  await clock.advance(100_000);
  assert.equal(a.starts.length, 1, 'b has not stopped yet');
  await b.returns();
  await clock.advance(500);
  assert.deepEqual([a.starts.length, b.starts.length], [2, 2]);
  assert.equal(statusOf('b').lastExit, 'stopped: a died');
});

test('backoff grows by half each death up to a minute, and jitter only shortens it', () => {
  assert.deepEqual(
    [1, 2, 3].map((deaths) => backoffMs(deaths, 0)),
    [500, 750, 1125],
  );
  assert.equal(backoffMs(50, 0), 60_000);
  assert.equal(backoffMs(50, 0.5), 51_000);
});

test('a minute of health forgives earlier deaths; less does not', async () => {
  const root = puppet();
  const { clock } = await treeOf(root.runnable);
  const dieAfterHealthyFor = async (healthyMs: number) => {
    root.ctx.healthy();
    await clock.advance(healthyMs);
    await root.returns();
  };
  await dieAfterHealthyFor(0);
  await clock.advance(500);
  await dieAfterHealthyFor(59_999);
  await clock.advance(749);
  assert.equal(root.starts.length, 2, 'the second death waits longer');
  await clock.advance(1);
  assert.equal(root.starts.length, 3);
  await dieAfterHealthyFor(60_000);
  await clock.advance(500);
  assert.equal(root.starts.length, 4, 'forgiven');
});

test('a sibling that comes after another waits for its health, also after a death', async () => {
  const [etcd, curator] = [puppet(), puppet()];
  const root = puppet();
  const { clock, stateOf } = await treeOf(root.runnable);
  root.ctx.run('etcd', etcd.runnable);
  root.ctx.run('curator', curator.runnable, { after: ['etcd'] });
  await clock.advance(10_000);
  assert.equal(stateOf('curator'), 'WAITING');
  assert.equal(curator.starts.length, 0);
  etcd.ctx.healthy();
  await settle();
  assert.equal(curator.starts.length, 1);
  await etcd.fails('boom');
  assert.equal(curator.ctx.signal.aborted, false, 'the death of what it came after does not reach it');
  await curator.fails('etcd is away');
  await clock.advance(60_000);
  assert.equal(stateOf('curator'), 'WAITING');
  etcd.ctx.healthy();
  await settle();
  assert.equal(curator.starts.length, 2);
});

test('stop ends leaves first and siblings in the reverse of their order', async () => {
  const ended: string[] = [];
  const noting =
    (setUp: (ctx: RunnableContext) => void = () => {}): Runnable =>
    async (ctx) => {
      setUp(ctx);
      ctx.healthy();
      await untilAborted(ctx.signal);
      await settle();
      ended.push(ctx.name);
    };
  const root = noting((ctx) => {
    ctx.run('net', noting());
    ctx.run(
      'etcd',
      noting((etcd) => etcd.run('leaf', noting())),
      { after: ['net'] },
    );
    ctx.run('curator', noting(), { after: ['etcd'] });
  });
  const { supervisor } = await treeOf(root);
  await settle();
  assert.deepEqual(await supervisor.stop(1000), []);
  assert.deepEqual(ended, ['curator', 'etcd.leaf', 'etcd', 'net', 'init']);
  assert.ok(supervisor.status().every((status) => status.state === 'STOPPED'));
});

test('stop leaves behind what does not return in time, by name, and goes on', async () => {
  const stuck = puppet({ stopsByItself: false });
  const root = puppet();
  const { clock, supervisor, stateOf, statusOf } = await treeOf(root.runnable);
  root.ctx.run('stuck', stuck.runnable);
  await settle();
  const stopped = supervisor.stop(3000);
  await clock.advance(2999);
  assert.equal(root.ctx.signal.aborted, false, 'the parent waits for its leaf');
  await clock.advance(1);
  assert.deepEqual(await stopped, ['stuck']);
  assert.equal(stateOf('init'), 'STOPPED');
  assert.equal(statusOf('stuck').lastExit, 'did not stop within 3000 ms');
});

test('nothing starts once a stop has begun: not from backoff, not by a call to run', async () => {
  const child = puppet();
  const root = puppet({ stopsByItself: false });
  const { clock, supervisor, stateOf } = await treeOf(root.runnable);
  root.ctx.run('child', child.runnable);
  await settle();
  await child.fails('boom');
  const stopped = supervisor.stop(1000);
  assert.equal(stateOf('child'), 'STOPPED');
  assert.throws(() => root.ctx.run('late', child.runnable), /cannot run late under init: the supervisor is stopping/);
  await root.returns();
  await stopped;
  await clock.advance(120_000);
  assert.equal(child.starts.length, 1);
  assert.equal(clock.pending(), 0);
});

test('a name used twice, a name with a dot and an unknown predecessor are refused', async () => {
  const root = puppet();
  await treeOf(root.runnable);
  root.ctx.run('a', puppet().runnable);
  assert.throws(() => root.ctx.run('a', puppet().runnable), /it has a child a already/);
  assert.throws(() => root.ctx.run('a.b', puppet().runnable), /the name "a\.b" is not/);
  assert.throws(() => root.ctx.run('b', puppet().runnable, { after: ['c'] }), /it comes after c, which is not a child/);
});

test('each change of state is told to listeners', async () => {
  const root = puppet();
  const { supervisor } = await treeOf(root.runnable);
  const seen: string[] = [];
  supervisor.onChange((status) => seen.push(`${status.name} ${status.state}`));
  root.ctx.healthy();
  await root.fails('boom');
  assert.deepEqual(seen, ['init HEALTHY', 'init STOPPING', 'init BACKOFF']);
});
