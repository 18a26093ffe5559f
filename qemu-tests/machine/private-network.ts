/**
 * A network of a test's own, in a network namespace: one switch, one socket to plug a machine into, and a server that
 * answers DHCP and serves files over HTTP, as a machine room has it for network boot. Nothing of it is seen outside.
 *
 *     machine ── tap0 ── br0 (10.66.0.1) ── dnsmasq, file-server.ts
 *
 * It needs root. Closing it takes everything down.
 */
import { randomBytes } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { runProcess } from '../../tools/host/run-process.ts';
import type { MachineNetwork } from './machine-arguments.ts';
import { type SpawnedProgram, spawnProgram } from './spawned-program.ts';

const ADDRESS = '10.66.0.1';
const TAP = 'tap0';
/** Time enough for a server that cannot start to say so. */
const START_MS = 500;

export interface PrivateNetwork extends AsyncDisposable {
  /** For a machine that is plugged in. One at a time. */
  readonly machineNetwork: MachineNetwork;
  /** What was asked of DHCP and HTTP, as the servers logged it. */
  readonly logPath: string;
}

export interface PrivateNetworkOptions {
  /** For logs. */
  readonly directory: string;
  /** Served as `http://10.66.0.1/NAME`, and named to whoever asks by DHCP for a file to boot over HTTP. */
  readonly bootFilePath: string;
}

export async function openPrivateNetwork(options: PrivateNetworkOptions): Promise<PrivateNetwork> {
  const namespace = `ashlar-${process.pid}-${randomBytes(3).toString('hex')}`;
  const logPath = join(options.directory, 'network.log');
  await mkdir(options.directory, { recursive: true });
  await using stack = new AsyncDisposableStack();
  await runProcess('ip', ['netns', 'add', namespace]);
  stack.defer(async () => void (await runProcess('ip', ['netns', 'del', namespace])));
  const link = (...args: string[]) => runProcess('ip', ['-n', namespace, 'link', ...args]);
  await link('set', 'lo', 'up');
  await link('add', 'br0', 'type', 'bridge');
  await runProcess('ip', ['-n', namespace, 'addr', 'add', `${ADDRESS}/24`, 'dev', 'br0']);
  await runProcess('ip', ['-n', namespace, 'tuntap', 'add', 'dev', TAP, 'mode', 'tap']);
  await link('set', TAP, 'master', 'br0');
  for (const name of [TAP, 'br0']) await link('set', name, 'up');

  const inside = (command: string, args: readonly string[]): Promise<SpawnedProgram> =>
    spawnProgram({ command: 'ip', args: ['netns', 'exec', namespace, command, ...args], logPath });
  const url = `http://${ADDRESS}/${basename(options.bootFilePath)}`;
  const servers = [
    stack.use(await inside('dnsmasq', dnsmasqArguments(url))),
    stack.use(await inside(process.execPath, [join(import.meta.dirname, 'file-server.ts'), options.bootFilePath])),
  ];
  await sleep(START_MS);
  for (const server of servers) {
    if (!server.running) throw new Error(`cannot open a private network: a server ended:\n${server.lastWords()}`);
  }
  const opened = stack.move();
  return {
    machineNetwork: { kind: 'tap', namespace, tap: TAP },
    logPath,
    [Symbol.asyncDispose]: () => opened.disposeAsync(),
  };
}

/** UEFI HTTP boot (UEFI specification §24.7): the client says so in its vendor class, and wants the same word back. */
function dnsmasqArguments(url: string): string[] {
  return [
    ...['--keep-in-foreground', '--conf-file=/dev/null', '--port=0', '--log-dhcp', '--log-facility=-', '--user=root'],
    ...['--interface=br0', '--bind-interfaces', '--leasefile-ro', '--dhcp-authoritative', '--pid-file='],
    ...['--dhcp-range=10.66.0.10,10.66.0.99,255.255.255.0,10m'],
    ...['--dhcp-vendorclass=set:http,HTTPClient:Arch:00016', '--dhcp-option-force=tag:http,60,HTTPClient'],
    `--dhcp-boot=tag:http,${url}`,
  ];
}
