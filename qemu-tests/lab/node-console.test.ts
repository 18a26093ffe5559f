import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bootTimeline, kernelTimeMs, nodeConsole } from './node-console.ts';

test('the firmware ends where the kernel clock began', () => {
  const timeline = bootTimeline([
    { index: 0, atMs: 3000, text: 'BdsDxe: loading Boot0001' },
    { index: 1, atMs: 9500, text: '[    2.500] init.stage1: start' },
    { index: 2, atMs: 12000, text: '[    5.000] init.network: up 10.0.2.15/24' },
  ]);
  assert.deepEqual(timeline, [
    { stage: 'firmware', atMs: 7000 },
    { stage: 'stage 1', atMs: 9500 },
    { stage: 'network', atMs: 12000 },
  ]);
});

test('a stage that comes again counts once, at its first time', () => {
  const timeline = bootTimeline([
    { index: 0, atMs: 9500, text: '[    2.500] init.services: etcd healthy' },
    { index: 1, atMs: 19500, text: '[   12.500] init.services: etcd healthy' },
  ]);
  assert.deepEqual(timeline.at(-1), { stage: 'etcd healthy', atMs: 9500 });
});

test('kernel times have three or six decimals', () => {
  assert.equal(kernelTimeMs('[    2.500] init: x'), 2500);
  assert.equal(kernelTimeMs('[   12.345678] kernel'), 12345);
  assert.equal(kernelTimeMs('BdsDxe: [1.2]'), undefined);
});

test('the line that ends a boot names its stage and its reason', () => {
  const match = nodeConsole.failed.exec('[    7.001] init: FAILED data: cannot unseal: PCR 12 is 3f');
  assert.deepEqual(match?.slice(1), ['data', 'cannot unseal: PCR 12 is 3f']);
});

test('the fingerprint is that of the cluster API, not the recovery key', () => {
  const fingerprint = `SHA256:${'a'.repeat(43)}`;
  const recovery = `[    6.900] init.data: the recovery key of the data is ${fingerprint}`;
  assert.equal(nodeConsole.fingerprint.exec(recovery), null);
  const own = `[    7.001] init.identity: the cluster API's key is ${fingerprint}`;
  assert.equal(nodeConsole.fingerprint.exec(own)?.[1], fingerprint);
});
