import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { type GlobalAddress, globalAddresses } from './addresses.ts';
import { chronyConfiguration } from './chrony.ts';
import { type Link, listLinks } from './links.ts';
import { describeLinks, runNetwork } from './network.ts';

const address: GlobalAddress = { interface: 'eth0', family: 4, address: '192.0.2.7', cidr: '192.0.2.7/24' };
const card: Link = { name: 'eth0', isHardware: true, address: '52:54:00:12:34:56', isUp: true, hasCarrier: false };

/** Runs the network with effects that are only noted, until `until` says so. */
async function played(
  looks: (turn: number) => GlobalAddress[],
  until: (events: string[]) => boolean,
): Promise<string[]> {
  const stop = new AbortController();
  const events: string[] = [];
  const note = (event: string) => {
    events.push(event);
    if (until(events)) stop.abort();
  };
  let turn = 0;
  await runNetwork({
    signal: stop.signal,
    services: [],
    say: (text) => note(`say ${text}`),
    startDhcp: () => note('dhcp'),
    onAddress: ({ cidr }) => note(`address ${cidr}`),
    effects: {
      loadFirewall: async () => note('firewall'),
      raiseLoopback: () => note('loopback'),
      links: () => [card],
      addresses: { eagerMs: 1, calmMs: 1, look: () => looks(turn++) },
      noticeFirstMs: 20,
    },
  });
  return events;
}

test('the firewall stands before any link is up, and DHCP comes last', async () => {
  const events = await played(
    () => [address],
    (seen) => seen.length === 4,
  );
  assert.deepEqual(events, ['firewall', 'loopback', 'dhcp', 'address 192.0.2.7/24']);
});

test('a firewall that cannot be loaded leaves the network down', async () => {
  const events: string[] = [];
  const failing = runNetwork({
    signal: new AbortController().signal,
    services: [],
    say: () => {},
    startDhcp: () => events.push('dhcp'),
    onAddress: () => {},
    effects: { loadFirewall: () => Promise.reject(new Error('no nft')), raiseLoopback: () => events.push('loopback') },
  });
  await assert.rejects(failing, /no nft/);
  assert.deepEqual(events, []);
});

test('silence is said at growing intervals with the state of the cards, and an address still comes', async () => {
  const late = Date.now() + 250;
  const events = await played(
    () => (Date.now() < late ? [] : [address]),
    (seen) => (seen.at(-1) ?? '').startsWith('address'),
  );
  const notices = events.filter((event) => event.startsWith('say'));
  assert.equal(notices.length, 3, 'after 20, 60 and 140 ms');
  assert.match(
    notices[0] ?? '',
    /^say no address after 0 s, still asking by DHCP: eth0 \(52:54:00:12:34:56\) no cable$/,
  );
  assert.equal(events.at(-1), 'address 192.0.2.7/24');
});

test('a lost address and another one are told', async () => {
  const looks = [[address], [address], [], [{ ...address, cidr: '192.0.2.9/24' }]];
  const events = await played(
    (turn) => looks[turn] ?? [address],
    (seen) => seen.includes('address 192.0.2.9/24'),
  );
  assert.deepEqual(events.slice(3), ['address 192.0.2.7/24', 'say lost 192.0.2.7/24', 'address 192.0.2.9/24']);
});

test('loopback and link-local addresses are not global, and IPv4 comes first', () => {
  const info = (family: 'IPv4' | 'IPv6', ip: string, internal = false) =>
    ({
      address: ip,
      family,
      internal,
      mac: '',
      netmask: '',
      cidr: `${ip}/64`,
      ...(family === 'IPv6' ? { scopeid: 0 } : {}),
    }) as never;
  const found = globalAddresses({
    lo: [info('IPv4', '127.0.0.1', true)],
    eth0: [
      info('IPv6', 'fe80::1'),
      info('IPv6', '2001:db8::1'),
      info('IPv4', '169.254.7.7'),
      info('IPv4', '192.0.2.7'),
    ],
  });
  assert.deepEqual(
    found.map((one) => one.address),
    ['192.0.2.7', '2001:db8::1'],
  );
});

test('links are read as the kernel shows them', (t) => {
  const sysfs = mkdtempSync(join(tmpdir(), 'links-'));
  t.after(() => rmSync(sysfs, { recursive: true }));
  const link = (name: string, files: Record<string, string>, isDevice: boolean) => {
    const directory = join(sysfs, 'class/net', name);
    mkdirSync(isDevice ? join(directory, 'device') : directory, { recursive: true });
    for (const [file, content] of Object.entries(files)) writeFileSync(join(directory, file), `${content}\n`);
  };
  link('eth0', { type: '1', flags: '0x1003', carrier: '1', address: '52:54:00:12:34:56' }, true);
  link('lo', { type: '772', flags: '0x8', address: '00:00:00:00:00:00' }, false);
  writeFileSync(join(sysfs, 'class/net/bonding_masters'), '');
  assert.deepEqual(listLinks(sysfs), [
    { ...card, hasCarrier: true },
    { name: 'lo', isHardware: false, address: '00:00:00:00:00:00', isUp: false, hasCarrier: false },
  ]);
  assert.equal(describeLinks([]), 'no network card was found');
});

test('a link is really switched on', {
  skip: process.getuid?.() === 0 ? false : 'a network namespace needs root',
}, () => {
  const program = `const { setLinkUp } = await import(${JSON.stringify(new URL('./links.ts', import.meta.url).href)});
    const { readFileSync } = await import('node:fs'); const { networkInterfaces } = await import('node:os');
    const before = Object.keys(networkInterfaces()); setLinkUp('lo'); console.log(JSON.stringify([before, Object.keys(networkInterfaces())]));`;
  const result = spawnSync('unshare', ['--net', process.execPath, '--input-type=module', '-e', program], {
    encoding: 'utf8',
  });
  assert.deepEqual(JSON.parse(result.stdout), [[], ['lo']], result.stderr);
});

test('chrony gets its servers and clocks, opens no port, and takes nothing that is not an address', () => {
  const text = chronyConfiguration({ servers: ['192.0.2.1', '2001:db8::123'], ptpDevices: ['/dev/ptp0'] });
  assert.match(text, /^server 192\.0\.2\.1 iburst\nserver 2001:db8::123 iburst\nrefclock PHC \/dev\/ptp0 poll 2\n/);
  assert.match(text, /^port 0$/m);
  assert.match(text, /^cmdport 0$/m);
  const injected = () => chronyConfiguration({ servers: ['192.0.2.1\nuser root'], ptpDevices: [] });
  assert.throws(injected, /cannot use the time server "192\.0\.2\.1\\nuser root": it is not an IP address/);
  assert.throws(() => chronyConfiguration({ servers: [], ptpDevices: ['/dev/sda'] }), /it is not \/dev\/ptpN/);
});
