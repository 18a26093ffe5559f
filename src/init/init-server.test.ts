import assert from 'node:assert/strict';
import { mkdtempSync, statSync } from 'node:fs';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { connectInit, InitCallError } from '../rpc/init-client.ts';
import { encodeFrame, FrameDecoder, InitRefusal, type NodeStatus } from '../rpc/init-protocol.ts';
import { createLogStore } from '../supervisor/log-store.ts';
import { type InitService, startInitServer } from './init-server.ts';

const status: NodeStatus = {
  nodeId: 'node-0123456789abcdef',
  version: '0.1.0',
  bootId: 'b',
  slot: 'A',
  stage: 'ready',
  bootTimeMs: 1,
  addresses: ['192.0.2.7/24'],
  roles: ['control', 'node'],
  pcrs: { 11: 'ab'.repeat(32) },
  secureBoot: 'enabled',
  tpm: 'ready',
  memory: { totalBytes: 2, availableBytes: 1 },
  pid1RssBytes: 1,
  timeline: [{ stage: 'init.stage1: start', atMs: 1.5 }],
  data: { state: 'open', createdThisBoot: true, recoveryKeyFingerprint: `SHA256:${'R'.repeat(43)}` },
};

async function start(overrides: Partial<InitService> = {}) {
  const path = join(mkdtempSync(join(tmpdir(), 'init-')), 'init.sock');
  const logStore = createLogStore();
  const stops: string[] = [];
  const service: InitService = {
    status: async () => status,
    services: async () => [],
    eventLog: async () => Uint8Array.of(1, 2, 3),
    attestationIdentity: async () => ({ ekPublic: 'ZWs=', ekCertificates: [], akPublic: 'YWs=' }),
    attest: async ({ nonce }) => ({ quote: nonce, signature: 'c2ln', pcrs: {} }),
    sealing: async () => {
      throw new InitRefusal('UNAVAILABLE', 'the data is not sealed');
    },
    requestReseal: async () => undefined,
    logs: async function* ({ name, follow }, signal) {
      const query = name === undefined ? {} : { name };
      if (follow === true) yield* logStore.follow(query, signal);
      else yield* logStore.read(query);
    },
    stop: (action, reason) => stops.push(`${action}: ${reason}`),
    ...overrides,
  };
  const server = await startInitServer({ path, service, log: logStore.logger('init.server'), gid: 200 });
  return { path, logStore, stops, server };
}

/** Sends raw bytes and returns what comes back until the server closes or a while has passed. */
async function raw(path: string, bytes: Uint8Array, waitMs = 300): Promise<{ replies: unknown[]; closed: boolean }> {
  const socket = connect(path);
  const decoder = new FrameDecoder();
  const replies: unknown[] = [];
  let closed = false;
  socket.on('data', (chunk: Buffer) => replies.push(...decoder.push(chunk)));
  socket.on('close', () => {
    closed = true;
  });
  socket.on('error', () => undefined);
  socket.write(bytes);
  for (let waited = 0; waited < waitMs && !closed; waited += 20) await sleep(20);
  const result = { replies, closed };
  socket.destroy();
  return result;
}

test('a client reads status, services and event log, and asks for a reboot', async () => {
  const { path, stops, server } = await start();
  await using _server = server;
  await using client = await connectInit(path);
  assert.deepEqual({ ...(await client.status()), pcrs: { ...(await client.status()).pcrs } }, status);
  assert.deepEqual(await client.services(), []);
  assert.deepEqual([...(await client.eventLog())], [1, 2, 3]);
  await client.reboot('update');
  assert.deepEqual(stops, ['reboot: update']);
});

test('the socket belongs to root and its group alone', async () => {
  const { path, server } = await start();
  await using _server = server;
  assert.equal(statSync(path).mode & 0o777, 0o660);
});

test('logs are read to their end, and followed until the reader has enough', async () => {
  const { path, logStore, server } = await start();
  await using _server = server;
  await using client = await connectInit(path);
  logStore.append('etcd', 'INFO', 'one');
  logStore.append('init', 'INFO', 'other');
  const read: string[] = [];
  for await (const entry of client.logs({ name: 'etcd' }, new AbortController().signal)) read.push(entry.text);
  assert.deepEqual(read, ['one']);
  const enough = new AbortController();
  for await (const entry of client.logs({ name: 'etcd', follow: true }, enough.signal)) {
    read.push(entry.text);
    if (entry.text === 'two') enough.abort();
    else logStore.append('etcd', 'INFO', 'two');
  }
  assert.deepEqual(read, ['one', 'one', 'two']);
});

