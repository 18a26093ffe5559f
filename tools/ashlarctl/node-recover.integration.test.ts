/** Recovery over the real agent, TLS and TPM; what opens the volume stands in for init's Worker. */
import assert from 'node:assert/strict';
import {
  constants,
  createPrivateKey,
  createPublicKey,
  generateKeyPairSync,
  publicEncrypt,
  randomBytes,
} from 'node:crypto';
import { chmod, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { after, before, test } from 'node:test';
import { runRecoveryAgent } from '../../src/agent/recovery-agent.ts';
import { spkiFingerprint } from '../../src/formats/x509.ts';
import { type InitService, startInitServer } from '../../src/init/init-server.ts';
import { type TestIdentity, testIdentity } from '../../src/rpc/certificates-for-tests.ts';
import { RecoveryService } from '../../src/rpc/gen/ashlar/node/v1/recovery_pb.ts';
import { openChannel } from '../../src/rpc/grpc-client.ts';
import { InitRefusal } from '../../src/rpc/init-protocol.ts';
import { RpcCallError } from '../../src/rpc/rpc-error.ts';
import { certificateFingerprint, RECOVERY_SERVER_NAME } from '../../src/rpc/tls-names.ts';
import { bootTpm, encodeLog, testMachine } from '../../src/tpm/evidence-fixture.ts';
import { type SoftwareTpm, startSoftwareTpm } from '../../src/tpm/swtpm-fixture.ts';
import { runCommandLine } from '../host/command-line.ts';
import { measurementsOf, tpmService } from './attesting-node-for-tests.ts';
import { ashlarctl } from './commands.ts';

const RECOVERY_SECRET = randomBytes(32);
const machine = testMachine();
const eventLog = encodeLog(machine.events);
const bootKey = testIdentity({ name: { commonName: 'recovery' }, dnsNames: [RECOVERY_SERVER_NAME] });
const fingerprint = certificateFingerprint(bootKey.certificate);

let home: string;
let owner: string;
let swtpm: SoftwareTpm;
let endpoint: string;
/** Why the data is closed, as init says. */
let refusal = 'pcr-7-changed';
const recovered: string[] = [];
const stopped: string[] = [];
const running = new AsyncDisposableStack();

before(async () => {
  home = await mkdtemp(join(tmpdir(), 'ashlar-recover-'));
  owner = join(home, 'owner');
  assert.equal((await run('cluster', 'prepare', owner)).code, 0);
  swtpm = running.use(await startSoftwareTpm());
  await bootTpm(swtpm, eventLog);
  const initSocket = join(home, 'init.sock');
  const recoveryPublicKey = createPublicKey(await readFile(join(owner, 'recovery.pub'), 'utf8'));
  const log = { debug() {}, info() {}, warning() {}, error() {} };
  running.use(
    await startInitServer({
      path: initSocket,
      service: initService(recoveryPublicKey),
      log,
      gid: process.getgid?.() ?? 0,
    }),
  );
  const serving = Promise.withResolvers<number>();
  const abort = new AbortController();
  const agent = runRecoveryAgent({
    config: {
      listen: '127.0.0.1:0',
      initSocket,
      ownerCertificatePem: await readFile(join(owner, 'owner.crt'), 'utf8'),
    },
    keys: bootKey,
    log,
    signal: abort.signal,
    onServing: serving.resolve,
  });
  running.defer(async () => {
    abort.abort();
    await agent;
  });
  endpoint = `127.0.0.1:${await serving.promise}`;
  await writeFile(join(home, 'image.json'), measurementsOf(machine));
  await writeFile(join(home, 'other.json'), measurementsOf(testMachine({ content: 'another image' })));
});
after(async () => {
  await running.disposeAsync();
  await rm(home, { recursive: true });
});

function initService(recoveryPublicKey: ReturnType<typeof createPublicKey>): InitService {
  const encrypted = publicEncrypt(
    { key: recoveryPublicKey, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha256' },
    RECOVERY_SECRET,
  );
  const closed = async () => {
    throw new InitRefusal('UNAVAILABLE', 'the data of this node is closed');
  };
  return {
    ...tpmService(swtpm.tcti, bootKey.certificate.publicKey.export({ type: 'spki', format: 'der' })),
    status: async () => ({
      nodeId: '',
      version: '0.0.0-test',
      bootId: 'boot-1',
      slot: 'A',
      stage: 'recovery',
      bootTimeMs: 1,
      addresses: [],
      roles: ['node'],
      pcrs: {},
      secureBoot: 'enabled',
      tpm: 'ready',
      memory: { totalBytes: 1, availableBytes: 1 },
      pid1RssBytes: 1,
      timeline: [],
      data: { state: 'refused', createdThisBoot: false, recoveryKeyFingerprint: '' },
    }),
    services: async () => [],
    async *logs() {},
    eventLog: async () => eventLog,
    sealing: closed,
    requestReseal: closed,
    recovery: {
      state: async () => ({
        refusal,
        message: 'cannot unseal the node key: PCR 7 is \x1b[31mother',
        volumeUuid: '6e7a3b6c-0000-4000-8000-000000000001',
        recoveryKeyFingerprint: spkiFingerprint(recoveryPublicKey),
        encryptedRecoveryKey: encrypted.toString('base64'),
      }),
      async recover({ recoverySecret }) {
        recovered.push(recoverySecret);
        return { summary: 'generation 2 for ashlar-epoch-1' };
      },
    },
    stop: (action, reason) => stopped.push(`${action}: ${reason}`),
  };
}

async function run(...argv: string[]) {
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

const recoverArgs = (change: { image?: string; fingerprint?: string; owner?: string } = {}) => [
  ...['node', 'recover', '--endpoint', endpoint, '--fingerprint', change.fingerprint ?? fingerprint],
  ...['--owner', change.owner ?? owner, '--image', join(home, change.image ?? 'image.json')],
];

/** That a run neither sent the key nor showed it. */
function assertNothingSent(outcome: { stdout: string; stderr: string }): void {
  assert.deepEqual(recovered, []);
  assert.deepEqual(stopped, []);
  for (const text of [outcome.stdout, outcome.stderr]) {
    assert.ok(!text.includes(RECOVERY_SECRET.toString('hex')) && !text.includes(RECOVERY_SECRET.toString('base64')));
    assert.doesNotMatch(text, /PRIVATE|\x1b\[31m/);
  }
}

test('a node that runs another image is sent nothing', async () => {
  const outcome = await run(...recoverArgs({ image: 'other.json' }), '--trust-any-tpm');
  assert.equal(outcome.code, 1, outcome.stderr);
  assert.match(outcome.stdout, /^REFUSED: .*pcr-11[^]*^Nothing was sent to the node\.$/m);
  assertNothingSent(outcome);
});

test('a PCR 7 other than the one that is accepted is refused, and shown', async () => {
  const outcome = await run(...recoverArgs(), '--trust-any-tpm', '--accept-pcr7', 'ab'.repeat(32));
  assert.equal(outcome.code, 1, outcome.stderr);
  assert.match(outcome.stdout, /^FAILED +pcr-7 +[0-9a-f]{20}/m);
  assertNothingSent(outcome);
});

test('another key than the one on the console ends before anything is said', async () => {
  const outcome = await run(...recoverArgs({ fingerprint: `SHA256:${'A'.repeat(43)}` }), '--trust-any-tpm');
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, /nothing was sent/);
  assertNothingSent(outcome);
});

test('a TPM that nobody vouches for gets the key only when that is said', async () => {
  const without = await run(...recoverArgs());
  assert.equal(without.code, 2);
  assert.match(without.stderr, /--trust-any-tpm/);
  const uncertified = await run(...recoverArgs(), '--ek-ca', join(owner, 'owner.crt'));
  assert.equal(uncertified.code, 1);
  assert.match(uncertified.stdout, /^REFUSED: .*ek-/m);
  assertNothingSent(uncertified);
});

test('somebody with another owner certificate, even one that the owner issued, reaches nothing', async () => {
  const certificatePem = await readFile(join(owner, 'owner.crt'), 'utf8');
  const privateKeyPem = await readFile(join(owner, 'owner.key'), 'utf8');
  const stranger = testIdentity({ name: { commonName: 'stranger' } });
  const issued = testIdentity({
    name: { commonName: 'issued' },
    issuer: {
      ...stranger,
      name: { organization: 'ashlar-owner', commonName: 'owner' },
      privateKey: createPrivateKey(privateKeyPem),
      certificatePem,
    } as TestIdentity,
  });
  for (const identity of [stranger, issued]) {
    using channel = openChannel({
      address: endpoint,
      serverName: RECOVERY_SERVER_NAME,
      trustedPem: [bootKey.certificatePem],
      identity,
    });
    await assert.rejects(channel.client(RecoveryService).getRecoveryState({}), (error: RpcCallError) => {
      assert.match(error.code, /UNAVAILABLE|UNAUTHENTICATED/);
      return true;
    });
  }
});

test('another recovery key than the volume has is named before the TPM is asked', async () => {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const path = join(home, 'another.key');
  await writeFile(path, privateKey.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o644 });
  const shared = await run(...recoverArgs(), '--trust-any-tpm', '--recovery-key', path);
  assert.match(shared.stderr, /cannot use the recovery key: .* others can read it; run: chmod 600/);
  assertNothingSent(shared);
  await chmod(path, 0o600);
  const outcome = await run(...recoverArgs(), '--trust-any-tpm', '--recovery-key', path);
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, /recovery slot is for the key SHA256:.*, yours is SHA256:/);
  assertNothingSent(outcome);
  for (const file of ['owner.crt', 'owner.key']) {
    const wrong = await run(...recoverArgs(), '--trust-any-tpm', '--recovery-key', join(owner, file));
    assert.match(wrong.stderr, /cannot (read|use) the recovery key/);
    assertNothingSent(wrong);
  }
});

test('a disk whose header the TPM does not know is recovered only when that is said', async () => {
  refusal = 'header-refused';
  const outcome = await run(...recoverArgs(), '--trust-any-tpm');
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, /without your word.*--accept-header/);
  assertNothingSent(outcome);
  const said = await run(...recoverArgs({ image: 'other.json' }), '--trust-any-tpm', '--accept-header');
  assert.match(said.stdout, /^REFUSED: /m);
  assertNothingSent(said);
  refusal = 'pcr-7-changed';
});

