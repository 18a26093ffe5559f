import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { type InitService, startInitServer } from '../init/init-server.ts';
import {
  type TestIdentity,
  testAuthority,
  testIdentity,
  testNode,
  testOperator,
} from '../rpc/certificates-for-tests.ts';
import { NodeRegistryService } from '../rpc/gen/ashlar/cluster/v1/cluster_pb.ts';
import { NodeService, type NodeStatus, ServiceState } from '../rpc/gen/ashlar/node/v1/node_pb.ts';
import { openChannel, type RpcChannel } from '../rpc/grpc-client.ts';
import { type GrpcServer, serveGrpc } from '../rpc/grpc-server.ts';
import { implement } from '../rpc/grpc-service.ts';
import { InitRefusal } from '../rpc/init-protocol.ts';
import { identify } from '../rpc/permissions.ts';
import { RpcCallError } from '../rpc/rpc-error.ts';
import {
  CURATOR_SERVER_NAME,
  certificateFingerprint,
  nodeIdOf,
  nodeServerName,
  ORGANIZATION,
} from '../rpc/tls-names.ts';
import { runAgent } from './agent.ts';

const quiet = { debug() {}, info() {}, warning() {}, error() {} };
const node = testNode();
const nodeId = nodeIdOf(node.certificate.publicKey);

/** A curator that certifies this node and listens to it: the real server, certificates and permissions. */
class Registry implements AsyncDisposable {
  readonly authority = testAuthority();
  readonly serving = testIdentity({
    name: { organization: ORGANIZATION.curator, commonName: 'curator' },
    issuer: this.authority,
    dnsNames: [CURATOR_SERVER_NAME],
  });
  readonly registered: string[] = [];
  readonly heartbeats: NodeStatus[] = [];
  /** Life of the certificates it issues. */
  days: readonly [from: number, to: number] = [-1, 7];
  port = 0;
  #server: GrpcServer | undefined;

