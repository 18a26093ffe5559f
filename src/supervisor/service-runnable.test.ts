import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { createLogStore } from './log-store.ts';
import { loadServiceManifests } from './service-manifest.ts';
import {
  exitText,
  nodeServiceHost,
  serviceRunnable,
  serviceStatuses,
  stopDeadlineMs,
  writeServiceConfiguration,
} from './service-runnable.ts';
import { startSupervisor } from './supervisor.ts';

const manifests = loadServiceManifests(join(import.meta.dirname, '../../image/system/services'));
const chrony = manifests.find((one) => one.name === 'chrony');
assert.ok(chrony);

function temporaryDirectory(): { path: string } & Disposable {
  const path = mkdtempSync(join(tmpdir(), 'services-'));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
}

test('the end of crun tells how the service ended', () => {
  assert.equal(exitText(0, null), 'exited with status 0');
  assert.equal(exitText(1, null), 'exited with status 1');
  assert.equal(exitText(137, null), 'killed by SIGKILL');
  assert.equal(exitText(143, null), 'killed by SIGTERM');
  assert.equal(exitText(null, 'SIGKILL'), 'crun was killed by SIGKILL');
});

test('services are shown by their own names wherever they run, and those not started yet as waiting', () => {
  const statuses = [
    { name: 'services.etcd', state: 'HEALTHY' as const, sinceMs: 400, restarts: 2, lastExit: 'killed by SIGKILL' },
    { name: 'network.dhcpcd', state: 'STARTING' as const, sinceMs: 900, restarts: 0, lastExit: null },
  ];
  const shown = serviceStatuses(manifests, ['control'], statuses, 1000);
  assert.deepEqual(shown, [
    { name: 'etcd', state: 'HEALTHY', sinceMs: 600, restarts: 2, lastExit: 'killed by SIGKILL', healthy: true },
    { name: 'curator', state: 'WAITING', sinceMs: 1000, restarts: 0, lastExit: '', healthy: false },
  ]);
  const dhcpcd = serviceStatuses(manifests, ['node'], statuses, 1000).find((one) => one.name === 'dhcpcd');
  assert.deepEqual([dhcpcd?.state, dhcpcd?.healthy], ['STARTING', false]);
});

test('the deadline of an ordered stop leaves room for the slowest service and for killing it', () => {
  assert.ok(stopDeadlineMs(manifests) > Math.max(...manifests.map((one) => one.stop.deadlineMs)) + 5000);
});

test('a configuration can be read by its service and by no other', {
  skip: process.getuid?.() === 0 ? false : 'changing owners needs root',
}, () => {
  using directory = temporaryDirectory();
  const host = { ...nodeServiceHost(createLogStore()), configDirectory: directory.path };
  writeServiceConfiguration(host, chrony, { 'chrony.conf': 'port 0\n' });
  const path = join(directory.path, 'chrony', 'chrony.conf');
  assert.equal(readFileSync(path, 'utf8'), 'port 0\n');
  for (const [place, mode] of [
    [path, 0o640],
    [join(path, '..'), 0o750],
  ] as const) {
    const found = statSync(place);
    assert.deepEqual([found.uid, found.gid, found.mode & 0o777], [0, 203, mode]);
  }
});

test('a machine without cgroup v2 is named as the reason that a service does not start', async () => {
  using directory = temporaryDirectory();
  const log = createLogStore();
  const host = { ...nodeServiceHost(log), cgroupRoot: join(directory.path, 'absent/cgroup') };
  await using supervisor = startSupervisor((ctx) => serviceRunnable(chrony, host)(ctx), { log });
  const failed = new Promise<string>((resolve) => {
    supervisor.onChange(({ state, lastExit }) => {
      if (state === 'BACKOFF') resolve(lastExit ?? '');
    });
  });
  assert.match(await failed, /^cannot set limits for chrony: cgroup v2 is not mounted at .*absent\/cgroup$/);
});
