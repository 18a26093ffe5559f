import assert from 'node:assert/strict';
import { once } from 'node:events';
import http2 from 'node:http2';
import net from 'node:net';
import { describe, test } from 'node:test';
import tls from 'node:tls';
import type { DescService } from '@bufbuild/protobuf';
import { type TestIdentity, testAuthority, testIdentity, testNode, testOperator } from './certificates-for-tests.ts';
import { NodeRegistryService } from './gen/ashlar/cluster/v1/cluster_pb.ts';
import { NodeService } from './gen/ashlar/node/v1/node_pb.ts';
import { KV } from './gen/etcd/etcdserverpb/rpc_pb.ts';
import { Health } from './gen/grpc/health/v1/health_pb.ts';
import { ServerReflection } from './gen/grpc/reflection/v1/reflection_pb.ts';
import { type CallOptions, openChannel, type RpcChannel } from './grpc-client.ts';
import { type GrpcServer, type GrpcServerLimits, serveGrpc } from './grpc-server.ts';
import { implement } from './grpc-service.ts';
import { createHealth } from './health-service.ts';
import { checkPermission, identify } from './permissions.ts';
import { createReflection } from './reflection-service.ts';
import { RpcCallError, RpcError } from './rpc-error.ts';
import { CURATOR_SERVER_NAME, ORGANIZATION } from './tls-names.ts';

const authority = testAuthority();
const serverIdentity = testIdentity({
  name: { organization: ORGANIZATION.curator, commonName: 'curator' },
  issuer: authority,
  dnsNames: [CURATOR_SERVER_NAME],
});
const operator = testOperator(authority);

interface Fixture extends AsyncDisposable {
  readonly server: GrpcServer;
  readonly lines: string[];
  readonly seen: string[];
  connect(identity: TestIdentity | undefined): RpcChannel;
}

async function fixture(limits: Partial<GrpcServerLimits> = {}): Promise<Fixture> {
  const lines: string[] = [];
  const seen: string[] = [];
  const health = createHealth([NodeService.typeName]);
  health.set(true);
  const node = implement(NodeService, {
    async getStatus(_request, call) {
      seen.push(call.principal.kind);
      return { status: { nodeId: 'node-0', version: '1' } };
    },
    async listServices() {
      throw new Error('a secret path: /data/tls/node.key');
    },
    async *streamLogs(request, { signal }) {
      for (let index = 0; !signal.aborted && (request.follow || index < 3); index++) {
        yield { lines: [{ text: `line ${index}` }] };
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      seen.push('stream ended');
    },
    async getEventLog() {
      throw new RpcError('FAILED_PRECONDITION', 'this machine has no TPM');
    },
    getAttestationIdentity: async () => ({}),
    attest: async () => ({}),
    getSealing: async () => ({}),
    requestReseal: async () => ({}),
    async reboot(request) {
      seen.push(request.reason.slice(0, 10));
      return {};
    },
    powerOff: () => new Promise(() => undefined),
  });
  const registry = implement(NodeRegistryService, {
    registerNode: async () => ({ clusterId: 'x' }),
    heartbeat: async () => ({}),
  });
  const server = await serveGrpc({
    listen: '127.0.0.1:0',
    tls: { ...serverIdentity, trustedPem: [authority.certificatePem] },
    services: [node, registry, health.service, createReflection([NodeService, NodeRegistryService, Health])],
    identify: (certificate) => identify(certificate, { authority: authority.certificate }, new Date()),
    limits,
    log: {
      info: (line) => lines.push(line),
      warning: (line) => lines.push(line),
      error: (line) => lines.push(line),
    },
  });
  return {
    server,
    lines,
    seen,
    connect: (identity) =>
      openChannel({
        address: `127.0.0.1:${server.port}`,
        serverName: CURATOR_SERVER_NAME,
        trustedPem: [authority.certificatePem],
        ...(identity && { identity }),
      }),
    [Symbol.asyncDispose]: () => server.close(0),
  };
}

const withCode = (code: string, details?: RegExp) => (error: unknown) => {
  assert.ok(error instanceof RpcCallError, String(error));
  assert.equal(error.code, code, error.details);
  if (details !== undefined) assert.match(error.details, details);
  return true;
};

/** A TLS connection past the handshake, for what no gRPC client would send. */
async function rawTls(server: GrpcServer, options: tls.ConnectionOptions = {}): Promise<tls.TLSSocket> {
  const socket = tls.connect({
    port: server.port,
    host: '127.0.0.1',
    servername: CURATOR_SERVER_NAME,
    ca: authority.certificatePem,
    cert: operator.certificatePem,
    key: operator.privateKeyPem,
    ALPNProtocols: ['h2'],
    ...options,
  });
  socket.on('error', () => undefined);
  await once(socket, 'secureConnect');
  return socket;
}

/** All that the server sends until it closes. */
async function untilClosed(socket: net.Socket): Promise<Buffer> {
  const chunks: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => chunks.push(chunk));
  socket.on('error', () => undefined);
  const deadline = setTimeout(() => socket.destroy(new Error('still open')), 5_000);
  const closed = Promise.withResolvers<Error | undefined>();
  socket.once('error', (error) => closed.resolve(error.message === 'still open' ? error : undefined));
  socket.once('close', () => closed.resolve(undefined));
  const problem = socket.destroyed ? undefined : await closed.promise;
  clearTimeout(deadline);
  assert.equal(problem, undefined, 'the server did not close within 5 s');
  return Buffer.concat(chunks);
}

