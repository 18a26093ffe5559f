/**
 * The operator of a demo's or a test's cluster: the real ashlarctl in a process of its own, with a home of its own, so
 * that a test sees what a person would: output, JSON, exit code.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { type ProcessResult, runProcess } from '../../tools/host/run-process.ts';
import type { Machine } from '../machine/machine.ts';

const ASHLARCTL = join(import.meta.dirname, '..', '..', 'tools', 'ashlarctl', 'main.ts');
const COMMAND_DEADLINE_MS = 120_000;
/** A node is UP from its first heartbeat on, some seconds after its services are healthy. */
const UP_DEADLINE_MS = 90_000;
const POLL_MS = 1000;

/** `ashlarctl node describe --json`: what demo and tests read of it. */
export interface DescribedNode {
  readonly id: string;
  readonly state: string;
  readonly version: string;
  readonly roles: readonly string[];
  readonly pcrs: Readonly<Record<string, string>>;
  readonly secureBoot: string;
  readonly tpm: string;
  readonly memory: { readonly totalBytes: number; readonly availableBytes: number };
  readonly pid1RssBytes: number;
  readonly data: { readonly state: string; readonly createdThisBoot: boolean };
  readonly services: readonly {
    readonly name: string;
    readonly state: string;
    readonly restarts: number;
    readonly lastExit: string;
  }[];
}

/** `127.0.0.1:PORT` that leads to the curator, and to the agent of the one node. */
export interface OperatorEndpoints {
  readonly cluster: string;
  readonly node: string;
}

/** Where a machine with the ports 7400 and 7401 forwarded is reached. */
export async function operatorEndpoints(machine: Machine): Promise<OperatorEndpoints> {
  return { cluster: `127.0.0.1:${await machine.hostPort(7400)}`, node: `127.0.0.1:${await machine.hostPort(7401)}` };
}

export interface OperatorOptions {
  /** Where `cluster prepare` put the owner's key and the node parameters. */
  readonly ownerDirectory: string;
  /** Contexts are stored below it. */
  readonly home: string;
  readonly endpoints: OperatorEndpoints;
}

export class Operator {
  readonly #options: OperatorOptions;

  constructor(options: OperatorOptions) {
    this.#options = options;
  }

  /** Keys of an owner and the node parameters that name them, in `directory`. */
  static async prepare(directory: string): Promise<void> {
    await runAshlarctl(directory, ['cluster', 'prepare', directory]);
  }

  /** The node parameters that `prepare` wrote. */
  static async nodeParameters(ownerDirectory: string): Promise<Uint8Array> {
    return readFile(join(ownerDirectory, 'node-parameters.json'));
  }

  async takeOwnership(fingerprint: string): Promise<void> {
    const { endpoints, ownerDirectory } = this.#options;
    await this.run(
      ...['cluster', 'take-ownership', '--endpoint', endpoints.cluster, '--fingerprint', fingerprint],
      ...['--owner', ownerDirectory, '--endpoint-override', `*=${endpoints.node}`],
    );
  }

  /** The same operator, after the machine's forwarded ports have changed. */
  async useEndpoints(endpoints: OperatorEndpoints): Promise<void> {
    await this.run('context', 'set', '--endpoint', endpoints.cluster, '--endpoint-override', `*=${endpoints.node}`);
  }

  async clusterId(): Promise<string> {
    return ((await this.run('cluster', 'status')) as { clusterId: string }).clusterId;
  }

  /** The firmware's TPM event log, written to a file. */
  async eventLog(nodeId: string, path: string): Promise<void> {
    await this.run('node', 'event-log', nodeId, '--out', path);
  }

  /** The node as `node describe` shows it, once it is UP and all its services are healthy, or as it is at the deadline. */
  async waitForNode(nodeId: string): Promise<DescribedNode> {
    const deadline = performance.now() + UP_DEADLINE_MS;
    for (;;) {
      const node = (await this.run('node', 'describe', nodeId)) as DescribedNode;
      const isUp = node.state === 'UP' && node.services.every(({ state }) => state === 'HEALTHY');
      if (isUp || performance.now() > deadline) return node;
      await sleep(POLL_MS);
    }
  }

  /** Runs ashlarctl with `--json`, and gives its result. @throws ProcessError with what it wrote to stderr */
  async run(...args: string[]): Promise<unknown> {
    const { stdout } = await runAshlarctl(this.#options.home, [...args, '--json']);
    return JSON.parse(stdout);
  }

  /** Runs ashlarctl as it is, whatever its exit code. */
  async attempt(...args: string[]): Promise<ProcessResult> {
    return runAshlarctl(this.#options.home, args, true);
  }
}

async function runAshlarctl(home: string, args: readonly string[], allowFailure = false): Promise<ProcessResult> {
  return runProcess(process.execPath, [ASHLARCTL, ...args], {
    env: { ...(process.env as Record<string, string>), XDG_CONFIG_HOME: home },
    allowFailure,
    signal: AbortSignal.timeout(COMMAND_DEADLINE_MS),
  });
}
