import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { applyFirewall, type FirewallService, firewallRuleset, type NftRuleset } from './firewall.ts';

const NFT = '/usr/sbin/nft';
const MANIFESTS = join(import.meta.dirname, '../../image/system/services');
const services = readdirSync(MANIFESTS).map(
  (file) => JSON.parse(readFileSync(join(MANIFESTS, file), 'utf8')) as FirewallService,
);

/** Why packets cannot be tried here, or false when they can. */
function whyNoNetns(): string | false {
  if (process.getuid?.() !== 0) return 'network namespaces need root';
  const probe = spawnSync('unshare', ['--net', NFT, 'list', 'ruleset'], { encoding: 'utf8' });
  return probe.status === 0 ? false : `nft cannot run in a network namespace here: ${probe.stderr ?? probe.error}`;
}

function run(command: string, ...args: string[]): string {
  return execFileSync(command, args, { encoding: 'utf8', timeout: 10_000 });
}

/** Two machines joined by a cable: the node (10.77.0.1) and a stranger (10.77.0.2), each a network namespace. */
function twoMachines(t: TestContext) {
  const node = `ashlar-fw-node-${process.pid}`;
  const stranger = `ashlar-fw-out-${process.pid}`;
  run('ip', 'netns', 'add', node);
  run('ip', 'netns', 'add', stranger);
  t.after(() => [node, stranger].forEach((name) => run('ip', 'netns', 'del', name)));
  run('ip', '-n', node, 'link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', stranger);
  const hosts: [string, number][] = [
    [node, 1],
    [stranger, 2],
  ];
  for (const [name, host] of hosts) {
    run('ip', '-n', name, 'addr', 'add', `10.77.0.${host}/24`, 'dev', 'eth0');
    run('ip', '-n', name, 'addr', 'add', `fd77::${host}/64`, 'dev', 'eth0', 'nodad');
    run('ip', '-n', name, 'link', 'set', 'eth0', 'up');
    run('ip', '-n', name, 'link', 'set', 'lo', 'up');
  }
  return { node, stranger };
}

const uidOf = (name: string) => services.find((service) => service.name === name)?.uid ?? assert.fail(name);

/** TCP and UDP servers in a namespace, of a service's uid or root's; resolves when they listen. */
async function listenIn(
  t: TestContext,
  netns: string,
  { tcp, udp = [], as }: { tcp: number[]; udp?: number[]; as?: string },
): Promise<() => void> {
  const program = `
    const done = ${JSON.stringify(tcp)}.map((port) => new Promise((ok) => require('node:net').createServer((s) => s.end('tcp')).listen(port, '::', ok)));
    for (const port of ${JSON.stringify(udp)}) {
      const socket = require('node:dgram').createSocket('udp4');
      socket.on('message', (m, from) => socket.send('udp', from.port, from.address));
      done.push(new Promise((ok) => socket.bind(port, ok)));
    }
    Promise.all(done).then(() => console.log('listening'));`;
  const child = spawn('ip', ['netns', 'exec', netns, ...nodeAs(as), program], { stdio: ['ignore', 'pipe', 'inherit'] });
  const end = () => child.kill('SIGKILL');
  t.after(end);
  await new Promise((resolve) => child.stdout.once('data', resolve));
  return end;
}

/** Node.js for a program, with the uid of a service; it may bind low ports, as dhcpcd may. */
function nodeAs(service: string | undefined): string[] {
  const node = [process.execPath, '-e'];
  if (service === undefined) return node;
  const uid = uidOf(service);
  const capabilities = ['--inh-caps=+net_bind_service', '--ambient-caps=+net_bind_service'];
  return ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', ...capabilities, ...node];
}

/** What a connection from `netns` gets within a second: the server's word, or `silence`. */
function tcpFrom(netns: string, host: string, port: number, as?: string): string {
  const program = `const s = require('node:net').connect(${port}, '${host}'); s.on('data', (d) => { console.log(String(d)); process.exit(); });
    s.on('error', (e) => { console.log(e.code); process.exit(); }); setTimeout(() => { console.log('silence'); process.exit(); }, 500);`;
  return run('ip', 'netns', 'exec', netns, ...nodeAs(as), program).trim();
}

