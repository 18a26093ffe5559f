import assert from 'node:assert/strict';
import { generateKeyPairSync, X509Certificate } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import {
  type TestIdentity,
  testAuthority,
  testIdentity,
  testNode,
  testOperator,
} from '../rpc/certificates-for-tests.ts';
import { ClusterService, NodeRegistryService, NodeState } from '../rpc/gen/ashlar/cluster/v1/cluster_pb.ts';
import { Health } from '../rpc/gen/grpc/health/v1/health_pb.ts';
import { openChannel, type RpcChannel } from '../rpc/grpc-client.ts';
import { pinnedServer, WrongFingerprintError } from '../rpc/pinned-server.ts';
import { RpcCallError } from '../rpc/rpc-error.ts';
import { CURATOR_SERVER_NAME, certificateFingerprint, nodeIdOf, ORGANIZATION } from '../rpc/tls-names.ts';
import { runCurator } from './curator.ts';
import { openEtcd } from './etcd-client.ts';
import { findEtcd, NO_ETCD, startEtcd, type TestEtcd } from './etcd-for-tests.ts';
import { createCluster, readCluster } from './records.ts';

const etcdBinary = await findEtcd();
const DAY_MS = 86_400_000;
const RECOVERY = `SHA256:${'R'.repeat(43)}`;

interface RunningCurator extends AsyncDisposable {
  readonly port: number;
  readonly lines: string[];
  readonly servingFingerprint: string;
  /** What the caller trusts is the pinned server, as at first contact. */
  connect(identity?: TestIdentity): Promise<RpcChannel>;
}

const owner = testIdentity({ name: { commonName: 'owner' } });
const node = testNode();
const serving = testIdentity({ name: { organization: ORGANIZATION.curator, commonName: 'curator' } });
const nodeId = nodeIdOf(node.certificate.publicKey);

async function startCurator(
  etcd: TestEtcd,
  options: { owner?: TestIdentity; now?: () => Date } = {},
): Promise<RunningCurator> {
  const abort = new AbortController();
  const lines: string[] = [];
  const started = Promise.withResolvers<number>();
  const log = (line: string) => lines.push(line);
  const running = runCurator({
    config: {
      nodeId,
      ownerCertificatePem: (options.owner ?? owner).certificatePem,
      nodeCertificatePem: node.certificatePem,
      recoveryKeyFingerprint: RECOVERY,
      listen: '127.0.0.1:0',
      etcd: etcd.options.address,
      version: '0.0.0-test',
    },
    keys: { servingKeyPem: serving.privateKeyPem, etcd: etcd.options },
    log: { info: log, warning: log, error: log },
    signal: abort.signal,
    onServing: started.resolve,
    ...(options.now && { now: options.now }),
  });
  running.catch(started.reject);
  const port = await started.promise;
  const address = `127.0.0.1:${port}`;
  const servingFingerprint = certificateFingerprint(serving.certificate);
  return {
    port,
    lines,
    servingFingerprint,
    async connect(identity) {
      return openChannel({
        address,
        serverName: CURATOR_SERVER_NAME,
        trustedPem: [await pinnedServer(address, CURATOR_SERVER_NAME, servingFingerprint)],
        ...(identity && { identity }),
      });
    },
    async [Symbol.asyncDispose]() {
      abort.abort();
      await running;
    },
  };
}

/** A key and the certificate that the cluster gave for it. */
async function takeOwnership(curator: RunningCurator, name = 'ada'): Promise<TestIdentity & { ca: X509Certificate }> {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  using channel = await curator.connect(owner);
  const answer = await channel.client(ClusterService).takeOwnership({
    publicKeyDer: publicKey.export({ type: 'spki', format: 'der' }),
    operatorName: name,
  });
  return identityOf(answer.certificateDer, privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(), answer);
}

function identityOf(
  der: Uint8Array,
  privateKeyPem: string,
  { caCertificateDer }: { caCertificateDer: Uint8Array },
): TestIdentity & { ca: X509Certificate } {
  const certificate = new X509Certificate(der);
  return {
    name: { commonName: '' },
    certificate,
    certificatePem: certificate.toString(),
    privateKeyPem,
    privateKey: node.privateKey,
    ca: new X509Certificate(caCertificateDer),
  };
}

