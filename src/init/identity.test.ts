import assert from 'node:assert/strict';
import { createHash, X509Certificate } from 'node:crypto';
import { lstatSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { ensureIdentity } from './identity.ts';

const uid = process.getuid?.() ?? 0;
const uids = { agent: uid, curator: uid, etcd: uid, root: uid };
const notBefore = new Date('2025-11-20T00:00:00Z');

function dataDirectory(): string {
  return mkdtempSync(join(tmpdir(), 'identity-'));
}

function certificate(directory: string, path: string): X509Certificate {
  return new X509Certificate(readFileSync(join(directory, 'services', path)));
}

test('a second boot finds the same identity', async () => {
  const directory = dataDirectory();
  const options = { dataDirectory: directory, roles: ['control', 'node'], notBefore, uids };
  const first = await ensureIdentity(options);
  assert.deepEqual(await ensureIdentity(options), first);
});

test('the node ID is the hash of the key that the agent serves with', async () => {
  const directory = dataDirectory();
  const { nodeId } = await ensureIdentity({ dataDirectory: directory, roles: ['node'], notBefore, uids });
  const served = certificate(directory, 'agent/tls/node.crt');
  const spki = served.publicKey.export({ type: 'spki', format: 'der' });
  assert.equal(nodeId, `node-${createHash('sha256').update(spki).digest('hex').slice(0, 16)}`);
  assert.equal(served.subjectAltName, `DNS:${nodeId}.node.ashlar.internal`);
  assert.equal(lstatSync(join(directory, 'services/agent/tls/node.key')).mode & 0o777, 0o600);
});

test("etcd's CA signs server and client, and its key stays with root", async () => {
  const directory = dataDirectory();
  await ensureIdentity({ dataDirectory: directory, roles: ['control', 'node'], notBefore, uids });
  const ca = certificate(directory, 'etcd/pki/ca.crt');
  assert.ok(ca.ca);
  for (const path of ['etcd/pki/server.crt', 'curator/etcd/client.crt'])
    assert.ok(certificate(directory, path).verify(ca.publicKey), path);
  const secret = readFileSync(join(directory, 'node/pki/etcd-ca.key'), 'utf8');
  for (const path of ['etcd/pki/server.key', 'curator/etcd/client.key'])
    assert.notEqual(readFileSync(join(directory, 'services', path), 'utf8'), secret);
});

test('what a service did to its copies is undone, and a link it left is not followed', async () => {
  const directory = dataDirectory();
  const options = { dataDirectory: directory, roles: ['node'], notBefore, uids };
  const first = await ensureIdentity(options);
  const elsewhere = join(directory, 'elsewhere');
  mkdirSync(elsewhere);
  writeFileSync(join(elsewhere, 'node.crt'), 'precious');
  rmSync(join(directory, 'services/agent/tls'), { recursive: true });
  symlinkSync(elsewhere, join(directory, 'services/agent/tls'));
  assert.deepEqual(await ensureIdentity(options), first);
  assert.equal(readFileSync(join(elsewhere, 'node.crt'), 'utf8'), 'precious');
  rmSync(join(directory, 'services/agent/tls/node.crt'));
  symlinkSync(join(elsewhere, 'node.crt'), join(directory, 'services/agent/tls/node.crt'));
  await ensureIdentity(options);
  assert.equal(readFileSync(join(elsewhere, 'node.crt'), 'utf8'), 'precious');
  assert.ok(lstatSync(join(directory, 'services/agent/tls/node.crt')).isFile());
});

test('a power cut between key and certificate keeps the key', async () => {
  const directory = dataDirectory();
  const options = { dataDirectory: directory, roles: ['node'], notBefore, uids };
  const first = await ensureIdentity(options);
  rmSync(join(directory, 'node/pki/node.crt'));
  assert.equal((await ensureIdentity(options)).nodeId, first.nodeId);
});

test('a damaged key ends in an error and is never replaced', async () => {
  const directory = dataDirectory();
  const options = { dataDirectory: directory, roles: ['node'], notBefore, uids };
  await ensureIdentity(options);
  writeFileSync(join(directory, 'node/pki/node.key'), 'secret rubbish');
  await assert.rejects(
    ensureIdentity(options),
    (error) => error instanceof Error && /damaged/.test(error.message) && !/secret/.test(error.message),
  );
});