test('a malformed frame closes the connection and is said in the log', async () => {
  const { path, logStore, server } = await start();
  await using _server = server;
  assert.ok((await raw(path, Uint8Array.of(0xff, 0xff, 0xff, 0xff))).closed);
  assert.ok((await raw(path, Buffer.from('\x05\0\0\0nope!', 'latin1'))).closed);
  assert.equal(logStore.read({ name: 'init.server' }).filter(({ text }) => /closed a connection/.test(text)).length, 2);
  await using client = await connectInit(path);
  assert.equal((await client.status()).nodeId, status.nodeId);
});

test('an unknown method is answered and the connection goes on', async () => {
  const { path, server } = await start();
  await using _server = server;
  const body = Buffer.from(JSON.stringify({ id: 3, method: 'format' }));
  const { replies, closed } = await raw(path, Buffer.concat([Uint8Array.of(body.length, 0, 0, 0), body]));
  assert.ok(!closed);
  assert.partialDeepStrictEqual(replies, [{ id: 3, error: { code: 'INVALID' } }]);
});

test('what fails inside init reaches the client without its details', async () => {
  const { path, logStore, server } = await start({ status: () => Promise.reject(new Error('detail 42')) });
  await using _server = server;
  await using client = await connectInit(path);
  await assert.rejects(client.status(), (error) => error instanceof InitCallError && !/42/.test(error.message));
  assert.match(logStore.read().at(-1)?.text ?? '', /detail 42/);
});

test('what init refuses reaches the client with its code and its words', async () => {
  const { path, server } = await start();
  await using _server = server;
  await using client = await connectInit(path);
  await assert.rejects(
    client.sealing(),
    (error) => error instanceof InitCallError && error.code === 'UNAVAILABLE' && /is not sealed/.test(error.message),
  );
});

test('an attestation passes through with its bytes unread, and none that is longer than a credential can be', async () => {
  const { path, server } = await start();
  await using _server = server;
  await using client = await connectInit(path);
  const params = { nonce: 'bm9uY2U=', credentialBlob: 'AA==', encryptedSecret: 'AA==' };
  assert.equal((await client.attest(params)).quote, 'bm9uY2U=');
  for (const change of [
    { nonce: 'A'.repeat(48) },
    { credentialBlob: 'A'.repeat(4096) },
    { encryptedSecret: 'not base64' },
  ])
    await assert.rejects(
      client.attest({ ...params, ...change }),
      (error) => error instanceof InitCallError && error.code === 'INVALID',
    );
});

test('a reader that does not read costs no more than its bound, and nobody else anything', async () => {
  let produced = 0;
  const { path, server } = await start({
    logs: async function* () {
      for (; produced < 100_000; produced += 1)
        yield { name: 'etcd', severity: 'INFO' as const, atMs: 1, wallMs: 1, text: 'x'.repeat(1000) };
    },
  });
  await using _server = server;
  const lazy = connect(path);
  lazy.on('error', () => undefined);
  lazy.pause();
  lazy.write(encodeFrame({ id: 1, method: 'logs', params: {} }));
  await sleep(300);
  const stalledAt = produced;
  assert.ok(stalledAt < 5_000, `${stalledAt} entries were taken for a reader that reads none`);
  await using client = await connectInit(path);
  assert.equal((await client.status()).nodeId, status.nodeId);
  lazy.destroy();
});

test('a stream can be cancelled by its id', async () => {
  const { path, server } = await start();
  await using _server = server;
  const { replies } = await raw(
    path,
    Buffer.concat([
      encodeFrame({ id: 9, method: 'logs', params: { follow: true } }),
      encodeFrame({ id: 9, method: 'cancel' }),
    ]),
  );
  assert.deepEqual(replies.at(-1), { id: 9, result: null });
});

test('calls end with an error when init closes', async () => {
  const { path, server } = await start({ status: () => new Promise(() => undefined) });
  await using client = await connectInit(path);
  const call = assert.rejects(client.status(), /init closed/);
  await sleep(50);
  await server[Symbol.asyncDispose]();
  await call;
  assert.ok(client.closed);
});
