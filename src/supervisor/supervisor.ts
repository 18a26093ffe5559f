/**
 * A tree of runnables that keeps itself running.
 *
 *   root ── run('net') ─────────── a group of one
 *       └── runGroup({a, b}) ───── siblings that die and start together
 *               └── a.run('x') …
 *
 * A group is the unit of restart. When a member returns before it said done(), or throws, it has died: its whole subtree
 * and its group's other members (with theirs) are told to stop through their signals. Only when all of them have ended
 * does the group wait its backoff and start again, so two generations of a runnable never run at once. A death does not
 * reach the parent. Time and chance are injected; nothing here touches the machine.
 */
import { type Clock, systemClock } from './clock.ts';
import type { Logger, LogStore } from './log-store.ts';

/** Runs until its signal aborts, or to the end of its work after saying done(). */
export type Runnable = (ctx: RunnableContext) => Promise<void>;

export interface RunOptions {
  /**
   * Names of siblings, already run, that must be healthy (or done) before this one starts, at first and after each
   * death. At an ordered stop this one ends before them. Their later death does not reach it.
   */
  after?: readonly string[];
}

export interface RunnableContext {
  /** Dotted name in the tree; also the name of its log. */
  name: string;
  /** Aborts when this runnable must end: it returns as soon as it can. */
  signal: AbortSignal;
  log: Logger;
  /** Starts a child, which lives no longer than this runnable. Children of one that is done live on. */
  run(name: string, runnable: Runnable, options?: RunOptions): void;
  /** Starts children that die, and are started again, together. */
  runGroup(members: Record<string, Runnable>, options?: RunOptions): void;
  /** Says, once, that this runnable does its job. */
  healthy(): void;
  /** Says that returning from here on is success. Implies healthy(). */
  done(): void;
}

/**
 * WAITING for siblings it comes after; STARTING until it is healthy; STOPPING from a death or a stop until its subtree
 * has ended; BACKOFF until its next start; STOPPED for good; DONE after successful return.
 */
export type RunnableState = 'WAITING' | 'STARTING' | 'HEALTHY' | 'DONE' | 'STOPPING' | 'BACKOFF' | 'STOPPED';

export interface RunnableStatus {
  name: string;
  state: RunnableState;
  /** Monotonic milliseconds at which it came into this state. */
  sinceMs: number;
  /** How often it was started again. */
  restarts: number;
  /** Why it last ended, or null while it never has. */
  lastExit: string | null;
}

export interface SupervisorOptions {
  log: LogStore;
  clock?: Clock;
  /** 0 ≤ x < 1. @default Math.random */
  random?: () => number;
  /** The root's name; names of its descendants do not repeat it. @default 'init' */
  name?: string;
}

export interface Supervisor extends AsyncDisposable {
  /** Every runnable there is now, parents before children. */
  status(): RunnableStatus[];
  /**
   * Ends the tree, leaves first; siblings in the reverse order of their `after`. A runnable that has not returned
   * `deadlineMs` after it was told is left behind and its parent's turn comes. Nothing is started again. Resolves with
   * the names left behind.
   */
  stop(deadlineMs: number): Promise<string[]>;
  /** Calls back after each change of state; the returned function ends it. */
  onChange(listener: (status: RunnableStatus) => void): () => void;
}

const BACKOFF_FIRST_MS = 500;
const BACKOFF_FACTOR = 1.5;
const BACKOFF_CAP_MS = 60_000;
/** Each wait is shortened by up to this share, so that what fell together does not return in step. */
const BACKOFF_JITTER = 0.3;
/**
 * Health this long forgives earlier deaths. As long as the cap: what falls more often than once a minute keeps climbing
 * to the cap, and what falls less often costs no more starts than something at the cap does.
 */
const FORGIVEN_AFTER_HEALTHY_MS = 60_000;
const DISPOSE_DEADLINE_MS = 10_000;

/** The wait before start number `deaths + 1`, in milliseconds; `random` in [0, 1) shortens it. */
export function backoffMs(deaths: number, random: number): number {
  const full = Math.min(BACKOFF_CAP_MS, BACKOFF_FIRST_MS * BACKOFF_FACTOR ** Math.max(0, deaths - 1));
  return full * (1 - BACKOFF_JITTER * random);
}

/** A place in the tree; lives as long as its parent's instance. */
interface Node {
  name: string;
  runnable: Runnable;
  group: Group;
  state: RunnableState;
  sinceMs: number;
  restarts: number;
  /** Deaths without a forgiving stretch of health between them. */
  deaths: number;
  lastExit: string | null;
  instance: Instance | null;
}