describe('calls', () => {
  test('a call with the right certificate is answered and the method knows its caller', async () => {
    await using f = await fixture();
    using channel = f.connect(operator);
    const { status } = await channel.client(NodeService).getStatus({});
    assert.equal(status?.nodeId, 'node-0');
    assert.deepEqual(f.seen, ['operator']);
  });

  test('a stream arrives in order and ends', async () => {
    await using f = await fixture();
    using channel = f.connect(operator);
    const texts: string[] = [];
    for await (const { lines } of channel.client(NodeService).streamLogs({})) texts.push(lines[0]?.text ?? '');
    assert.deepEqual(texts, ['line 0', 'line 1', 'line 2']);
  });

  test('a caller that cancels a stream ends the method on the server', async () => {
    await using f = await fixture();
    using channel = f.connect(operator);
    const abort = new AbortController();
    let count = 0;
    for await (const _ of channel.client(NodeService).streamLogs({ follow: true }, { signal: abort.signal })) {
      if (++count === 3) abort.abort();
    }
    await eventually(() => f.seen.includes('stream ended'));
  });

  test('a deadline ends a call that is never answered', async () => {
    await using f = await fixture();
    using channel = f.connect(operator);
    const options: CallOptions = { timeoutMs: 100 };
    await assert.rejects(channel.client(NodeService).powerOff({}, options), withCode('DEADLINE_EXCEEDED'));
  });

  test('a refusal of a method reaches the caller with its code and words', async () => {
    await using f = await fixture();
    using channel = f.connect(operator);
    await assert.rejects(channel.client(NodeService).getEventLog({}), withCode('FAILED_PRECONDITION', /no TPM/));
  });

  test('an unexpected error keeps its text in the log and gives the caller a reference', async () => {
    await using f = await fixture();
    using channel = f.connect(operator);
    let reference = '';
    await assert.rejects(channel.client(NodeService).listServices({}), (error: RpcCallError) => {
      assert.equal(error.code, 'INTERNAL');
      assert.doesNotMatch(error.details, /secret|\/data/);
      reference = /reference ([0-9a-f]{8})/.exec(error.details)?.[1] ?? '';
      return reference !== '';
    });
    assert.ok(f.lines.some((line) => line.includes(reference) && line.includes('/data/tls/node.key')));
  });

  test('credentials change without a restart', async () => {
    await using f = await fixture();
    const other = testAuthority('other CA');
    f.server.setTls({ ...serverIdentity, trustedPem: [authority.certificatePem, other.certificatePem] });
    using channel = f.connect(testOperator(other));
    // Through the handshake now, and still nobody: a root gives no role by itself.
    await assert.rejects(channel.client(NodeService).getStatus({}), withCode('UNAUTHENTICATED'));
  });
});

