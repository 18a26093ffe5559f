import assert from 'node:assert/strict';
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { applyFirewall, firewallRuleset, type NftRuleset } from './firewall.ts';

const NFT = '/usr/sbin/nft';

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

/** TCP and UDP servers on every port of interest, in the node's namespace; resolves when they listen. */
async function listenIn(t: TestContext, netns: string): Promise<void> {
  const program = `
    const ports = [22, 2379, 7400, 7401];
    const done = ports.map((port) => new Promise((ok) => require('node:net').createServer((s) => s.end('tcp')).listen(port, '::', ok)));
    for (const port of [68, 5353]) {
      const socket = require('node:dgram').createSocket('udp4');
      socket.on('message', (m, from) => socket.send('udp', from.port, from.address));
      done.push(new Promise((ok) => socket.bind(port, ok)));
    }
    Promise.all(done).then(() => console.log('listening'));`;
  const child = spawn('ip', ['netns', 'exec', netns, process.execPath, '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  await new Promise((resolve) => child.stdout.once('data', resolve));
}

/** What a connection from `netns` gets within a second: the server's word, or `silence`. */
function tcpFrom(netns: string, host: string, port: number): string {
  const program = `const s = require('node:net').connect(${port}, '${host}'); s.on('data', (d) => { console.log(String(d)); process.exit(); });
    s.on('error', (e) => { console.log(e.code); process.exit(); }); setTimeout(() => { console.log('silence'); process.exit(); }, 500);`;
  return run('ip', 'netns', 'exec', netns, process.execPath, '-e', program).trim();
}

function udpFrom(netns: string, fromPort: number, host: string, port: number): string {
  const program = `const s = require('node:dgram').createSocket('udp4'); s.on('message', (d) => { console.log(String(d)); process.exit(); });
    s.bind(${fromPort}, () => s.send('x', ${port}, '${host}')); setTimeout(() => { console.log('silence'); process.exit(); }, 500);`;
  return run('ip', 'netns', 'exec', netns, process.execPath, '-e', program).trim();
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
  await listenIn(t, node);
  assert.equal(tcpFrom(stranger, '10.77.0.1', 22), 'tcp', 'without a firewall everything answers');
  await loadIn(t, node, firewallRuleset({ logsDrops: false }));

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

test('loading the ruleset again replaces it, and a refused one leaves the old one standing', {
  skip: whyNoNetns(),
}, async (t) => {
  const { node } = twoMachines(t);
  const rules = () => run('ip', 'netns', 'exec', node, NFT, 'list', 'ruleset').replaceAll(/packets \d+ bytes \d+/g, '');
  await loadIn(t, node, firewallRuleset({ logsDrops: false }));
  const once = rules();
  await loadIn(t, node, firewallRuleset({ logsDrops: false }));
  assert.equal(rules(), once);
  assert.match(once, /policy drop/);
  const elsewhere = { add: { rule: { family: 'inet', table: 'nowhere', chain: 'x', expr: [] } } };
  const broken = { nftables: [...firewallRuleset({ logsDrops: false }).nftables, elsewhere] };
  await assert.rejects(
    loadIn(t, node, broken),
    /cannot load the firewall: nft ended with 1: .*No such file or directory/s,
  );
  assert.equal(rules(), once);
});

test('a missing nft is an error that names it', async (t) => {
  const options = { command: ['/no/such/nft'], file: rulesetFile(t) };
  await assert.rejects(
    applyFirewall(firewallRuleset(), options),
    /cannot load the firewall: spawn \/no\/such\/nft ENOENT/,
  );
});

test('both chains that strangers can reach drop by default, and opening a port is one rule', () => {
  const policies = (ruleset: ReturnType<typeof firewallRuleset>) =>
    [...JSON.stringify(ruleset).matchAll(/"name":"(input|forward|output)"[^}]*"policy":"(\w+)"/g)].map(
      ([, name, policy]) => `${name} ${policy}`,
    );
  assert.deepEqual(policies(firewallRuleset()), ['input drop', 'forward drop', 'output accept']);
  const more = firewallRuleset({ openTcpPorts: [7400, 7401, 9000] }).nftables.length;
  assert.equal(more - firewallRuleset().nftables.length, 1);
});