interface Group {
  parent: Instance | null;
  members: Node[];
  after: readonly string[];
  /** A member died: all end, then all start again. */
  failing: boolean;
  /** The parent ends: all end for good. */
  cancelled: boolean;
  cancelTimer: (() => void) | null;
}

/** One run of a node, with the children that this run started. */
interface Instance {
  node: Node;
  controller: AbortController;
  groups: Group[];
  children: Map<string, Node>;
  healthySinceMs: number | null;
  saidDone: boolean;
  /** Its promise has settled. */
  ended: boolean;
  died: boolean;
  whenEnded: PromiseWithResolvers<void>;
}

export function startSupervisor(root: Runnable, options: SupervisorOptions): Supervisor {
  const tree = new Tree(options);
  tree.start(root);
  return {
    status: () => tree.status(),
    stop: (deadlineMs) => tree.stop(deadlineMs),
    onChange: (listener) => tree.onChange(listener),
    [Symbol.asyncDispose]: async () => {
      await tree.stop(DISPOSE_DEADLINE_MS);
    },
  };
}

class Tree {
  readonly #log: LogStore;
  readonly #clock: Clock;
  readonly #random: () => number;
  readonly #rootGroup: Group;
  readonly #rootName: string;
  readonly #listeners = new Set<(status: RunnableStatus) => void>();
  #stopped: Promise<string[]> | null = null;

  constructor(options: SupervisorOptions) {
    this.#log = options.log;
    this.#clock = options.clock ?? systemClock;
    this.#random = options.random ?? Math.random;
    this.#rootName = options.name ?? 'init';
    this.#rootGroup = newGroup(null, []);
  }

  start(root: Runnable): void {
    this.#rootGroup.members.push(this.#newNode(this.#rootName, root, this.#rootGroup));
    this.#startGroup(this.#rootGroup);
  }

  status(): RunnableStatus[] {
    const found: RunnableStatus[] = [];
    const visit = (group: Group) => {
      for (const node of group.members) {
        found.push(statusOf(node));
        node.instance?.groups.forEach(visit);
      }
    };
    visit(this.#rootGroup);
    return found;
  }

  onChange(listener: (status: RunnableStatus) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  stop(deadlineMs: number): Promise<string[]> {
    this.#stopped ??= this.#stopAll(deadlineMs);
    return this.#stopped;
  }

  // ---- starting

  #startGroup(group: Group): void {
    if (!group.after.every((name) => isUp(group.parent?.children.get(name)))) {
      for (const node of group.members) this.#setState(node, 'WAITING');
      return;
    }
    // All members exist before the first of them runs, so that none sees half a group.
    const instances = group.members.map((node) => newInstance(node));
    for (const instance of instances) this.#setState(instance.node, 'STARTING');
    for (const instance of instances) this.#launch(instance);
  }

  #launch(instance: Instance): void {
    const { node } = instance;
    const ctx = this.#contextOf(instance);
    // Started in a microtask: a runnable that throws at once must not do so inside the call to run().
    Promise.resolve()
      .then(() => node.runnable(ctx))
      .then(
        () => this.#ended(instance, null),
        (error: unknown) => this.#ended(instance, error instanceof Error ? error : new Error(String(error))),
      )
      .catch((error: unknown) => {
        // A fault of the supervisor itself must not vanish in a promise: PID 1's last resort deals with it.
        queueMicrotask(() => {
          throw error;
        });
      });
  }