describe('permissions', () => {
  test('a method without a permission cannot be registered', () => {
    assert.throws(
      () => implement(KV as DescService, {} as never),
      /cannot serve etcdserverpb\.KV\.Range: it has no permission/,
    );
  });

  test('a method without a permission cannot be called', () => {
    assert.throws(() => checkPermission({ kind: 'operator', name: 'ada' }, KV.method.range), /it has no permission/);
  });

  test('an operator cannot call a method of nodes, and the method is not reached', async () => {
    await using f = await fixture();
    using channel = f.connect(operator);
    await assert.rejects(
      channel.client(NodeRegistryService).heartbeat({}),
      withCode('PERMISSION_DENIED', /operator ada may not call .*Heartbeat: it needs NODE_SELF/),
    );
  });

  test('a node cannot call a method of operators', async () => {
    await using f = await fixture();
    using channel = f.connect(testNode(authority));
    await assert.rejects(channel.client(NodeService).reboot({ reason: 'x' }), withCode('PERMISSION_DENIED'));
    assert.deepEqual(f.seen, []);
  });

  test('a node certificate whose name is not that of its key stands for nobody', async () => {
    await using f = await fixture();
    const name = { organization: ORGANIZATION.node, commonName: 'node-0123456789abcdef' };
    using channel = f.connect(testIdentity({ name, issuer: authority }));
    await assert.rejects(channel.client(NodeRegistryService).heartbeat({}), withCode('UNAUTHENTICATED'));
  });

  test('the authority itself stands for nobody', () => {
    assert.throws(() => identify(authority.certificate, { authority: authority.certificate }, new Date()), RpcError);
  });

  test('a certificate that expires on an open connection is refused at the next call', () => {
    const later = new Date(Date.now() + 2 * 86_400_000);
    assert.throws(() => identify(operator.certificate, { authority: authority.certificate }, later), {
      code: 'UNAUTHENTICATED',
    });
  });

  test('an unknown method is refused', async () => {
    await using f = await fixture();
    using channel = f.connect(operator);
    await assert.rejects(channel.client(KV).range({}), withCode('UNIMPLEMENTED'));
  });
});

describe('the handshake', () => {
  const refused = (name: string, identity: TestIdentity | undefined, reason: RegExp) => {
    test(`${name} is refused before HTTP/2 begins`, async () => {
      await using f = await fixture();
      using channel = f.connect(identity);
      await assert.rejects(channel.client(NodeService).getStatus({}), withCode('UNAVAILABLE'));
      const socket = await rawTls(f.server, {
        cert: identity?.certificatePem as string,
        key: identity?.privateKeyPem as string,
      });
      assert.equal((await untilClosed(socket)).length, 0, 'the server sent HTTP/2 to a stranger');
      assert.deepEqual(f.seen, []);
      await eventually(() => f.lines.some((line) => reason.test(line)));
    });
  };
  refused('no certificate', undefined, /PEER_DID_NOT_RETURN_A_CERTIFICATE/);
  refused('a self-signed certificate', testNode(), /DEPTH_ZERO_SELF_SIGNED_CERT/);
  refused("a foreign authority's certificate", testOperator(testAuthority('foreign')), /UNABLE_TO_/);
  refused('an expired certificate', testOperator(authority, { fromDays: -3, toDays: -1 }), /CERT_HAS_EXPIRED/);
  refused('a certificate of the future', testOperator(authority, { fromDays: 1, toDays: 3 }), /CERT_NOT_YET_VALID/);

  test('a certificate issued by an operator is refused', async () => {
    await using f = await fixture();
    const forged = testOperator(operator);
    const chain = { ...forged, certificatePem: forged.certificatePem + operator.certificatePem };
    using channel = f.connect(chain);
    await assert.rejects(channel.client(NodeService).getStatus({}), withCode('UNAVAILABLE'));
    assert.deepEqual(f.seen, []);
  });

  test('TLS 1.2 is refused', async () => {
    await using f = await fixture();
    await assert.rejects(rawTls(f.server, { maxVersion: 'TLSv1.2' }), { code: /PROTOCOL_VERSION/ });
  });

  test('a server with another name is refused by the client', async () => {
    await using f = await fixture();
    using channel = openChannel({
      address: `127.0.0.1:${f.server.port}`,
      serverName: 'node-0.node.ashlar.internal',
      trustedPem: [authority.certificatePem],
      identity: operator,
    });
    await assert.rejects(channel.client(NodeService).getStatus({}), withCode('UNAVAILABLE', /altnames/));
  });
});

