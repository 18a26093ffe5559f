import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash, X509Certificate } from 'node:crypto';
import {
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { ensureIdentity, type NodeIdentity } from './identity.ts';

const uid = process.getuid?.() ?? 0;
const notBefore = new Date('2025-11-20T00:00:00Z');

function dataDirectory(): string {
  return mkdtempSync(join(tmpdir(), 'identity-'));
}

function certificate({ serviceFiles }: NodeIdentity, service: string, file: string): X509Certificate {
  return new X509Certificate(serviceFiles[service]?.[file] ?? '');
}

test('a second boot finds the same identity', async () => {
  const directory = dataDirectory();
  const options = { dataDirectory: directory, roles: ['control', 'node'], notBefore, uid };
  const first = await ensureIdentity(options);
  assert.deepEqual(await ensureIdentity(options), first);
});

test('the node ID is the hash of the key that the agent serves with', async () => {
  const directory = dataDirectory();
  const identity = await ensureIdentity({ dataDirectory: directory, roles: ['node'], notBefore, uid });
  const { nodeId } = identity;
  const served = certificate(identity, 'agent', 'node.crt');
  const spki = served.publicKey.export({ type: 'spki', format: 'der' });
  assert.equal(nodeId, `node-${createHash('sha256').update(spki).digest('hex').slice(0, 16)}`);
  assert.equal(served.subjectAltName, `DNS:${nodeId}.node.ashlar.internal`);
  assert.equal(lstatSync(join(directory, 'node/pki/node.key')).mode & 0o777, 0o600);
});

test("etcd's CA signs server and client, and its key stays with root", async () => {
  const directory = dataDirectory();
  const identity = await ensureIdentity({ dataDirectory: directory, roles: ['control', 'node'], notBefore, uid });
  const ca = certificate(identity, 'etcd', 'ca.crt');
  assert.ok(ca.ca);
  assert.ok(certificate(identity, 'etcd', 'server.crt').verify(ca.publicKey));
  assert.ok(certificate(identity, 'curator', 'etcd-client.crt').verify(ca.publicKey));
  const secret = readFileSync(join(directory, 'node/pki/etcd-ca.key'), 'utf8');
  for (const files of Object.values(identity.serviceFiles)) assert.ok(!Object.values(files).includes(secret));
});

test('a power cut between key and certificate keeps the key', async () => {
  const directory = dataDirectory();
  const options = { dataDirectory: directory, roles: ['node'], notBefore, uid };
  const first = await ensureIdentity(options);
  rmSync(join(directory, 'node/pki/node.crt'));
  assert.equal((await ensureIdentity(options)).nodeId, first.nodeId);
});

test('a damaged key ends in an error and is never replaced', async () => {
  const directory = dataDirectory();
  const options = { dataDirectory: directory, roles: ['node'], notBefore, uid };
  await ensureIdentity(options);
  writeFileSync(join(directory, 'node/pki/node.key'), 'secret rubbish');
  await assert.rejects(
    ensureIdentity(options),
    (error) => error instanceof Error && /damaged/.test(error.message) && !/secret/.test(error.message),
  );
});

test('nothing that a service left in its directory keeps a boot from delivering its keys', async (t) => {
  const attacks: Record<string, (tls: string) => void> = {
    'a directory for the key': (tls) => mkdirSync(join(tls, 'node.key/below'), { recursive: true }),
    'a key of 3 GiB': (tls) => {
      writeFileSync(join(tls, 'node.key'), '');
      truncateSync(join(tls, 'node.key'), 3 * 2 ** 30);
    },
    'a tree deeper than a path may be long': (tls) => makeDeepTree(join(tls, '.node.key.new')),
    'a FIFO for the key': (tls) => execFileSync('mkfifo', [join(tls, 'node.key')]),
    'a link for the directory': (tls) => {
      rmSync(tls, { recursive: true });
      symlinkSync('/', tls);
    },
  };
  for (const [name, attack] of Object.entries(attacks)) {
    await t.test(name, async () => {
      const directory = dataDirectory();
      try {
        const options = { dataDirectory: directory, roles: ['control', 'node'], notBefore, uid };
        const first = await ensureIdentity(options);
        const tls = join(directory, 'services/agent/tls');
        mkdirSync(tls, { recursive: true });
        rmSync(join(tls, 'node.key'), { force: true });
        attack(tls);
        assert.deepEqual(await ensureIdentity(options), first);
      } finally {
        execFileSync('rm', ['-rf', directory]);
      }
    });
  }
});

function makeDeepTree(path: string): void {
  const before = process.cwd();
  mkdirSync(path);
  process.chdir(path);
  for (let depth = 0; depth < 30; depth += 1) {
    mkdirSync('d'.repeat(200));
    process.chdir('d'.repeat(200));
  }
  process.chdir(before);
}