async function register(curator: RunningCurator, as: TestIdentity = node) {
  using channel = await curator.connect(as);
  const answer = await channel.client(NodeRegistryService).registerNode({});
  return { ...identityOf(answer.certificateDer, node.privateKeyPem, answer), clusterId: answer.clusterId };
}

const withCode = (code: string, details?: RegExp) => (error: unknown) => {
  assert.ok(error instanceof RpcCallError, String(error));
  assert.equal(error.code, code, error.details);
  if (details !== undefined) assert.match(error.details, details);
  return true;
};

describe('curator on a real etcd', { skip: etcdBinary === undefined ? NO_ETCD : false }, () => {
  let etcd: TestEtcd;
  before(async () => {
    etcd = await startEtcd(etcdBinary ?? '');
  });
  after(() => etcd[Symbol.asyncDispose]());

  test('bootstrap makes one cluster, however many curators begin at once and however often', async () => {
    const ids = new Set<string>();
    const authorities = new Set<string>();
    {
      const curators = await Promise.all([startCurator(etcd), startCurator(etcd), startCurator(etcd)]);
      await using stack = new AsyncDisposableStack();
      for (const curator of curators) {
        stack.use(curator);
        const registered = await register(curator);
        ids.add(registered.clusterId);
        authorities.add(registered.ca.fingerprint256);
      }
    }
    await using again = await startCurator(etcd);
    const registered = await register(again);
    ids.add(registered.clusterId);
    authorities.add(registered.ca.fingerprint256);
    assert.equal(ids.size, 1);
    assert.equal(authorities.size, 1);
  });

  test('a cluster that exists is never replaced, even by a curator that did not see it', async () => {
    using store = openEtcd(etcd.options);
    const existing = await createCluster(store, { clusterId: 'cluster-late' });
    assert.match(existing.clusterId, /^cluster-[0-9a-f]{16}$/);
    assert.equal((await readCluster(store))?.clusterId, existing.clusterId);
  });

  test('the serving key is the one whose fingerprint the console shows, and another fingerprint is refused', async () => {
    await using curator = await startCurator(etcd);
    const address = `127.0.0.1:${curator.port}`;
    const wrong = certificateFingerprint(owner.certificate);
    await assert.rejects(pinnedServer(address, CURATOR_SERVER_NAME, wrong), (error: WrongFingerprintError) => {
      assert.ok(error instanceof WrongFingerprintError);
      assert.equal(error.expected, wrong);
      assert.equal(error.actual, curator.servingFingerprint);
      return true;
    });
  });

  test('the owner takes ownership twice and gets two certificates of the same cluster', async () => {
    await using curator = await startCurator(etcd);
    const [one, two] = [await takeOwnership(curator), await takeOwnership(curator)];
    assert.equal(one.ca.fingerprint256, two.ca.fingerprint256);
    assert.notEqual(one.certificate.fingerprint256, two.certificate.fingerprint256);
    assert.equal(one.certificate.subject, 'O=ashlar-operator\nCN=ada');
    const days = (one.certificate.validToDate.getTime() - Date.now()) / DAY_MS;
    assert.ok(days > 29.9 && days < 30.1, `${days} days`);
    for (const operator of [one, two]) {
      using channel = await curator.connect(operator);
      assert.match((await channel.client(ClusterService).getClusterStatus({})).clusterId, /^cluster-[0-9a-f]{16}$/);
    }
  });

  test('the owner is told the recovery key of the data, whatever is asked for', async () => {
    await using curator = await startCurator(etcd);
    using channel = await curator.connect(owner);
    const { publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const publicKeyDer = publicKey.export({ type: 'spki', format: 'der' });
    const answer = await channel.client(ClusterService).takeOwnership({ publicKeyDer, operatorName: 'ada' });
    assert.equal(answer.recoveryKeyFingerprint, RECOVERY);
  });

  test('another owner in the node parameters does not own a cluster that exists', async () => {
    const usurper = testIdentity({ name: { commonName: 'owner' } });
    await using curator = await startCurator(etcd, { owner: usurper });
    assert.ok(curator.lines.some((line) => line.includes('name another owner')));
    using channel = await curator.connect(usurper);
    await assert.rejects(channel.client(ClusterService).takeOwnership({}), withCode('UNAVAILABLE'));
    await takeOwnership(curator);
  });

  for (const [what, key] of [
    ['an RSA key', generateKeyPairSync('rsa', { modulusLength: 2048 }).publicKey],
    ['a key of another curve', generateKeyPairSync('ec', { namedCurve: 'P-384' }).publicKey],
    ['bytes that are no key', undefined],
  ] as const) {
    test(`an operator certificate for ${what} is refused`, async () => {
      await using curator = await startCurator(etcd);
      using channel = await curator.connect(owner);
      const publicKeyDer = key?.export({ type: 'spki', format: 'der' }) ?? new Uint8Array(8);
      await assert.rejects(
        channel.client(ClusterService).takeOwnership({ publicKeyDer, operatorName: 'ada' }),
        withCode('INVALID_ARGUMENT', /EC P-256/),
      );
    });
  }

  test("an operator's name that could be mistaken for something else is refused", async () => {
    await using curator = await startCurator(etcd);
    for (const name of ['', '../x', 'a\nO=ashlar-node', 'A', 'x'.repeat(64)]) {
      await assert.rejects(takeOwnership(curator, name), withCode('INVALID_ARGUMENT', /operator's name/));
    }
  });

  test('a node registers with its first certificate, renews with the next, and is UP while its heart beats', async () => {
    const clock = { now: Date.now() };
    await using curator = await startCurator(etcd, { now: () => new Date(clock.now) });
    const operator = await takeOwnership(curator);
    const member = await register(curator);
    assert.equal(member.certificate.subject, `O=ashlar-node\nCN=${nodeId}`);
    assert.equal(member.certificate.subjectAltName, `DNS:${nodeId}.node.ashlar.internal`);
    const renewed = await register(curator, member);
    assert.notEqual(renewed.certificate.fingerprint256, member.certificate.fingerprint256);

    using forOperator = await curator.connect(operator);
    const cluster = forOperator.client(ClusterService);
    assert.equal((await cluster.getNode({ nodeId })).node?.state, NodeState.NEW);

    using forNode = await curator.connect(renewed);
    const beat = (bootId: string) => ({ status: { nodeId, bootId, version: '1', pcrs: { 11: 'ab' } } });
    const { next } = await forNode.client(NodeRegistryService).heartbeat(beat('one'));
    assert.equal(next?.seconds, 5n);
    const { nodes } = await cluster.listNodes({});
    assert.deepEqual(
      nodes.map((entry) => [entry.nodeId, entry.state, entry.status?.bootId, entry.status?.pcrs[11]]),
      [[nodeId, NodeState.UP, 'one', 'ab']],
    );
    await forNode.client(NodeRegistryService).heartbeat(beat('two'));
    assert.ok(curator.lines.some((line) => line.includes('has rebooted')));
    assert.deepEqual(
      (await cluster.getClusterStatus({})).nodes.map(({ state, count }) => [state, count]),
      [[NodeState.UP, 1]],
    );
  });

  test('after a restart of the curator a node is STALE, with its last status, until its next heartbeat', async () => {
    await using curator = await startCurator(etcd);
    const member = await register(curator);
    using channel = await curator.connect(await takeOwnership(curator));
    const cluster = channel.client(ClusterService);
    const { node: stale } = await cluster.getNode({ nodeId });
    assert.equal(stale?.state, NodeState.STALE);
    assert.equal(stale?.status?.bootId, 'two');
    using forNode = await curator.connect(member);
    await forNode.client(NodeRegistryService).heartbeat({ status: { nodeId, bootId: 'two' } });
    assert.equal((await cluster.getNode({ nodeId })).node?.state, NodeState.UP);
  });

  test('a heartbeat that changes nothing lasting is not written to etcd', async () => {
    await using curator = await startCurator(etcd);
    using forNode = await curator.connect(await register(curator));
    const registry = forNode.client(NodeRegistryService);
    using store = openEtcd(etcd.options);
    const beat = (memory: bigint) =>
      registry.heartbeat({ status: { nodeId, bootId: 'x', memory: { totalBytes: 9n, availableBytes: memory } } });
    await beat(1n);
    const before = (await store.get(`/ashlar/v1/nodes/${nodeId}`))?.revision;
    await beat(2n);
    await beat(3n);
    assert.equal((await store.get(`/ashlar/v1/nodes/${nodeId}`))?.revision, before);
  });

  test("a node cannot send another node's heartbeat, nor be one before it registered", async () => {
    await using curator = await startCurator(etcd);
    using forNode = await curator.connect(await register(curator));
    await assert.rejects(
      forNode.client(NodeRegistryService).heartbeat({ status: { nodeId: 'node-0123456789abcdef' } }),
      withCode('FAILED_PRECONDITION'),
    );
    using forNew = await curator.connect(node);
    await assert.rejects(
      forNew.client(NodeRegistryService).heartbeat({ status: { nodeId } }),
      withCode('PERMISSION_DENIED', /new node .* may not call/),
    );
  });

  test('each caller gets only its own methods', async () => {
    await using curator = await startCurator(etcd);
    const operator = await takeOwnership(curator);
    using forOwner = await curator.connect(owner);
    await assert.rejects(forOwner.client(ClusterService).listNodes({}), withCode('PERMISSION_DENIED'));
    using forOperator = await curator.connect(operator);
    await assert.rejects(forOperator.client(ClusterService).takeOwnership({}), withCode('PERMISSION_DENIED'));
    await assert.rejects(forOperator.client(NodeRegistryService).registerNode({}), withCode('PERMISSION_DENIED'));
    using forNode = await curator.connect(await register(curator));
    await assert.rejects(forNode.client(ClusterService).listNodes({}), withCode('PERMISSION_DENIED'));
    for (const stranger of [undefined, testNode(), testOperator(testAuthority())]) {
      using channel = await curator.connect(stranger);
      await assert.rejects(channel.client(ClusterService).listNodes({}), withCode('UNAVAILABLE'));
    }
  });

  test('an unknown node is NOT_FOUND', async () => {
    await using curator = await startCurator(etcd);
    using channel = await curator.connect(await takeOwnership(curator));
    await assert.rejects(channel.client(ClusterService).getNode({ nodeId: 'node-1' }), withCode('NOT_FOUND'));
  });

  test('an operator certificate ends after 30 days, also on a connection that is open', async () => {
    const clock = { now: Date.now() };
    await using curator = await startCurator(etcd, { now: () => new Date(clock.now) });
    using channel = await curator.connect(await takeOwnership(curator));
    await channel.client(ClusterService).listNodes({});
    clock.now += 31 * DAY_MS;
    await assert.rejects(channel.client(ClusterService).listNodes({}), withCode('UNAUTHENTICATED', /valid from/));
  });

  test('without etcd the curator says so, and serves again when etcd is back', { timeout: 40_000 }, async () => {
    await using curator = await startCurator(etcd);
    using channel = await curator.connect(await takeOwnership(curator));
    assert.equal((await channel.client(Health).check({})).status, 1);
    await etcd.kill();
    await assert.rejects(
      channel.client(ClusterService).listNodes({}),
      withCode('UNAVAILABLE', /^the cluster's store does not answer; try again in a while$/),
    );
    await until(async () => (await channel.client(Health).check({})).status === 2);
    await etcd.start();
    await until(async () => (await channel.client(Health).check({})).status === 1);
    await channel.client(ClusterService).listNodes({});
  });
});

async function until(check: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 20_000;
  while (!(await check())) {
    assert.ok(Date.now() < deadline, 'it did not happen within 20 s');
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