function udpFrom(netns: string, fromPort: number, host: string, port: number, as?: string): string {
  const program = `const s = require('node:dgram').createSocket('udp4'); s.on('message', (d) => { console.log(String(d)); process.exit(); });
    s.bind(${fromPort}, () => s.send('x', ${port}, '${host}')); setTimeout(() => { console.log('silence'); process.exit(); }, 500);`;
  return run('ip', 'netns', 'exec', netns, ...nodeAs(as), program).trim();
}

/** Of TCP 443 and 7400 and UDP 53, 67 (from 68) and 123, the ports that answer within a second. */
function reachedFrom(netns: string, host: string, as?: string): number[] {
  const program = `const reached = []; const note = (port) => reached.push(port);
    for (const port of [443, 7400]) require('node:net').connect(port, '${host}').on('data', () => note(port)).on('error', () => {});
    for (const port of [53, 67, 123]) {
      const s = require('node:dgram').createSocket('udp4').on('message', () => note(port)).on('error', () => {});
      s.bind(port === 67 ? 68 : 0, () => s.send('x', port, '${host}', () => {}));
    }
    setTimeout(() => { console.log(JSON.stringify(reached)); process.exit(); }, 500);`;
  const reached = JSON.parse(run('ip', 'netns', 'exec', netns, ...nodeAs(as), program)) as number[];
  return [443, 7400, 53, 67, 123].filter((port) => reached.includes(port));
}

function pings(netns: string, host: string): boolean {
  return spawnSync('ip', ['netns', 'exec', netns, 'ping', '-c', '1', '-W', '1', host]).status === 0;
}

function loadIn(t: TestContext, netns: string, ruleset: NftRuleset): Promise<void> {
  return applyFirewall(ruleset, { command: ['/usr/sbin/ip', 'netns', 'exec', netns, NFT], file: rulesetFile(t) });
}

function rulesetFile(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'firewall-'));
  t.after(() => rmSync(directory, { recursive: true }));
  return join(directory, 'firewall.json');
}

test('a stranger reaches the two APIs and nothing else', { skip: whyNoNetns() }, async (t) => {
  const { node, stranger } = twoMachines(t);
  await listenIn(t, node, { tcp: [22], udp: [5353] });
  await listenIn(t, node, { tcp: [7400], as: 'curator' });
  await listenIn(t, node, { tcp: [7401], as: 'agent' });
  await listenIn(t, node, { tcp: [2379], as: 'etcd' });
  await listenIn(t, node, { tcp: [], udp: [68], as: 'dhcpcd' });
  assert.equal(tcpFrom(stranger, '10.77.0.1', 22), 'tcp', 'without a firewall everything answers');
  await loadIn(t, node, firewallRuleset({ services, logsDrops: false }));

  assert.equal(tcpFrom(stranger, '10.77.0.1', 7400), 'tcp');
  assert.equal(tcpFrom(stranger, 'fd77::1', 7401), 'tcp', 'over IPv6, whose neighbour discovery must pass');
  assert.equal(tcpFrom(stranger, '10.77.0.1', 22), 'silence');
  assert.equal(tcpFrom(stranger, '10.77.0.1', 2379), 'silence', 'etcd');
  assert.equal(udpFrom(stranger, 67, '10.77.0.1', 68), 'udp', 'a DHCP server may answer');
  assert.equal(udpFrom(stranger, 1067, '10.77.0.1', 68), 'silence', 'not from another port');
  assert.equal(udpFrom(stranger, 67, '10.77.0.1', 5353), 'silence');
  if (spawnSync('ping', ['-V']).status === 0) {
    assert.ok(pings(stranger, '10.77.0.1') && pings(stranger, 'fd77::1'));
  }
  assert.equal(tcpFrom(node, '127.0.0.1', 2379), 'tcp', 'the node reaches itself');
});