describe('bad input', () => {
  const answersAfterwards = async (f: Fixture) => {
    using channel = f.connect(operator);
    const { status } = await channel.client(NodeService).getStatus({});
    assert.equal(status?.version, '1');
  };

  test('a message over 1 MiB is refused and not delivered', async () => {
    await using f = await fixture();
    using channel = f.connect(operator);
    const client = channel.client(NodeService);
    await client.reboot({ reason: 'x'.repeat(1024 * 1024 - 100) });
    await assert.rejects(client.reboot({ reason: 'y'.repeat(1024 * 1024) }), withCode('RESOURCE_EXHAUSTED'));
    assert.deepEqual(f.seen, ['xxxxxxxxxx']);
    await answersAfterwards(f);
  });

  /** One request with hand-made headers and body; gives the gRPC status, or how it was cut. */
  async function request(f: Fixture, body: Buffer, headers: http2.OutgoingHttpHeaders = {}): Promise<string> {
    const session = http2.connect(`https://127.0.0.1:${f.server.port}`, {
      createConnection: () =>
        tls.connect({
          port: f.server.port,
          host: '127.0.0.1',
          servername: CURATOR_SERVER_NAME,
          ca: authority.certificatePem,
          cert: operator.certificatePem,
          key: operator.privateKeyPem,
          ALPNProtocols: ['h2'],
        }),
      maxSendHeaderBlockLength: 16 * 1024 * 1024,
    });
    session.on('error', () => undefined);
    try {
      const stream = session.request({
        ':method': 'POST',
        ':path': '/ashlar.node.v1.NodeService/Reboot',
        'content-type': 'application/grpc+proto',
        te: 'trailers',
        ...headers,
      });
      let outcome = 'closed';
      stream.on('response', (response) => {
        outcome = String(response['grpc-status'] ?? outcome);
      });
      stream.on('trailers', (trailers) => {
        outcome = String(trailers['grpc-status']);
      });
      stream.on('error', (error: Error & { code?: string }) => {
        outcome = error.code ?? error.message;
      });
      stream.resume();
      stream.end(body);
      await new Promise<void>((resolve) => stream.once('close', resolve));
      return outcome;
    } finally {
      session.destroy();
    }
  }

  const framed = (message: Buffer, flag = 0) => {
    const head = Buffer.alloc(5);
    head[0] = flag;
    head.writeUInt32BE(message.length, 1);
    return Buffer.concat([head, message]);
  };
  const INVALID_ARGUMENT = '3';
  const RESOURCE_EXHAUSTED = '8';

  test('bytes that are not the message are refused', async () => {
    await using f = await fixture();
    assert.equal(await request(f, framed(Buffer.from([0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]))), INVALID_ARGUMENT);
    assert.equal(await request(f, framed(Buffer.from('a3ffffff', 'hex'))), INVALID_ARGUMENT);
    assert.deepEqual(f.seen, []);
    await answersAfterwards(f);
  });

  test('a length that promises more than the limit is refused before its bytes come', async () => {
    await using f = await fixture();
    assert.equal(await request(f, Buffer.from([0, 0x7f, 0xff, 0xff, 0xff, 1, 2, 3])), RESOURCE_EXHAUSTED);
  });

  test('a small message that decompresses to a large one is refused', async () => {
    await using f = await fixture();
    const { gzipSync } = await import('node:zlib');
    const bomb = framed(gzipSync(Buffer.alloc(64 * 1024 * 1024)), 1);
    assert.equal(await request(f, bomb, { 'grpc-encoding': 'gzip' }), RESOURCE_EXHAUSTED);
    await answersAfterwards(f);
  });

  test('a cut message ends the call only', async () => {
    await using f = await fixture();
    assert.notEqual(await request(f, Buffer.from([0, 0, 0, 0, 9, 1])), '0');
    assert.deepEqual(f.seen, []);
    await answersAfterwards(f);
  });

  test('headers over 16 KiB are refused', async () => {
    await using f = await fixture();
    const withHeader = (length: number) => request(f, framed(Buffer.alloc(0)), { 'x-long': 'a'.repeat(length) });
    assert.equal(await withHeader(17_000), RESOURCE_EXHAUSTED);
    assert.notEqual(await withHeader(8_000_000), '0');
    assert.deepEqual(f.seen, []);
    await answersAfterwards(f);
  });

  for (const [name, bytes] of [
    ['garbage', Buffer.alloc(4096, 0xa5)],
    ['HTTP/1 without TLS', Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n')],
    ['HTTP/2 without TLS', Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n')],
  ] as const) {
    test(`${name} on the port is cut off`, async () => {
      await using f = await fixture();
      const socket = net.connect(f.server.port, '127.0.0.1');
      socket.write(bytes);
      await untilClosed(socket);
      await answersAfterwards(f);
    });
  }

  test('half a TLS handshake is cut off when its time is up', async () => {
    await using f = await fixture({ handshakeMs: 300 });
    const socket = net.connect(f.server.port, '127.0.0.1');
    socket.write(Buffer.from('160301020001', 'hex'));
    await untilClosed(socket);
    await answersAfterwards(f);
  });

  test('HTTP/1 inside TLS is cut off', async () => {
    await using f = await fixture();
    const socket = await rawTls(f.server, { ALPNProtocols: undefined as never });
    socket.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n');
    assert.equal((await untilClosed(socket)).length, 0);
    await answersAfterwards(f);
  });

  test('a flood of pings is cut off', async () => {
    await using f = await fixture({ ingressBytes: 100_000, ingressWindowMs: 100 });
    const socket = await rawTls(f.server);
    const ping = Buffer.from('0000080600000000000000000000000000', 'hex');
    const flood = Buffer.concat([
      Buffer.from('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'),
      Buffer.from('000000040000000000', 'hex'),
      ...Array.from({ length: 20_000 }, () => ping),
    ]);
    const timer = setInterval(() => socket.write(flood), 20);
    try {
      await untilClosed(socket);
    } finally {
      clearInterval(timer);
    }
    await answersAfterwards(f);
  });

  /** A connection that never begins its handshake. */
  const silent = async (server: GrpcServer, localAddress: string) => {
    const socket = net.connect({ port: server.port, host: '127.0.0.1', localAddress });
    socket.on('error', () => undefined);
    await once(socket, 'connect');
    return socket;
  };

  test('strangers who hold handshakes open keep nobody out', async () => {
    const limits = { handshakes: 8, handshakesPerAddress: 4, handshakeMs: 60_000, ingressWindowMs: 100 };
    await using f = await fixture(limits);
    // Addresses beside 127.0.0.1 count as outside.
    const flood: net.Socket[] = [];
    for (let turn = 0; turn < 6; turn++) {
      for (const host of [2, 3, 4, 5]) flood.push(await silent(f.server, `127.0.0.${host}`));
    }
    await eventually(() => flood.filter((socket) => socket.closed).length === flood.length - limits.handshakes);
    const open = flood.flatMap((socket, index) => (socket.closed ? [] : [index]));
    assert.deepEqual(open, [16, 17, 18, 19, 20, 21, 22, 23], 'the oldest were ended');
    for (const localAddress of ['127.0.0.6', '127.0.0.2', '127.0.0.1']) {
      const socket = await rawTls(f.server, { localAddress } as tls.ConnectionOptions);
      await once(socket, 'data');
      socket.destroy();
    }
    await eventually(() => f.lines.some((line) => /ended \d+ TLS handshakes early/.test(line)));
    for (const socket of flood) socket.destroy();
  });

  test('one address alone ends its own handshakes only', async () => {
    await using f = await fixture({ handshakesPerAddress: 2, handshakeMs: 60_000 });
    const other = await silent(f.server, '127.0.0.3');
    const own: net.Socket[] = [];
    for (let turn = 0; turn < 5; turn++) own.push(await silent(f.server, '127.0.0.2'));
    await eventually(() => own.filter((socket) => socket.closed).length === 3);
    assert.equal(other.closed, false);
    for (const socket of [other, ...own]) socket.destroy();
  });

  test('connections from outside, even authenticated ones, leave room for the services of the machine', async () => {
    await using f = await fixture({ connections: 2 });
    const outside = { localAddress: '127.0.0.2' } as tls.ConnectionOptions;
    const held = [await rawTls(f.server, outside), await rawTls(f.server, outside)];
    await Promise.all(held.map((socket) => once(socket, 'data')));
    await assert.rejects(rawTls(f.server, { localAddress: '127.0.0.3' } as tls.ConnectionOptions));
    using channel = f.connect(operator);
    assert.equal((await channel.client(NodeService).getStatus({})).status?.nodeId, 'node-0');
    for (const socket of held) socket.destroy();
  });

  test('one address cannot take all connections', async () => {
    await using f = await fixture({ connectionsPerAddress: 2 });
    const first = await rawTls(f.server);
    const second = await rawTls(f.server);
    // The client is through before the server is.
    await Promise.all([once(first, 'data'), once(second, 'data')]);
    await assert.rejects(rawTls(f.server));
    first.destroy();
    await once(first, 'close');
    await eventually(async () => rawTls(f.server).then((third) => third.destroy() !== undefined));
    second.destroy();
  });
});

describe('standard services', () => {
  test('health tells the state, and each change', async () => {
    await using f = await fixture();
    using channel = f.connect(operator);
    const client = channel.client(Health);
    assert.equal((await client.check({ service: '' })).status, 1);
    assert.equal((await client.check({ service: 'ashlar.node.v1.NodeService' })).status, 1);
    await assert.rejects(client.check({ service: 'nobody' }), withCode('NOT_FOUND'));
    for await (const { status } of client.watch({ service: 'nobody' })) {
      assert.equal(status, 3);
      break;
    }
  });

  test('reflection lists services and gives their files with all imports', async () => {
    await using f = await fixture();
    using channel = f.connect(operator);
    async function* questions() {
      yield { messageRequest: { case: 'listServices' as const, value: '' } };
      yield {
        messageRequest: { case: 'fileContainingSymbol' as const, value: 'ashlar.node.v1.NodeService.GetStatus' },
      };
      yield { messageRequest: { case: 'fileByFilename' as const, value: 'nothing.proto' } };
    }
    const answers = [];
    for await (const { messageResponse } of channel.client(ServerReflection).serverReflectionInfo(questions())) {
      answers.push(messageResponse);
    }
    const [list, file, missing] = answers;
    assert.ok(list?.case === 'listServicesResponse');
    assert.deepEqual(
      list.value.service.map(({ name }) => name),
      [
        'ashlar.cluster.v1.NodeRegistryService',
        'ashlar.node.v1.NodeService',
        'grpc.health.v1.Health',
        'grpc.reflection.v1.ServerReflection',
      ],
    );
    assert.ok(file?.case === 'fileDescriptorResponse');
    assert.equal(file.value.fileDescriptorProto.length, 4);
    assert.equal(missing?.case, 'errorResponse');
  });

  test('reflection is not for nodes', async () => {
    await using f = await fixture();
    using channel = f.connect(testNode(authority));
    async function* none() {}
    const ask = async () => {
      for await (const _ of channel.client(ServerReflection).serverReflectionInfo(none())) assert.fail('an answer');
    };
    await assert.rejects(ask(), withCode('PERMISSION_DENIED'));
  });
});

/** Waits for what the server does after it answered. */
async function eventually(check: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 5_000;
  for (;;) {
    const held = await Promise.resolve()
      .then(check)
      .catch(() => false);
    if (held) return;
    assert.ok(Date.now() < deadline, 'it did not happen within 5 s');
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
