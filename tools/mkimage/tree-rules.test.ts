import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { TreeEntry } from './file-tree.ts';
import { createElfReader } from './file-tree.ts';
import { builtText } from './system-tree.ts';
import { checkTree, resolveLink } from './tree-rules.ts';

/** Some small ELF file. */
const KOFFI = join(import.meta.dirname, '../../node_modules/@koromix/koffi-linux-x64/linux_x64/koffi.node');
const ELF = {
  content: { kind: 'host-file', hostPath: KOFFI },
  sha256: createHash('sha256').update(readFileSync(KOFFI)).digest('hex'),
  size: 1,
  origin: 'x',
} as const;
const program = (path: string, mode = 0o755): TreeEntry => ({ type: 'file', path, mode, ...ELF });
const text = (path: string, mode = 0o644, content = 'text'): TreeEntry => ({
  type: 'file',
  path,
  mode,
  ...builtText(content),
});
const check = (...entries: TreeEntry[]) => checkTree('tree', entries, createElfReader());

test('a tree of programs, texts and links that lead somewhere passes', async () => {
  const directories = ['/usr', '/usr/bin'].map((path): TreeEntry => ({ type: 'directory', path, mode: 0o755 }));
  const agent: TreeEntry = { type: 'link', path: '/usr/bin/agent', target: 'etcd', mode: 0o777 };
  await check(...directories, program('/usr/bin/etcd'), text('/usr/share/a.json'), agent);
});

for (const name of [
  'sh',
  'bash',
  'dash',
  'busybox',
  'perl',
  'perl5.40.1',
  'python3.13',
  'lua5.4',
  'mawk',
  'awk',
  'tclsh8.6',
  'ruby3.3',
  'node',
  'env',
  'sudo',
]) {
  test(`${name} is refused wherever it lies`, async () => {
    await assert.rejects(check(program(`/services/x/rootfs/usr/lib/${name}`)), new RegExp(`/${name}: a shell`));
    await assert.rejects(
      check(program('/usr/bin/a'), { type: 'link', path: `/usr/bin/${name}`, target: 'a', mode: 0o777 }),
      /a shell/,
    );
  });
}

test('names that only look alike pass', async () => {
  await check(program('/usr/bin/crash'), text('/usr/share/bash.txt'), text('/usr/lib/ashlar/init.js'));
});

test('a script is refused: the kernel would look for its interpreter', async () => {
  await assert.rejects(check(text('/usr/sbin/start', 0o755, '#!/bin/sh\n')), /start: executable, but no ELF program/);
});

test('setuid, setgid and writable files are refused', async () => {
  await assert.rejects(check(program('/usr/bin/a', 0o4755)), /setuid/);
  await assert.rejects(check(program('/usr/bin/a', 0o2755)), /setuid/);
  await assert.rejects(check(text('/etc/a', 0o666)), /writable by others/);
  await assert.rejects(check({ type: 'directory', path: '/tmp', mode: 0o777 }), /writable by others/);
});

test('kernel modules are refused, compressed or not', async () => {
  for (const name of ['a.ko', 'a.ko.xz', 'a.ko.zst']) {
    await assert.rejects(check(text(`/usr/lib/modules/${name}`)), /a kernel module/);
  }
});

test('a dangling link is refused, and one that leaves its service', async () => {
  await assert.rejects(check({ type: 'link', path: '/a', target: 'nowhere', mode: 0o777 }), /which is not there/);
  const leaving: TreeEntry = { type: 'link', path: '/services/x/rootfs/a', target: '/usr/bin/b', mode: 0o777 };
  await assert.rejects(check(program('/usr/bin/b'), leaving), /which is not there/);
});

test('links are followed through directories, absolute ones from the root of the service', () => {
  const entries: TreeEntry[] = [
    { type: 'directory', path: '/services/x/rootfs', mode: 0o755 },
    { type: 'directory', path: '/services/x/rootfs/usr', mode: 0o755 },
    { type: 'directory', path: '/services/x/rootfs/usr/lib', mode: 0o755 },
    { type: 'link', path: '/services/x/rootfs/lib', target: 'usr/lib', mode: 0o777 },
    text('/services/x/rootfs/usr/lib/file'),
    { type: 'link', path: '/services/x/rootfs/usr/lib/a', target: '/lib/../lib/file', mode: 0o777 },
  ];
  const paths = new Map(entries.map((entry) => [entry.path, entry]));
  assert.equal(resolveLink(paths, '/services/x/rootfs/usr/lib/a')?.path, '/services/x/rootfs/usr/lib/file');
});

test('two links to each other end', () => {
  const entries: TreeEntry[] = [
    { type: 'link', path: '/a', target: 'b', mode: 0o777 },
    { type: 'link', path: '/b', target: 'a', mode: 0o777 },
  ];
  assert.equal(resolveLink(new Map(entries.map((entry) => [entry.path, entry])), '/a'), undefined);
});