  #contextOf(instance: Instance): RunnableContext {
    const { node } = instance;
    return {
      name: node.name,
      signal: instance.controller.signal,
      log: this.#log.logger(node.name),
      run: (name, runnable, options) => this.#addGroup(instance, { [name]: runnable }, options),
      runGroup: (members, options) => this.#addGroup(instance, members, options),
      healthy: () => {
        if (instance.healthySinceMs !== null) {
          throw new Error(`cannot call healthy() twice in ${node.name}: it is said once a start`);
        }
        this.#becameHealthy(instance);
      },
      done: () => {
        instance.saidDone = true;
        if (instance.healthySinceMs === null) this.#becameHealthy(instance);
      },
    };
  }

  #addGroup(parent: Instance, members: Record<string, Runnable>, options: RunOptions = {}): void {
    const names = Object.keys(members);
    const refusal = this.#refusalToRun(parent, names, options.after ?? []);
    if (refusal !== null) {
      throw new Error(`cannot run ${names.join(', ') || 'an empty group'} under ${parent.node.name}: ${refusal}`);
    }
    const group = newGroup(parent, options.after ?? []);
    const prefix = parent.node.group === this.#rootGroup ? '' : `${parent.node.name}.`;
    for (const [name, runnable] of Object.entries(members)) {
      const node = this.#newNode(prefix + name, runnable, group);
      group.members.push(node);
      parent.children.set(name, node);
    }
    parent.groups.push(group);
    this.#startGroup(group);
  }

  #refusalToRun(parent: Instance, names: string[], after: readonly string[]): string | null {
    if (names.length === 0) return 'it has no members';
    if (this.#stopped !== null) return 'the supervisor is stopping';
    if (parent.controller.signal.aborted || parent.ended) return 'it has ended or must end';
    for (const name of names) {
      if (!/^[a-z0-9][a-z0-9_-]*$/.test(name)) return `the name ${JSON.stringify(name)} is not [a-z0-9_-]+`;
      if (parent.children.has(name)) return `it has a child ${name} already`;
    }
    // Only what exists can be waited for, which also makes a cycle impossible.
    const unknown = after.find((name) => !parent.children.has(name));
    return unknown === undefined ? null : `it comes after ${unknown}, which is not a child of it yet`;
  }

  #becameHealthy(instance: Instance): void {
    instance.healthySinceMs = this.#clock.nowMs();
    if (instance.controller.signal.aborted || instance.ended) return;
    this.#setState(instance.node, 'HEALTHY');
    const { group } = instance.node;
    for (const sibling of group.parent?.groups ?? []) {
      if (sibling.members.every((node) => node.state === 'WAITING')) this.#startGroup(sibling);
    }
  }

  // ---- dying

  #ended(instance: Instance, error: Error | null): void {
    const { node } = instance;
    instance.ended = true;
    instance.whenEnded.resolve();
    if (instance.controller.signal.aborted) {
      // It was told to end; an error thrown on the way out is the usual way to unwind.
      node.lastExit = `stopped: ${describe(instance.controller.signal.reason)}`;
    } else if (instance.saidDone && error === null) {
      node.lastExit = 'done';
      this.#setState(node, 'DONE');
    } else {
      this.#died(instance, error === null ? 'returned before it was done' : describe(error));
    }
    this.#checkGroup(node.group);
  }

  #died(instance: Instance, reason: string): void {
    const { node } = instance;
    const healthyMs = instance.healthySinceMs === null ? 0 : this.#clock.nowMs() - instance.healthySinceMs;
    instance.died = true;
    node.deaths = healthyMs >= FORGIVEN_AFTER_HEALTHY_MS ? 1 : node.deaths + 1;
    node.lastExit = reason;
    this.#log.append(node.name, 'ERROR', `died: ${reason}`);
    node.group.failing = true;
    for (const member of node.group.members) {
      if (member.instance !== null) this.#cancel(member.instance, new Error(`${node.name} died`));
    }
  }

  /** Tells an instance and all below it to end. */
  #cancel(instance: Instance, reason: Error): void {
    if (instance.node.state !== 'STOPPED') this.#setState(instance.node, 'STOPPING');
    for (const group of instance.groups) {
      group.cancelled = true;
      group.cancelTimer?.();
      group.cancelTimer = null;
      for (const node of group.members) {
        if (node.instance === null) this.#setState(node, 'STOPPED');
        else this.#cancel(node.instance, reason);
      }
    }
    if (!instance.controller.signal.aborted) instance.controller.abort(reason);
  }

  /** When all of a group that must end has ended: starts its backoff, or lets the parent's group be checked. */
  #checkGroup(group: Group): void {
    if (!group.members.every((node) => node.instance === null || hasSettled(node.instance))) return;
    if (group.cancelled) {
      for (const node of group.members) {
        if (node.instance !== null) this.#setState(node, 'STOPPED');
      }
      if (group.parent !== null) this.#checkGroup(group.parent.node.group);
    } else if (group.failing) {
      this.#scheduleRestart(group);
    }
  }

  #scheduleRestart(group: Group): void {
    const deaths = Math.max(...group.members.map((node) => (node.instance?.died === true ? node.deaths : 0)));
    const delayMs = backoffMs(deaths, this.#random());
    group.failing = false;
    for (const node of group.members) {
      node.instance = null;
      this.#setState(node, 'BACKOFF');
    }
    const names = group.members.map((node) => node.name).join(', ');
    const first = group.members[0];
    if (first !== undefined) {
      this.#log.append(first.name, 'INFO', `starting ${names} again in ${(delayMs / 1000).toFixed(1)} s`);
    }
    group.cancelTimer = this.#clock.schedule(delayMs, () => {
      group.cancelTimer = null;
      for (const node of group.members) node.restarts += 1;
      this.#startGroup(group);
    });
  }

  // ---- the ordered stop

  async #stopAll(deadlineMs: number): Promise<string[]> {
    // Whatever waits to start will not; from here on `run` refuses too.
    const stopIdle = (group: Group) => {
      group.cancelled = true;
      group.cancelTimer?.();
      group.cancelTimer = null;
      for (const node of group.members) {
        if (node.instance === null) this.#setState(node, 'STOPPED');
        else node.instance.groups.forEach(stopIdle);
      }
    };
    stopIdle(this.#rootGroup);
    const leftBehind: string[] = [];
    await this.#stopGroups([this.#rootGroup], deadlineMs, leftBehind);
    return leftBehind;
  }

  async #stopGroups(groups: readonly Group[], deadlineMs: number, leftBehind: string[]): Promise<void> {
    const stopping = new Map<Group, Promise<void>>();
    const stopOnce = (group: Group): Promise<void> => {
      const started = stopping.get(group);
      if (started !== undefined) return started;
      const dependents = groups.filter((other) => other !== group && comesAfter(other, group));
      const stopped = Promise.all(dependents.map(stopOnce)).then(async () => {
        await Promise.all(group.members.map((node) => this.#stopNode(node, deadlineMs, leftBehind)));
      });
      stopping.set(group, stopped);
      return stopped;
    };
    await Promise.all(groups.map(stopOnce));
  }

  async #stopNode(node: Node, deadlineMs: number, leftBehind: string[]): Promise<void> {
    const { instance } = node;
    if (instance === null) return;
    await this.#stopGroups(instance.groups, deadlineMs, leftBehind);
    this.#cancel(instance, new Error('ordered stop'));
    const outOfTime = Promise.withResolvers<void>();
    const cancelTimer = this.#clock.schedule(deadlineMs, outOfTime.resolve);
    await Promise.race([instance.whenEnded.promise, outOfTime.promise]);
    cancelTimer();
    if (instance.ended) {
      this.#setState(node, 'STOPPED');
      return;
    }
    node.lastExit = `did not stop within ${deadlineMs} ms`;
    this.#log.append(node.name, 'ERROR', node.lastExit);
    leftBehind.push(node.name);
  }

  // ---- bookkeeping

  #newNode(name: string, runnable: Runnable, group: Group): Node {
    const sinceMs = this.#clock.nowMs();
    const counts = { restarts: 0, deaths: 0, lastExit: null, instance: null };
    return { name, runnable, group, state: 'WAITING', sinceMs, ...counts };
  }

  #setState(node: Node, state: RunnableState): void {
    if (node.state === state) return;
    node.state = state;
    node.sinceMs = this.#clock.nowMs();
    for (const listener of this.#listeners) listener(statusOf(node));
  }
}

function newGroup(parent: Instance | null, after: readonly string[]): Group {
  return { parent, members: [], after, failing: false, cancelled: false, cancelTimer: null };
}

function newInstance(node: Node): Instance {
  const instance: Instance = {
    node,
    controller: new AbortController(),
    groups: [],
    children: new Map(),
    healthySinceMs: null,
    saidDone: false,
    ended: false,
    died: false,
    whenEnded: Promise.withResolvers<void>(),
  };
  node.instance = instance;
  return instance;
}

function isUp(node: Node | undefined): boolean {
  return node?.state === 'HEALTHY' || node?.state === 'DONE';
}

function hasSettled(instance: Instance): boolean {
  if (!instance.ended) return false;
  return instance.groups.every((group) =>
    group.members.every((node) => node.instance === null || hasSettled(node.instance)),
  );
}

function comesAfter(later: Group, earlier: Group): boolean {
  return earlier.members.some((node) => later.after.includes(node.name.slice(node.name.lastIndexOf('.') + 1)));
}

function statusOf({ name, state, sinceMs, restarts, lastExit }: Node): RunnableStatus {
  return { name, state, sinceMs, restarts, lastExit };
}

function describe(reason: unknown): string {
  return reason instanceof Error ? reason.message : String(reason);
}