  async start(): Promise<this> {
    const trust = { authority: this.authority.certificate, newNode: node.certificate };
    this.#server = await serveGrpc({
      listen: `127.0.0.1:${this.port}`,
      tls: { ...this.serving, trustedPem: [this.authority.certificatePem, node.certificatePem] },
      identify: (certificate) => identify(certificate, trust, new Date()),
      log: quiet,
      services: [
        implement(NodeRegistryService, {
          registerNode: async (_request, { principal }) => {
            this.registered.push(principal.kind);
            const issued = testIdentity({
              name: { organization: ORGANIZATION.node, commonName: nodeId },
              issuer: this.authority,
              privateKeyPem: node.privateKeyPem,
              dnsNames: [nodeServerName(nodeId)],
              fromDays: this.days[0],
              toDays: this.days[1],
            });
            return {
              certificateDer: issued.certificate.raw,
              caCertificateDer: this.authority.certificate.raw,
              clusterId: 'cluster-test',
            };
          },
          heartbeat: async ({ status }) => {
            if (status !== undefined) this.heartbeats.push(status);
            return {};
          },
        }),
      ],
    });
    this.port = this.#server.port;
    return this;
  }

  async stop(): Promise<void> {
    await this.#server?.close(0);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

interface Fixture extends AsyncDisposable {
  readonly directory: string;
  readonly lines: string[];
  readonly stopped: string[];
  /** What init was asked to attest. */
  readonly attested: unknown[];
  startAgent(fingerprint?: string): Promise<RunningAgent>;
  startInit(): Promise<AsyncDisposable>;
}

interface RunningAgent extends AsyncDisposable {
  /** Rejects when the agent ended without listening. */
  readonly serving: Promise<number>;
  connect(identity: TestIdentity): Promise<RpcChannel>;
}

async function fixture(registry: Registry): Promise<Fixture> {
  const directory = await mkdtemp(join(tmpdir(), 'ashlar-agent-'));
  await mkdir(join(directory, 'tls'));
  const lines: string[] = [];
  const stopped: string[] = [];
  const attested: unknown[] = [];
  const initSocket = join(directory, 'init.sock');
  const line = (text: string) => lines.push(text);
  return {
    directory,
    lines,
    stopped,
    attested,
    startInit: () =>
      startInitServer({
        path: initSocket,
        service: initService(stopped, attested),
        log: quiet,
        gid: process.getgid?.() ?? 0,
      }),
    async startAgent(fingerprint = certificateFingerprint(registry.serving.certificate)) {
      const abort = new AbortController();
      const serving = Promise.withResolvers<number>();
      const running = runAgent({
        config: {
          nodeId,
          listen: '127.0.0.1:0',
          curator: `127.0.0.1:${registry.port}`,
          curatorSpkiSha256: fingerprint,
          initSocket,
          version: '0.0.0-test',
          roles: ['control'],
        },
        keys: node,
        dataDirectory: directory,
        log: { info: line, warning: line, error: line },
        signal: abort.signal,
        onServing: serving.resolve,
      });
      const ended = running.then(
        () => serving.reject(new Error('the agent ended')),
        (error: unknown) => serving.reject(error),
      );
      serving.promise.catch(() => undefined);
      return {
        serving: serving.promise,
        async connect(identity) {
          return openChannel({
            address: `127.0.0.1:${await serving.promise}`,
            serverName: nodeServerName(nodeId),
            trustedPem: [registry.authority.certificatePem],
            identity,
          });
        },
        async [Symbol.asyncDispose]() {
          abort.abort();
          await ended;
        },
      };
    },
    async [Symbol.asyncDispose]() {
      await rm(directory, { recursive: true });
    },
  };
}

const sealing = {
  policyRef: 'ashlar-epoch-3',
  policyKeyFingerprint: 'ab'.repeat(32),
  policyKeyPem: 'PEM',
  pcr7: 'cd'.repeat(32),
  generation: 2,
  anchor: 'ok',
  resealed: '',
  resealRequested: true,
};
const BUSY_NONCE = Buffer.alloc(32, 1).toString('base64');
const REFUSED_NONCE = Buffer.alloc(32, 2).toString('base64');

function initService(stopped: string[], attested: unknown[]): InitService {
  return {
    status: async () => ({
      nodeId,
      version: '0.0.0-test',
      bootId: 'boot-1',
      slot: 'A',
      stage: 'ready',
      bootTimeMs: 1_700_000_000_000.25,
      addresses: ['10.0.2.15/24'],
      roles: ['control'],
      pcrs: { 11: 'ab'.repeat(32) },
      secureBoot: 'enabled',
      tpm: 'ready',
      memory: { totalBytes: 1e9, availableBytes: 5e8 },
      pid1RssBytes: 5e7,
      timeline: [{ stage: 'init.stage1: start', atMs: 12.5 }],
      data: { state: 'open', createdThisBoot: true, recoveryKeyFingerprint: `SHA256:${'R'.repeat(43)}` },
    }),
    services: async () => [
      { name: 'etcd', state: 'HEALTHY', sinceMs: 10, restarts: 0, lastExit: '', healthy: true },
      { name: 'agent', state: 'BACKOFF', sinceMs: 20, restarts: 3, lastExit: 'exited with 1', healthy: false },
    ],
    async *logs({ name, tail = 1000, follow }, signal) {
      if (name === 'nothing') throw Object.assign(new Error('there is no log nothing'), { code: 'NOT_FOUND' });
      const total = Math.min(tail, 500);
      for (let index = 0; index < total; index++) yield entry(`past ${index}`);
      for (let index = 0; follow && !signal.aborted; index++) {
        await new Promise((resolve) => setTimeout(resolve, 5));
        yield entry(`new ${index}`);
      }
    },
    eventLog: async () => null,
    attestationIdentity: async () => ({ ekPublic: 'ZWs=', ekCertificates: ['Y2VydA=='], akPublic: 'YWs=' }),
    attest: async (params) => {
      attested.push(params);
      if (params.nonce === BUSY_NONCE) throw new InitRefusal('BUSY', 'the TPM rests for 7 ms more; ask again');
      if (params.nonce === REFUSED_NONCE) throw new InitRefusal('INVALID', 'the credential is for another TPM');
      return { quote: 'cXVvdGU=', signature: 'c2ln', pcrs: { 0: '00'.repeat(32), 15: 'ff'.repeat(32) } };
    },
    sealing: async () => sealing,
    requestReseal: async ({ reason, pcr7 }) => {
      stopped.push(`reseal: ${reason} ${pcr7 ?? 'as it is'}`);
    },
    stop: (action, reason) => stopped.push(`${action}: ${reason}`),
  };
}

const entry = (text: string) => ({
  name: 'init',
  severity: 'INFO' as const,
  atMs: 1,
  wallMs: 1_700_000_000_000.75,
  text,
});

const withCode = (code: string, details?: RegExp) => (error: unknown) => {
  assert.ok(error instanceof RpcCallError, String(error));
  assert.equal(error.code, code, error.details);
  if (details !== undefined) assert.match(error.details, details);
  return true;
};

async function until(check: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 15_000;
  while (!(await check())) {
    assert.ok(Date.now() < deadline, 'it did not happen within 15 s');
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

describe('membership', () => {
  test('a new node registers with the pinned curator, keeps its certificate, serves with it and has a heartbeat', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using _init = await f.startInit();
    await using agent = await f.startAgent();
    using channel = await agent.connect(testOperator(registry.authority));
    assert.equal((await channel.client(NodeService).getStatus({})).status?.nodeId, nodeId);
    assert.deepEqual(registry.registered, ['new-node']);
    await until(() => registry.heartbeats.length > 0);
    assert.deepEqual(registry.heartbeats[0]?.pcrs, { 11: 'ab'.repeat(32) });
    const path = join(f.directory, 'tls/membership.json');
    assert.equal((await stat(path)).mode & 0o777, 0o600);
    assert.doesNotMatch(await readFile(path, 'utf8'), /PRIVATE/);
  });

  test('a member serves at once with what it kept, without the curator', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using _init = await f.startInit();
    {
      await using agent = await f.startAgent();
      await agent.serving;
    }
    await registry.stop();
    await using again = await f.startAgent();
    using channel = await again.connect(testOperator(registry.authority));
    await channel.client(NodeService).getStatus({});
    assert.deepEqual(registry.registered, ['new-node']);
  });

  test('a curator with another key than the pinned one learns nothing, and the node does not serve', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using agent = await f.startAgent(certificateFingerprint(node.certificate));
    await until(() => f.lines.some((line) => /cannot trust .*: its key is SHA256:/.test(line)));
    assert.deepEqual(registry.registered, []);
    const served = await Promise.race([agent.serving, new Promise((resolve) => setTimeout(resolve, 50, 'nothing'))]);
    assert.equal(served, 'nothing');
  });

  test('a curator that comes late is waited for, and one that restarts is met again', async () => {
    await using registry = await new Registry().start();
    await registry.stop();
    await using f = await fixture(registry);
    await using _init = await f.startInit();
    await using agent = await f.startAgent();
    await until(() => f.lines.some((line) => /cannot register with .*ECONNREFUSED/.test(line)));
    await registry.start();
    await agent.serving;
    await until(() => registry.heartbeats.length > 0);
    await registry.stop();
    await until(() => f.lines.some((line) => /heartbeat failed/.test(line)));
    await registry.start();
    await until(() => f.lines.includes('the curator answers again'));
  });

  test('a certificate past half of its life is renewed while serving, as a member', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using _init = await f.startInit();
    registry.days = [-10, 1];
    await using agent = await f.startAgent();
    const port = await agent.serving;
    registry.days = [-1, 7];
    await until(() => registry.registered.includes('node'));
    const operator = testOperator(registry.authority);
    const { connect } = await import('node:tls');
    await until(
      () =>
        new Promise<boolean>((resolve) => {
          const socket = connect(
            {
              port,
              host: '127.0.0.1',
              servername: nodeServerName(nodeId),
              ca: registry.authority.certificatePem,
              cert: operator.certificatePem,
              key: operator.privateKeyPem,
              ALPNProtocols: ['h2'],
            },
            () => {
              const days = (Date.parse(socket.getPeerCertificate().valid_to) - Date.now()) / 86_400_000;
              socket.destroy();
              resolve(days > 6);
            },
          );
        }),
    );
  });

  test('an expired or damaged membership is replaced', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using _init = await f.startInit();
    registry.days = [-10, -1];
    const expired = await f.startAgent();
    await until(() => registry.registered.length > 0);
    await expired[Symbol.asyncDispose]();
    registry.days = [-1, 7];
    {
      await using agent = await f.startAgent();
      await agent.serving;
    }
    await writeFile(join(f.directory, 'tls/membership.json'), '{"clusterId":');
    await using agent = await f.startAgent();
    await agent.serving;
    const stored: { certificatePem: string } = JSON.parse(
      await readFile(join(f.directory, 'tls/membership.json'), 'utf8'),
    );
    assert.ok(new X509Certificate(stored.certificatePem).validToDate > new Date());
  });
});

