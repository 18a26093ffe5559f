import assert from 'node:assert/strict';
import { createPrivateKey, createPublicKey, X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { after, before, describe, test } from 'node:test';
import tls from 'node:tls';
import { runAgent } from '../../src/agent/agent.ts';
import { runCurator } from '../../src/curator/curator.ts';
import { findEtcd, NO_ETCD, startEtcd, type TestEtcd } from '../../src/curator/etcd-for-tests.ts';
import { encodeHashList } from '../../src/formats/efi-signature-list.ts';
import { decodeNodeParameters } from '../../src/formats/node-parameters.ts';
import { decodeAttest } from '../../src/formats/tpm-attest.ts';
import { type InitService, startInitServer } from '../../src/init/init-server.ts';
import { decodeEvidence, encodeEvidence, qualifyingData } from '../../src/measure/evidence.ts';
import type { Verdict } from '../../src/measure/judge.ts';
import { testAuthority, testIdentity, testNode, testOperator } from '../../src/rpc/certificates-for-tests.ts';
import { CURATOR_SERVER_NAME, certificateFingerprint, nodeIdOf } from '../../src/rpc/tls-names.ts';
import { bootTpm, encodeLog, testMachine } from '../../src/tpm/evidence-fixture.ts';
import { type SoftwareTpm, startSoftwareTpm } from '../../src/tpm/swtpm-fixture.ts';
import { runCommandLine } from '../host/command-line.ts';
import { measurementsOf, tpmService } from './attesting-node-for-tests.ts';
import { ashlarctl } from './commands.ts';
import { connectCluster } from './connection.ts';
import { type Context, openContexts } from './contexts.ts';
import { nodeAttestation } from './node-attest.ts';
import { type SealedMachine, sealedMachine } from './sealed-machine-for-tests.ts';
import { takeEvidence } from './take-evidence.ts';

const SPKI = { type: 'spki', format: 'der' } as const;
const quiet = { debug() {}, info() {}, warning() {}, error() {} };

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Runs the command line as a person would, but for the process. */
async function run(...argv: string[]): Promise<Outcome> {
  const captured = { stdout: '', stderr: '' };
  const stream = (name: 'stdout' | 'stderr') =>
    new Writable({
      write(chunk: Buffer, _encoding, callback) {
        captured[name] += chunk.toString();
        callback();
      },
    });
  const code = await runCommandLine(ashlarctl, argv, {
    stdout: stream('stdout'),
    stderr: stream('stderr') as unknown as NodeJS.WriteStream,
  });
  return { code, ...captured };
}

async function runWell(...argv: string[]): Promise<string> {
  const outcome = await run(...argv);
  assert.equal(outcome.code, 0, outcome.stderr);
  for (const line of outcome.stdout.split('\n')) {
    // A command to copy is whole, whatever its length.
    const isFree = argv.includes('--json') || line.startsWith('  ashlarctl ');
    assert.ok(isFree || line.length <= 100, `${line.length} columns: ${line}`);
  }
  return outcome.stdout;
}

async function runBadly(pattern: RegExp, ...argv: string[]): Promise<string> {
  const outcome = await run(...argv);
  assert.equal(outcome.code, 1, outcome.stdout);
  assert.match(outcome.stderr, pattern);
  return outcome.stderr;
}

/** The command line itself is wrong. */
async function runWrongly(pattern: RegExp, ...argv: string[]): Promise<void> {
  const outcome = await run(...argv);
  assert.equal(outcome.code, 2, outcome.stderr);
  assert.match(outcome.stderr, pattern);
}

let home: string;
before(async () => {
  home = await mkdtemp(join(tmpdir(), 'ashlarctl-'));
  process.env.XDG_CONFIG_HOME = join(home, 'config');
});
after(() => rm(home, { recursive: true }));

describe('cluster prepare', () => {
  test('makes keys that fit, private files that are private, and parameters that the node reads', async () => {
    const directory = join(home, 'new', 'owner');
    const shown = await runWell('cluster', 'prepare', directory, '--time-server', '192.0.2.1', '--without-tpm');
    assert.match(shown, /owner\.key/);
    assert.doesNotMatch(shown, /PRIVATE/);
    const mode = async (file: string) => (await stat(join(directory, file))).mode & 0o777;
    assert.deepEqual(await Promise.all(['', 'owner.key', 'recovery.key'].map(mode)), [0o700, 0o600, 0o600]);
    const read = (file: string) => readFile(join(directory, file), 'utf8');
    const owner = new X509Certificate(await read('owner.crt'));
    assert.ok(owner.checkPrivateKey(createPrivateKey(await read('owner.key'))));
    const recovery = createPrivateKey(await read('recovery.key'));
    assert.equal(recovery.asymmetricKeyDetails?.modulusLength, 3072);
    const parameters = decodeNodeParameters(await readFile(join(directory, 'node-parameters.json')));
    assert.equal(parameters.cluster.bootstrap.ownerCertificatePem.trim(), owner.toString().trim());
    assert.ok(createPublicKey(parameters.recovery.publicKeyPem).equals(createPublicKey(recovery)));
    assert.deepEqual([parameters.time?.servers, parameters.tpm?.required], [['192.0.2.1'], false]);
  });

  test('refuses a directory with anything in it, and leaves it and its neighbours as they were', async () => {
    const directory = join(home, 'taken');
    await mkdir(directory);
    await writeFile(join(directory, 'mine'), 'x');
    const neighbours = await readdir(home);
    await runBadly(/has mine in it already/, 'cluster', 'prepare', directory);
    assert.deepEqual(await readdir(directory), ['mine']);
    assert.deepEqual(await readdir(home), neighbours);
  });
});

test('a time server that is no address is refused before any key is made', async () => {
  const directory = join(home, 'named-server');
  await runWrongly(
    /--time-server must be an IP address/,
    'cluster',
    'prepare',
    directory,
    '--time-server',
    'ntp.example',
  );
  await assert.rejects(stat(directory), /ENOENT/);
});

describe('first contact', () => {
  test('a wrong fingerprint is refused before anything is sent, and both are shown', async () => {
    const owner = join(home, 'first-contact');
    await runWell('cluster', 'prepare', owner);
    const server = testIdentity({ name: { commonName: 'curator' }, dnsNames: [CURATOR_SERVER_NAME] });
    const seen = { bytes: 0, certificates: 0, connections: 0 };
    const impostor = tls.createServer(
      {
        cert: server.certificatePem,
        key: server.privateKeyPem,
        requestCert: true,
        rejectUnauthorized: false,
        ALPNProtocols: ['h2'],
      },
      (socket) => {
        seen.connections += 1;
        if (socket.getPeerX509Certificate() !== undefined) {
          seen.certificates += 1;
          socket.destroy();
        }
        socket.on('data', (chunk: Buffer) => {
          seen.bytes += chunk.length;
        });
        socket.on('error', () => undefined);
      },
    );
    impostor.listen(0, '127.0.0.1');
    await once(impostor, 'listening');
    const { port } = impostor.address() as { port: number };
    const expected = `SHA256:${'A'.repeat(43)}`;
    const actual = certificateFingerprint(server.certificate);
    const take = (fingerprint: string) => [
      'cluster',
      'take-ownership',
      '--endpoint',
      `127.0.0.1:${port}`,
      '--fingerprint',
      fingerprint,
      '--owner',
      owner,
    ];
    const message = await runBadly(/nothing was sent/, ...take(expected));
    assert.ok(message.includes(expected) && message.includes(actual), message);
    await new Promise((resolve) => setTimeout(resolve, 100));
    assert.deepEqual({ bytes: seen.bytes, certificates: seen.certificates }, { bytes: 0, certificates: 0 });
    assert.ok(seen.connections <= 1);
    assert.deepEqual(await openContexts().list(), []);
    // The check is not blind: with the right fingerprint the owner's certificate is shown.
    await run(...take(actual));
    assert.ok(seen.certificates > 0);
    impostor.close();
  });

  test('a fingerprint of another form, an endpoint without a port and a port without a server are explained', async () => {
    const owner = join(home, 'explained');
    await runWell('cluster', 'prepare', owner);
    const take = (endpoint: string, fingerprint: string) => [
      'cluster',
      'take-ownership',
      '--endpoint',
      endpoint,
      '--fingerprint',
      fingerprint,
      '--owner',
      owner,
    ];
    const right = `SHA256:${'A'.repeat(43)}`;
    await runWrongly(/--fingerprint: .*as the console of the node shows it/, ...take('127.0.0.1:1', 'ab:cd'));
    await runWrongly(/--endpoint: .*give HOST:PORT/, ...take('127.0.0.1', right));
    await runBadly(/connection refused.*console says "ready"/, ...take('127.0.0.1:1', right));
    await runBadly(/--owner names the directory/, ...take('127.0.0.1:1', right).slice(0, -1), join(home, 'nowhere'));
  });

  test("an owner's key that others can read is not used, and the way out is said", async () => {
    const owner = join(home, 'shared-owner');
    await runWell('cluster', 'prepare', owner);
    const take = ['cluster', 'take-ownership', '--endpoint', '127.0.0.1:1'];
    const argv = [...take, '--fingerprint', `SHA256:${'A'.repeat(43)}`, '--owner', owner];
    await chmod(join(owner, 'owner.key'), 0o640);
    await runBadly(/cannot use the owner's key: .*owner\.key has mode 0640, others.*; run: chmod 600 /, ...argv);
    await chmod(join(owner, 'owner.key'), 0o600);
    await runBadly(/connection refused/, ...argv);
  });
});

describe('contexts', () => {
  const authority = testAuthority();
  const context = (days: readonly [number, number]): Context => {
    const operator = testOperator(authority, { fromDays: days[0], toDays: days[1] });
    return {
      version: 1,
      clusterId: 'cluster-1',
      endpoint: '127.0.0.1:1',
      authorityPem: authority.certificatePem,
      operator: { name: 'ada', certificatePem: operator.certificatePem, privateKeyPem: operator.privateKeyPem },
      nodeEndpoints: {},
    };
  };

  test('a context is private, never shows its key, and is forgotten when removed', async () => {
    const store = openContexts();
    await store.write('lab', context([-1, 1]));
    await runWell('context', 'use', 'lab');
    assert.equal((await stat(join(home, 'config/ashlar/contexts/lab.json'))).mode & 0o777, 0o600);
    for (const argv of [
      ['context', 'show'],
      ['context', 'show', 'lab', '--json'],
      ['context', 'list', '--json'],
    ]) {
      const shown = await runWell(...argv);
      assert.match(shown, /cluster-1/);
      assert.doesNotMatch(shown, /PRIVATE/);
    }
    await runWell('context', 'set', '--endpoint-override', '*=127.0.0.1:9', '--endpoint', '127.0.0.1:2');
    assert.deepEqual({ ...(await store.read('lab'))?.nodeEndpoints }, { '*': '127.0.0.1:9' });
    await runWrongly(
      /--endpoint-override: .*whole node ID/,
      'context',
      'set',
      '--endpoint-override',
      'node-1=127.0.0.1:9',
    );
    await runWrongly(/--endpoint-override: .*give HOST:PORT/, 'context', 'set', '--endpoint-override', '*=localhost');
    await runWrongly(/--endpoint: .*give HOST:PORT/, 'context', 'set', '--endpoint', 'localhost');
    await runWell('context', 'remove', 'lab');
    assert.deepEqual(await readdir(join(home, 'config/ashlar/contexts')), []);
    await runBadly(/there is no context yet/, 'node', 'list');
  });

  test('an expired operator certificate, or a clock that is behind, is said before anything is tried', async () => {
    await openContexts().write('old', context([-3, -1]));
    await runBadly(
      /expired at .*take-ownership --context old --endpoint 127.0.0.1:1/,
      'node',
      'list',
      '--context',
      'old',
    );
    await openContexts().write('early', context([1, 3]));
    await runBadly(/this machine's clock says .*set the clock/, 'node', 'list', '--context', 'early');
  });

  test('a name that would leave the directory is refused, and a damaged context says how to go on', async () => {
    await runBadly(/take letters, digits/, 'context', 'use', '../x');
    await writeFile(join(home, 'config/ashlar/contexts/broken.json'), '{"version":1,"clusterID":""}');
    await runBadly(/clusterID is not a key.*context remove broken/, 'node', 'list', '--context', 'broken');
    await runWell('context', 'remove', 'broken');
  });
});

const etcdBinary = await findEtcd();
describe('a cluster of one', { skip: etcdBinary === undefined ? NO_ETCD : false }, () => {
  const node = testNode();
  const nodeId = nodeIdOf(node.certificate.publicKey);
  const serving = testIdentity({ name: { commonName: 'curator' } });
  const fingerprint = certificateFingerprint(serving.certificate);
  const stopped: string[] = [];
  let etcd: TestEtcd;
  let endpoint: string;
  let nodeEndpoint: string;
  let owner: string;
  let recovery: string;
  let machine: SealedMachine;
  let firmware: { eventLog: Uint8Array };
  let swtpm: SoftwareTpm;
  let stopCurator: () => Promise<void>;
  const running = new AsyncDisposableStack();

  before(async () => {
    etcd = running.use(await startEtcd(etcdBinary ?? ''));
    owner = join(home, 'owner-of-one');
    recovery = JSON.parse(await runWell('cluster', 'prepare', owner, '--json')).recoveryFingerprint;
    const initSocket = join(home, 'init.sock');
    machine = await sealedMachine(home);
    firmware = { eventLog: machine.eventLog };
    swtpm = running.use(await startSoftwareTpm());
    running.use(
      await startInitServer({
        path: initSocket,
        service: initService(
          nodeId,
          recovery,
          stopped,
          tpmService(swtpm.tcti, node.certificate.publicKey.export(SPKI)),
          machine,
          firmware,
        ),
        log: quiet,
        gid: process.getgid?.() ?? 0,
      }),
    );
    const curatorAbort = new AbortController();
    const curatorPort = Promise.withResolvers<number>();
    const curator = runCurator({
      config: {
        nodeId,
        ownerCertificatePem: await readFile(join(owner, 'owner.crt'), 'utf8'),
        nodeCertificatePem: node.certificatePem,
        recoveryKeyFingerprint: recovery,
        listen: '127.0.0.1:0',
        etcd: etcd.options.address,
        version: '0.0.0-test',
      },
      keys: { servingKeyPem: serving.privateKeyPem, etcd: etcd.options },
      log: quiet,
      signal: curatorAbort.signal,
      onServing: curatorPort.resolve,
    });
    stopCurator = async () => {
      curatorAbort.abort();
      await curator;
    };
    running.defer(stopCurator);
    endpoint = `127.0.0.1:${await curatorPort.promise}`;
    const agentAbort = new AbortController();
    const agentPort = Promise.withResolvers<number>();
    await mkdir(join(home, 'agent/tls'), { recursive: true });
    const agent = runAgent({
      config: {
        nodeId,
        listen: '127.0.0.1:0',
        curator: endpoint,
        curatorSpkiSha256: fingerprint,
        initSocket,
        version: '0.0.0-test',
        roles: ['control'],
      },
      keys: node,
      dataDirectory: join(home, 'agent'),
      log: quiet,
      signal: agentAbort.signal,
      onServing: agentPort.resolve,
    });
    running.defer(async () => {
      agentAbort.abort();
      await agent;
    });
    nodeEndpoint = `127.0.0.1:${await agentPort.promise}`;
  });
  after(() => running.disposeAsync());

  const own = (...more: string[]) =>
    runWell(
      ...['cluster', 'take-ownership', '--endpoint', endpoint, '--fingerprint', fingerprint, '--owner', owner],
      ...more,
    );

  test('the owner takes ownership, twice, and the context keeps what was set', async () => {
    assert.match(await own('--operator', 'ada', '--endpoint-override', `*=${nodeEndpoint}`), /now the current one/);
    const first = await openContexts().read('default');
    const again = JSON.parse(await own('--operator', 'ada', '--json'));
    const second = await openContexts().read('default');
    assert.equal(again.clusterId, first?.clusterId);
    assert.notEqual(first?.operator.certificatePem, second?.operator.certificatePem);
    assert.deepEqual({ ...second?.nodeEndpoints }, { '*': nodeEndpoint });
  });

  test('someone else cannot take ownership', async () => {
    const other = join(home, 'other-owner');
    await runWell('cluster', 'prepare', other);
    await runBadly(
      /does not accept the owner's certificate in .*other-owner/,
      ...['cluster', 'take-ownership', '--endpoint', endpoint, '--fingerprint', fingerprint, '--owner', other],
    );
  });

  test('a cluster whose data opens with a recovery key of somebody else is refused, with both keys and no context', async () => {
    const other = join(home, 'alert/swapped-recovery');
    const prepared = JSON.parse(await runWell('cluster', 'prepare', other, '--json'));
    const recoveryFingerprint = String(prepared.recoveryFingerprint);
    for (const file of ['owner.crt', 'owner.key'])
      await writeFile(join(other, file), await readFile(join(owner, file)));
    const take = ['cluster', 'take-ownership', '--endpoint', endpoint, '--fingerprint', fingerprint, '--owner', other];
    const message = await runBadly(
      /^(ashlarctl: |error: )?cannot own this cluster: .*is not yours; no context was written/m,
      ...[...take, '--context', 'swapped'],
    );
    assert.ok(message.includes(recoveryFingerprint) && message.includes(recovery), message);
    assert.match(message, /If not, trust nothing of this cluster/);
    assert.equal(await openContexts().read('swapped'), undefined);
    await rm(join(other, 'recovery.pub'));
    await runBadly(/cannot read the owner's keys: .*recovery\.pub/, ...take);
  });

  test('a context of another cluster is not overwritten', async () => {
    const context = await openContexts().read('default');
    assert.ok(context !== undefined);
    await openContexts().write('other', { ...context, clusterId: 'cluster-other' });
    await runBadly(
      /context other is of cluster-other/,
      ...['cluster', 'take-ownership', '--endpoint', endpoint, '--fingerprint', fingerprint, '--owner', owner],
      ...['--context', 'other'],
    );
    assert.equal((await openContexts().read('other'))?.clusterId, 'cluster-other');
  });

  test('a server of another authority is named as such', async () => {
    const context = await openContexts().read('default');
    assert.ok(context !== undefined);
    await openContexts().write('foreign', { ...context, authorityPem: testAuthority().certificatePem });
    await runBadly(/not of this context's cluster/, 'node', 'list', '--context', 'foreign');
  });

  test('status and list show the node', async () => {
    await until(async () => /1 UP/.test(await runWell('cluster', 'status')));
    const { nodes, etcd: store } = JSON.parse(await runWell('cluster', 'status', '--json'));
    assert.deepEqual(nodes, { UP: 1 });
    assert.match(String(store.version), /^3\./);
    assert.match(
      await runWell('node', 'list'),
      new RegExp(`^NODE .*\\n${nodeId}  UP .*1/2 .*10\\.0\\.2\\.15 \\+1\\n$`),
    );
    const [listed] = JSON.parse(await runWell('node', 'list', '--json'));
    assert.deepEqual(
      [listed.id, listed.state, listed.roles, listed.pcrs['11'], listed.services],
      [
        nodeId,
        'UP',
        ['control'],
        'ab'.repeat(32),
        [
          { name: 'etcd', state: 'HEALTHY', inStateMs: 90_000, restarts: 0, healthy: true, lastExit: '' },
          { name: 'chrony', state: 'BACKOFF', inStateMs: 20, restarts: 3, healthy: false, lastExit: 'x'.repeat(200) },
        ],
      ],
    );
  });

  test('a node is found by the beginning of its ID; describe, services and logs come from the node itself', async () => {
    const short = nodeId.slice('node-'.length, 'node-'.length + 4);
    assert.match(await runWell('node', 'describe', short), /Secure Boot {2}enabled/);
    const described = JSON.parse(await runWell('node', 'describe', short, '--json'));
    assert.deepEqual([described.tpm, described.data.recoveryKeyFingerprint], ['ready', recovery]);
    assert.ok((await runWell('node', 'describe', short)).includes(`Recovery     ${recovery}\n`));
    assert.match(await runWell('node', 'services', short), /chrony {3}BACKOFF {2}0 s .*x…$/m);
    assert.equal(JSON.parse(await runWell('node', 'services', nodeId, '--json')).length, 2);
    const lines = (await run('node', 'logs', short, '--tail', '4')).stdout.trimEnd().split('\n');
    assert.equal(lines.length, 4);
    assert.match(lines[0] ?? '', /^2023-11-14 22:13:20\.000 {2}I {2}services\.etcd {2}line 0$/);
    assert.ok(!(await run('node', 'logs', short)).stdout.includes('\x1b'), 'a control character reached the terminal');
    const ofService = (await run('node', 'logs', short, '--service', 'etcd', '--tail', '2', '--json')).stdout;
    assert.deepEqual(
      ofService
        .trimEnd()
        .split('\n')
        .map((line) => JSON.parse(line).text),
      ['line 6', 'line 8'],
    );
    await runBadly(/no such service, only chrony, etcd/, 'node', 'logs', short, '--service', 'sshd');
    await runBadly(/no node of that ID/, 'node', 'services', 'zz');
  });

  test('the event log is written to a file', async () => {
    const file = join(home, 'event.log');
    await runWell('node', 'event-log', nodeId, '--out', file);
    assert.deepEqual(await readFile(file), Buffer.from(machine.eventLog));
  });

  test('a node proves what it runs: accepted for its image, refused for another or when its log does not fit', async () => {
    const [ours, others] = [testMachine(), testMachine({ content: 'another image' })];
    const before = firmware.eventLog;
    firmware.eventLog = encodeLog(ours.events);
    await bootTpm(swtpm, firmware.eventLog);
    const [image, other, out] = [join(home, 'image.json'), join(home, 'other.json'), join(home, 'evidence.json')];
    await writeFile(image, measurementsOf(ours));
    await writeFile(other, measurementsOf(others));
    const attest = ['node', 'attest', nodeId];
    assert.match(
      await runWell(...attest, '--image', other, '--image', image, '--out', out),
      /^ACCEPTED WITH RESERVATIONS: /m,
    );
    const judged = JSON.parse(await runWell(...attest, '--image', image, '--out', out, '--json'));
    const { verdict, file } = judged as { verdict: Verdict; file: string };
    assert.equal(file, out);
    for (const name of ['nonce', 'tls-key', 'activation'])
      assert.equal(verdict.checks.find((check) => check.name === name)?.outcome, 'passed', name);
    // The same evidence as a file: whoever kept the nonce can judge it again, and another nonce refuses it.
    const { nonce } = decodeEvidence(await readFile(out));
    const verify = ['measure', 'verify', '--evidence', out, '--image', image, '--nonce'];
    await runWell(...verify, Buffer.from(nonce).toString('hex'));
    assert.equal((await run(...verify, 'ab'.repeat(32))).code, 1);

    const strict = await run(...attest, '--image', image, '--strict');
    assert.equal(strict.code, 1, strict.stdout);
    const refused = await run(...attest, '--image', other);
    assert.equal(refused.code, 1);
    assert.match(refused.stdout, /^REFUSED: .*pcr-4, pcr-11$/m);
    firmware.eventLog = encodeLog(others.events);
    const edited = await run(...attest, '--image', image);
    assert.equal(edited.code, 1);
    assert.match(edited.stdout, /^FAILED/m);
    firmware.eventLog = before;
  });

  test('evidence without an image is only written, and without either is nothing', async () => {
    const out = join(home, 'unjudged.json');
    assert.match(await runWell('node', 'attest', nodeId, '--out', out), /not judged/);
    assert.equal(decodeEvidence(await readFile(out)).node.id, nodeId);
    assert.equal((await run('node', 'attest', nodeId)).code, 2);
    await runBadly(/there is no such file/, 'node', 'attest', nodeId, '--image', join(home, 'nowhere.json'));
  });

  test('evidence is bound to the key that this connection has seen', async () => {
    using connection = await connectCluster(openContexts(), {});
    const target = await connection.node(nodeId);
    const signal = new AbortController().signal;
    assert.throws(() => target.tlsSpki(), /it showed none/);
    const evidence = await takeEvidence(nodeAttestation(target, signal), { signal });
    assert.deepEqual(Buffer.from(evidence.tlsSpki), node.certificate.publicKey.export(SPKI));
    const { extraData } = decodeAttest(evidence.quote.attest);
    const expected = qualifyingData({ ...evidence, secret: evidence.activation.secret });
    assert.deepEqual(Buffer.from(extraData), Buffer.from(expected));
    assert.deepEqual(decodeEvidence(encodeEvidence(evidence)).sealing?.policyRef, 'ashlar-epoch-2');
    // Nothing of it serves for the next one.
    const again = await takeEvidence(nodeAttestation(target, signal), { signal });
    assert.notDeepEqual([again.nonce, again.activation.secret], [evidence.nonce, evidence.activation.secret]);
  });

  test('a change is predicted from what the node says, with the exit code, and nothing on the node changes', async () => {
    const uki = join(home, 'new.efi');
    const dbx = join(home, 'dbx.esl');
    await writeFile(uki, machine.build({ cmdline: 'new' }));
    await writeFile(dbx, encodeHashList(machine.keys.ownerGuid, [Buffer.alloc(32, 7)]));
    assert.match(await runWell('node', 'predict', nodeId, '--uki', uki), /^The data of node-.* will open\.$/m);
    const asked = ['node', 'predict', nodeId, '--uki', uki, '--dbx', dbx];
    const refused = await run(...asked);
    assert.equal(refused.code, 1);
    assert.match(refused.stdout, /will NOT open/);
    const { predicted, unseals } = JSON.parse((await run(...asked, '--json')).stdout);
    assert.equal(unseals, false);
    assert.ok(refused.stdout.includes(`\n  ashlarctl node reseal ${nodeId} --pcr7 ${String(predicted.pcr7)}\n`));
    assert.deepEqual(
      refused.stdout.split('\n').filter((line) => line.length > 100 && !line.startsWith('  ashlarctl')),
      [],
    );
    assert.deepEqual(stopped, []);
    for (const file of [dbx, home, join(home, 'nowhere')]) {
      await runBadly(new RegExp(`${file}`), 'node', 'predict', nodeId, '--uki', file);
    }
  });

  test('a reseal is asked for: to what comes, to a PCR 7, or to what dbx will hold', async () => {
    const [uki, dbx] = [join(home, 'new.efi'), join(home, 'dbx.esl')];
    const { predicted } = JSON.parse(
      (await run('node', 'predict', nodeId, '--uki', uki, '--dbx', dbx, '--json')).stdout,
    );
    assert.match(await runWell('node', 'reseal', nodeId, '--reason', 'new epoch'), /at its next boot/);
    await runWell('node', 'reseal', nodeId, '--pcr7', 'ef'.repeat(32));
    await runWell('node', 'reseal', nodeId, '--uki', uki, '--dbx', dbx, '--json');
    const asked = ['of the next boot', 'ef'.repeat(32), predicted.pcr7];
    assert.deepEqual(
      stopped.splice(0).map((line) => line.replace(/^reseal: .* \(operator ada\), PCR 7 /, '')),
      asked,
    );
    // An image that would not open anyway is not helped by another PCR 7.
    await writeFile(join(home, 'old.efi'), machine.build({ epoch: 1 }));
    await runBadly(
      /sealing anew would not help: the image is signed for "ashlar-epoch-1"/,
      ...['node', 'reseal', nodeId, '--uki', join(home, 'old.efi'), '--dbx', dbx],
    );
    assert.equal((await run('node', 'reseal', nodeId, '--pcr7', 'EF')).code, 2);
    assert.equal((await run('node', 'reseal', nodeId, '--dbx', dbx)).code, 2);
    assert.deepEqual(stopped, []);
  });

  test('reboot and poweroff reach init with reason and operator', async () => {
    await runWell('node', 'reboot', nodeId, '--reason', 'new kernel');
    await runWell('node', 'poweroff', nodeId, '--json');
    assert.deepEqual(stopped, ['reboot: new kernel (operator ada)', 'poweroff: asked for by ashlarctl (operator ada)']);
  });

  test('without the control plane a node whose ID and endpoint are known still answers', async () => {
    await stopCurator();
    await runBadly(/the cluster API at .*connection refused/, 'node', 'list');
    assert.match(await runWell('node', 'services', nodeId), /etcd/);
  });
});

const SEALING = {
  generation: 1,
  anchor: 'ok',
  resealed: '',
  resealRequested: false,
};

function initService(
  nodeId: string,
  recoveryKeyFingerprint: string,
  stopped: string[],
  tpm: Pick<InitService, 'attestationIdentity' | 'attest'>,
  { sealedTo }: SealedMachine,
  firmware: { readonly eventLog: Uint8Array },
): InitService {
  return {
    ...tpm,
    sealing: async () => {
      const { policyRef, policyKeyFingerprint, policyKeyPem, pcr7 } = sealedTo;
      return { ...SEALING, policyRef, policyKeyFingerprint, policyKeyPem, pcr7 };
    },
    requestReseal: async ({ reason, pcr7 }) => {
      stopped.push(`reseal: ${reason}, PCR 7 ${pcr7 ?? 'of the next boot'}`);
    },
    status: async () => ({
      nodeId,
      version: '0.0.0-test',
      bootId: 'boot-1',
      slot: 'A',
      stage: 'ready',
      bootTimeMs: Date.now() - 100_000,
      addresses: ['10.0.2.15/24', 'fec0::2/64'],
      roles: ['control'],
      pcrs: { 11: 'ab'.repeat(32) },
      secureBoot: 'enabled',
      tpm: 'ready',
      memory: { totalBytes: 1e9, availableBytes: 5e8 },
      pid1RssBytes: 5e7,
      timeline: [{ stage: 'init.stage1: start', atMs: 12.5 }],
      data: { state: 'open', createdThisBoot: true, recoveryKeyFingerprint },
    }),
    services: async () => [
      { name: 'etcd', state: 'HEALTHY', sinceMs: 90_000, restarts: 0, lastExit: '', healthy: true },
      { name: 'chrony', state: 'BACKOFF', sinceMs: 20, restarts: 3, lastExit: 'x'.repeat(200), healthy: false },
    ],
    async *logs({ tail = 1000 }) {
      for (let index = 0; index < Math.min(tail, 10); index++) {
        const name = index % 2 === 0 ? 'services.etcd' : 'init.data';
        const text = `line ${index}${index === 9 ? '\x1b[31m' : ''}`;
        yield { name, severity: 'INFO' as const, atMs: index, wallMs: 1_700_000_000_000, text };
      }
    },
    eventLog: async () => firmware.eventLog,
    stop: (action, reason) => stopped.push(`${action}: ${reason}`),
  };
}

async function until(check: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 15_000;
  while (!(await check())) {
    assert.ok(Date.now() < deadline, 'it did not happen within 15 s');
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}