test('a service reaches what it needs and nothing else', { skip: whyNoNetns() }, async (t) => {
  const { node, stranger } = twoMachines(t);
  await listenIn(t, stranger, { tcp: [443, 7400], udp: [53, 67, 123] });
  await listenIn(t, node, { tcp: [2379], as: 'etcd' });
  const names = [undefined, ...services.map(({ name }) => name)];
  const reach = () => names.map((as) => [as ?? 'root', reachedFrom(node, '10.77.0.2', as)]);
  const hasPing = spawnSync('ping', ['-V']).status === 0;
  if (hasPing) assert.ok(pings(node, '10.77.0.2'));
  const everything = names.map((as) => [as ?? 'root', [443, 7400, 53, 67, 123]]);
  assert.deepEqual(reach(), everything, 'without a firewall');
  await loadIn(t, node, firewallRuleset({ services, logsDrops: false }));
  assert.deepEqual(Object.fromEntries(reach()), {
    root: [],
    agent: [7400],
    chrony: [123],
    curator: [],
    dhcpcd: [67],
    etcd: [],
  });
  assert.equal(tcpFrom(node, 'fd77::2', 7400, 'agent'), 'tcp', 'over IPv6, whose neighbour discovery must pass');
  assert.equal(tcpFrom(node, 'fd77::2', 443, 'agent'), 'silence');
  assert.ok(!(hasPing && pings(node, '10.77.0.2')), 'ICMP is for the kernel, not for processes');
  for (const as of names) assert.equal(tcpFrom(node, '127.0.0.1', 2379, as), 'tcp', `${as} over loopback`);
});

test("who takes another service's port is not heard, and the kernel answers for a port without a listener", {
  skip: whyNoNetns(),
}, async (t) => {
  const { node, stranger } = twoMachines(t);
  await loadIn(t, node, firewallRuleset({ services, logsDrops: false }));
  const ways = [
    [stranger, '10.77.0.1'],
    [stranger, 'fd77::1'],
    [node, '127.0.0.1'],
  ] as const;
  for (const [port, owner, impostor] of [
    [7400, 'curator', 'etcd'],
    [7401, 'agent', 'curator'],
  ] as const) {
    const end = await listenIn(t, node, { tcp: [port], as: impostor });
    for (const [from, to] of ways) assert.equal(tcpFrom(from, to, port), 'silence', `${impostor} on ${port}`);
    end();
    const rightful = await listenIn(t, node, { tcp: [port], as: owner });
    for (const [from, to] of ways) assert.equal(tcpFrom(from, to, port), 'tcp', `${owner} on ${port}`);
    rightful();
    assert.equal(tcpFrom(stranger, '10.77.0.1', port), 'ECONNREFUSED');
  }
});

test('loading the ruleset again replaces it, and a refused one leaves the old one standing', {
  skip: whyNoNetns(),
}, async (t) => {
  const { node } = twoMachines(t);
  const rules = () => run('ip', 'netns', 'exec', node, NFT, 'list', 'ruleset').replaceAll(/packets \d+ bytes \d+/g, '');
  await loadIn(t, node, firewallRuleset({ services, logsDrops: false }));
  const once = rules();
  await loadIn(t, node, firewallRuleset({ services, logsDrops: false }));
  assert.equal(rules(), once);
  assert.match(once, /policy drop/);
  const elsewhere = { add: { rule: { family: 'inet', table: 'nowhere', chain: 'x', expr: [] } } };
  const broken = { nftables: [...firewallRuleset({ services, logsDrops: false }).nftables, elsewhere] };
  await assert.rejects(
    loadIn(t, node, broken),
    /cannot load the firewall: nft ended with 1: .*No such file or directory/s,
  );
  assert.equal(rules(), once);
});

test('a missing nft is an error that names it', async (t) => {
  const options = { command: ['/no/such/nft'], file: rulesetFile(t) };
  await assert.rejects(
    applyFirewall(firewallRuleset({ services }), options),
    /cannot load the firewall: spawn \/no\/such\/nft ENOENT/,
  );
});

test('every chain drops by default, and a port is open only where a service listens on it', () => {
  const policies = (ruleset: ReturnType<typeof firewallRuleset>) =>
    [...JSON.stringify(ruleset).matchAll(/"name":"(input|forward|output)"[^}]*"policy":"(\w+)"/g)].map(
      ([, name, policy]) => `${name} ${policy}`,
    );
  assert.deepEqual(policies(firewallRuleset({ services })), ['input drop', 'forward drop', 'output drop']);
  const opened = (names: string[]) => {
    const some = services.filter(({ name }) => names.includes(name));
    const text = JSON.stringify(firewallRuleset({ services: some }));
    return [...text.matchAll(/"field":"dport"\}\},"right":(\d+)\}\},\{"match":\{"op":"in"/g)].map(([, port]) =>
      Number(port),
    );
  };
  assert.deepEqual(opened(['agent', 'curator', 'etcd']), [7400, 7401]);
  assert.deepEqual(opened(['agent', 'chrony', 'dhcpcd']), [7401]);
});