describe('node API', () => {
  test('services are sorted and keep their states', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using _init = await f.startInit();
    await using agent = await f.startAgent();
    using channel = await agent.connect(testOperator(registry.authority));
    const { services } = await channel.client(NodeService).listServices({});
    assert.deepEqual(
      services.map(({ name, state, restarts, lastExit, healthy }) => [name, state, restarts, lastExit, healthy]),
      [
        ['agent', ServiceState.BACKOFF, 3, 'exited with 1', false],
        ['etcd', ServiceState.HEALTHY, 0, '', true],
      ],
    );
  });

  test('logs come in order, then follow until cancelled', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using _init = await f.startInit();
    await using agent = await f.startAgent();
    using channel = await agent.connect(testOperator(registry.authority));
    const client = channel.client(NodeService);
    const texts: string[] = [];
    for await (const { lines } of client.streamLogs({})) texts.push(...lines.map(({ text }) => text));
    assert.deepEqual(
      texts,
      Array.from({ length: 500 }, (_, index) => `past ${index}`),
    );
    const followed: string[] = [];
    for await (const { lines } of client.streamLogs({ tail: 1, follow: true })) {
      followed.push(...lines.map(({ text }) => text));
      if (followed.length >= 3) break;
    }
    assert.deepEqual(followed.slice(0, 3), ['past 0', 'new 0', 'new 1']);
    await assert.rejects(readAll(client.streamLogs({ name: '../etc' })), withCode('INVALID_ARGUMENT'));
    await assert.rejects(readAll(client.streamLogs({ tail: 100_001 })), withCode('INVALID_ARGUMENT'));
  });

  test('streams that are open at once are limited, and calls still work beside them', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using _init = await f.startInit();
    await using agent = await f.startAgent();
    using channel = await agent.connect(testOperator(registry.authority));
    const client = channel.client(NodeService);
    const abort = new AbortController();
    const streams = Array.from({ length: 12 }, () => client.streamLogs({ follow: true }, { signal: abort.signal }));
    const firsts = streams.map((stream) => stream[Symbol.asyncIterator]());
    await Promise.all(firsts.map((iterator) => iterator.next()));
    await client.getStatus({});
    await assert.rejects(readAll(client.streamLogs({ follow: true })), withCode('RESOURCE_EXHAUSTED'));
    abort.abort();
    for (const iterator of firsts) await iterator.return?.();
    await until(() =>
      readAll(client.streamLogs({ tail: 1 })).then(
        () => true,
        () => false,
      ),
    );
  });

  test('a reboot reaches init with its reason and who asked', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using _init = await f.startInit();
    await using agent = await f.startAgent();
    using channel = await agent.connect(testOperator(registry.authority));
    const client = channel.client(NodeService);
    await client.reboot({ reason: 'new kernel' });
    assert.deepEqual(f.stopped, ['reboot: new kernel (operator ada)']);
    await assert.rejects(client.powerOff({ reason: 'two\nlines' }), withCode('INVALID_ARGUMENT'));
    await assert.rejects(client.powerOff({ reason: '' }), withCode('INVALID_ARGUMENT'));
    assert.equal(f.stopped.length, 1);
  });

  test('the keys of the TPM and what the data is sealed to come as init says them', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using _init = await f.startInit();
    await using agent = await f.startAgent();
    using channel = await agent.connect(testOperator(registry.authority));
    const client = channel.client(NodeService);
    const { ekPublic, ekCertificates, akPublic } = await client.getAttestationIdentity({});
    const texts = [ekPublic, ...ekCertificates, akPublic].map((bytes) => Buffer.from(bytes).toString());
    assert.deepEqual(texts, ['ek', 'cert', 'ak']);
    const { $typeName: _, $unknown: _unknown, ...told } = (await client.getSealing({})).sealing ?? {};
    assert.deepEqual(told, sealing);
  });

  test('an attestation carries quote, PCRs and boot, and reaches the TPM only with the sizes that a credential has', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using _init = await f.startInit();
    await using agent = await f.startAgent();
    using channel = await agent.connect(testOperator(registry.authority));
    const client = channel.client(NodeService);
    const credentialBlob = Buffer.concat([Uint8Array.of(0, 32), Buffer.alloc(66, 7)]);
    const good = { nonce: Buffer.alloc(32, 9), credentialBlob, encryptedSecret: Buffer.alloc(256, 5) };
    const answer = await client.attest(good);
    assert.deepEqual(
      [answer.quote, answer.signature].map((bytes) => Buffer.from(bytes).toString()),
      ['quote', 'sig'],
    );
    assert.deepEqual(Object.keys(answer.pcrs), ['0', '15']);
    assert.deepEqual([answer.nodeId, answer.version, answer.bootId], [nodeId, '0.0.0-test', 'boot-1']);
    assert.equal(answer.eventLog.length, 0, 'a machine without a log attests its PCRs');
    await client.attest({ ...good, encryptedSecret: Buffer.alloc(68) });
    assert.equal(f.attested.length, 2);
    const wrong = [
      { nonce: Buffer.alloc(31) },
      { nonce: new Uint8Array() },
      { credentialBlob: credentialBlob.subarray(1) },
      { credentialBlob: Buffer.concat([credentialBlob, Uint8Array.of(0)]) },
      { credentialBlob: Buffer.alloc(68) },
      { encryptedSecret: Buffer.alloc(255) },
      { encryptedSecret: Buffer.alloc(100_000) },
    ];
    for (const change of wrong)
      await assert.rejects(client.attest({ ...good, ...change }), withCode('INVALID_ARGUMENT'));
    assert.equal(f.attested.length, 2, 'none of those reached init');
  });

  test('a TPM at work and a credential for another TPM have codes of their own', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using _init = await f.startInit();
    await using agent = await f.startAgent();
    using channel = await agent.connect(testOperator(registry.authority));
    const client = channel.client(NodeService);
    const credentialBlob = Buffer.concat([Uint8Array.of(0, 32), Buffer.alloc(66, 7)]);
    const attest = (nonce: string) =>
      client.attest({ nonce: Buffer.from(nonce, 'base64'), credentialBlob, encryptedSecret: Buffer.alloc(68) });
    await assert.rejects(attest(BUSY_NONCE), withCode('RESOURCE_EXHAUSTED', /rests for 7 ms/));
    await assert.rejects(attest(REFUSED_NONCE), withCode('INVALID_ARGUMENT', /another TPM/));
  });

  test('a reseal reaches init with its reason, who asked, and a PCR 7 that can be one', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using _init = await f.startInit();
    await using agent = await f.startAgent();
    using channel = await agent.connect(testOperator(registry.authority));
    const client = channel.client(NodeService);
    await client.requestReseal({ reason: 'new dbx', pcr7: 'ab'.repeat(32) });
    await client.requestReseal({ reason: 'new epoch' });
    const asked = [`reseal: new dbx (operator ada) ${'ab'.repeat(32)}`, 'reseal: new epoch (operator ada) as it is'];
    assert.deepEqual(f.stopped, asked);
    for (const pcr7 of ['AB'.repeat(32), 'ab', '00'.repeat(32), 'ff'.repeat(32), `${'ab'.repeat(32)}\n`]) {
      await assert.rejects(client.requestReseal({ reason: 'x', pcr7 }), withCode('INVALID_ARGUMENT'));
    }
    await assert.rejects(client.requestReseal({ reason: '' }), withCode('INVALID_ARGUMENT'));
    assert.equal(f.stopped.length, 2);
  });

  test('a machine without an event log says so', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using _init = await f.startInit();
    await using agent = await f.startAgent();
    using channel = await agent.connect(testOperator(registry.authority));
    await assert.rejects(channel.client(NodeService).getEventLog({}), (error: RpcCallError) => {
      assert.match(error.code, /NOT_FOUND|FAILED_PRECONDITION/);
      return true;
    });
  });

  test('without init the API says so, and works again when init answers', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using agent = await f.startAgent();
    using channel = await agent.connect(testOperator(registry.authority));
    const client = channel.client(NodeService);
    await assert.rejects(client.getStatus({}), withCode('UNAVAILABLE', /^init does not answer; try again in a while$/));
    {
      await using _init = await f.startInit();
      await client.getStatus({});
    }
    await assert.rejects(client.getStatus({}), withCode('UNAVAILABLE'));
    await using _again = await f.startInit();
    await client.getStatus({});
  });

  test('a node, even this one, may not use the API; a stranger does not come through the handshake', async () => {
    await using registry = await new Registry().start();
    await using f = await fixture(registry);
    await using _init = await f.startInit();
    await using agent = await f.startAgent();
    using asNode = await agent.connect(testNode(registry.authority));
    await assert.rejects(asNode.client(NodeService).getStatus({}), withCode('PERMISSION_DENIED'));
    using asSelf = await agent.connect(node);
    await assert.rejects(asSelf.client(NodeService).getStatus({}), withCode('UNAVAILABLE'));
    using asForeigner = await agent.connect(testOperator(testAuthority()));
    await assert.rejects(asForeigner.client(NodeService).reboot({ reason: 'x' }), withCode('UNAVAILABLE'));
    assert.deepEqual(f.stopped, []);
  });
});

async function readAll(stream: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of stream);
}
