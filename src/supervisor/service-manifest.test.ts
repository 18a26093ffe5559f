import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { CLUSTER_API_PORT, DHCP_CLIENT_PORT, ETCD_CLIENT_PORT, ETCD_PEER_PORT, NODE_API_PORT } from '../net/ports.ts';
import { ociConfiguration } from './oci-bundle.ts';
import {
  loadServiceManifests,
  mountPoints,
  orderServices,
  parseServiceManifest,
  type ServiceManifest,
  servicesForRoles,
} from './service-manifest.ts';

const directory = join(import.meta.dirname, '../../image/system/services');
const load = (name: string): ServiceManifest =>
  parseServiceManifest(readFileSync(join(directory, `${name}.json`), 'utf8'), `${name}.json`);
const etcd = load('etcd');
/** The etcd manifest with one thing changed, as the text of a file. */
const changed = (change: object) => JSON.stringify({ ...etcd, ...change });

test('the services of the image fit together and start in an order that each asked for', () => {
  const names = loadServiceManifests(directory).map((one) => one.name);
  assert.deepEqual([...names].sort(), ['agent', 'chrony', 'curator', 'dhcpcd', 'etcd']);
  assert.equal(names[0], 'etcd', 'what another waits for goes first');
});

test('a node without the control role runs neither etcd nor the curator', () => {
  const names = servicesForRoles(loadServiceManifests(directory), ['node']).map((one) => one.name);
  assert.deepEqual(names, ['agent', 'chrony', 'dhcpcd']);
});

test('an unknown key is refused by file and name, at any depth', () => {
  assert.throws(
    () => parseServiceManifest(changed({ memroy: 1 }), 'etcd.json'),
    /cannot use the service manifest etcd\.json: memroy is not a key that is known here/,
  );
  assert.throws(
    () => parseServiceManifest(changed({ limits: { ...etcd.limits, swapMax: 1 } }), 'etcd.json'),
    /etcd\.json: limits\.swapMax is not a key/,
  );
});

test('a manifest that contradicts itself is refused', () => {
  const refused = (change: object, reason: RegExp) =>
    assert.throws(() => parseServiceManifest(changed(change), 'etcd.json'), reason);
  refused({ name: 'other' }, /name must be the file's: etcd\.json/);
  refused({ readiness: { kind: 'tcp', port: 9999 } }, /readiness\.port must be one of listens/);
  refused({ readiness: { kind: 'prayer' } }, /readiness\.kind must be one of started, tcp, socket, output/);
  refused({ limits: { ...etcd.limits, memoryHighBytes: 2 ** 30 } }, /memoryHighBytes must not exceed/);
  refused({ capabilities: ['CAP_SYS_ADMIN'] }, /capabilities\[0\] must be one of/);
  refused({ uid: 0 }, /uid must be 1 to 65534/);
  refused({ process: { args: ['/bin/sh'] } }, /process\.args\[0\] must be one of rootfs\.binaries/);
  refused({ mounts: { ...etcd.mounts, tmpfs: [{ target: '/a/../b', sizeBytes: 4096 }] } }, /target must match/);
  assert.throws(() => parseServiceManifest('{', 'etcd.json'), /cannot use the service manifest etcd\.json: .*JSON/);
});

test('a circle, a missing predecessor, and shared uids and ports are refused', () => {
  const a = { ...etcd, name: 'a', after: ['b'], uid: 301, gid: 301, listens: [1] };
  const b = { ...etcd, name: 'b', after: ['a'], uid: 302, gid: 302, listens: [2] };
  assert.throws(() => orderServices([a, b]), /a after b after a is a circle/);
  assert.throws(() => orderServices([a]), /a comes after b, which has no manifest/);
  const alone = { ...b, after: [] };
  assert.throws(() => orderServices([{ ...a, uid: 302 }, alone]), /cannot run a and b together: both have uid 302/);
  assert.throws(() => orderServices([{ ...a, listens: [2] }, alone]), /both have port 2/);
  assert.throws(() => orderServices([{ ...a, roles: ['node'] }, alone]), /a runs where b does not \(role node\)/);
});

test('the ports of the manifests are those of the one list', () => {
  const listens = Object.fromEntries(loadServiceManifests(directory).map((one) => [one.name, one.listens]));
  assert.deepEqual(listens, {
    agent: [NODE_API_PORT],
    chrony: [],
    curator: [CLUSTER_API_PORT],
    dhcpcd: [DHCP_CLIENT_PORT],
    etcd: [ETCD_CLIENT_PORT, ETCD_PEER_PORT],
  });
});

test('etcd listens on loopback only', () => {
  const urls = etcd.process.args.filter((arg) => arg.startsWith('--listen'));
  assert.equal(urls.length, 2);
  assert.ok(urls.every((url) => /=https:\/\/127\.0\.0\.1:\d+$/.test(url)));
});

test('a read-only root has every mount point that is not made in RAM', () => {
  assert.deepEqual(mountPoints(load('agent')), ['/proc', '/dev', '/run', '/tmp', '/data', '/config']);
  assert.ok(mountPoints(load('dhcpcd')).includes('/var/lib/dhcpcd'));
});

test('a bundle holds exactly the capabilities of its manifest, and nothing writable but what it was given', () => {
  const places = { rootfs: '/services/x/rootfs', data: '/d', config: '/c', cgroup: '/services/x/box' };
  for (const manifest of loadServiceManifests(directory)) {
    const oci = ociConfiguration(manifest, places, []);
    for (const set of Object.values(oci.process.capabilities)) assert.deepEqual(set, manifest.capabilities);
    assert.equal(oci.process.noNewPrivileges, true);
    assert.equal(oci.root.readonly, true);
    assert.notEqual(oci.process.user.uid, 0);
    const types = oci.linux.namespaces.map((namespace) => namespace.type);
    assert.deepEqual(types, ['pid', 'mount', 'ipc', 'uts', 'cgroup']);
    for (const mount of oci.mounts.filter((one) => one.type === 'bind' && !one.options.includes('ro'))) {
      assert.equal(mount.destination, '/data');
    }
    for (const mount of oci.mounts) assert.ok(mount.options.includes('nosuid') && mount.options.includes('noexec'));
  }
});