test('a secret of another size is refused without a word of it', async () => {
  using channel = openChannel({
    address: endpoint,
    serverName: RECOVERY_SERVER_NAME,
    trustedPem: [bootKey.certificatePem],
    identity: {
      certificatePem: await readFile(join(owner, 'owner.crt'), 'utf8'),
      privateKeyPem: await readFile(join(owner, 'owner.key'), 'utf8'),
    },
  });
  for (const recoverySecret of [Buffer.from('short secret'), Buffer.alloc(513, 'x')]) {
    await assert.rejects(channel.client(RecoveryService).recover({ recoverySecret }), (error: RpcCallError) => {
      assert.equal(error.code, 'INVALID_ARGUMENT');
      assert.doesNotMatch(error.details, /short secret|xxx/);
      return true;
    });
  }
  assert.deepEqual(recovered, []);
});

test('a node that proves itself gets the key of its slot, once, and reboots; no file has the key', async () => {
  const evidence = join(home, 'evidence.json');
  const outcome = await run(...recoverArgs(), '--trust-any-tpm', '--out', evidence, '--json');
  assert.equal(outcome.code, 0, outcome.stdout + outcome.stderr);
  const report = JSON.parse(outcome.stdout) as { recovered: boolean; refusal: string; summary: string };
  assert.deepEqual([report.recovered, report.refusal], [true, 'pcr-7-changed']);
  assert.match(report.summary, /generation 2/);
  assert.deepEqual(recovered, [RECOVERY_SECRET.toString('base64')]);
  assert.deepEqual(stopped, ['reboot: the data was recovered']);
  recovered.length = stopped.length = 0;
  assertNothingSent(outcome);
  for (const name of await readdir(home, { recursive: true, withFileTypes: true })) {
    if (!name.isFile()) continue;
    const content = await readFile(join(name.parentPath, name.name));
    assert.ok(!content.includes(RECOVERY_SECRET) && !content.includes(RECOVERY_SECRET.toString('base64')), name.name);
  }
});
