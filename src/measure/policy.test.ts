import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { createHash, generateKeyPairSync } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { skipWithout } from '../formats/fixtures.ts';
import { extendPcr, zeroPcr } from './pcr.ts';
import {
  decodePcrSignatures,
  encodePcrSignatures,
  pcrSignatureInput,
  signPcr11,
  verifyPcrSignature,
} from './pcr-signature.ts';
import { bootPhase } from './pcr11.ts';
import {
  encodePcrSelection,
  epochOfPolicyRef,
  maxEpoch,
  pcrDigest,
  policyAuthorize,
  policyPcr,
  policyRefOfEpoch,
  rsaPolicyKeyName,
  sealingPolicy,
} from './policy.ts';

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const policyKey = generateKeyPairSync('rsa', { modulusLength: 2048 });
const otherKey = generateKeyPairSync('rsa', { modulusLength: 2048 });
const pcr11 = extendPcr(zeroPcr(), bootPhase('enter-initrd').digest);

describe('policy digests', () => {
  it('select registers as the TPM writes them', () => {
    assert.equal(hex(encodePcrSelection([11])), '00000001000b03000800');
    assert.equal(hex(encodePcrSelection([7, 12, 13, 15])), '00000001000b0380b000');
    assert.throws(() => encodePcrSelection([24]), /cannot select PCR 24/);
  });

  it('name epochs, and read none but their own names', () => {
    for (const epoch of [1, 9, 10, maxEpoch]) assert.equal(epochOfPolicyRef(policyRefOfEpoch(epoch)), epoch);
    for (const epoch of [0, -1, 1.5, maxEpoch + 1]) assert.throws(() => policyRefOfEpoch(epoch), /cannot name epoch/);
    for (const text of ['ashlar-epoch-0', 'ashlar-epoch-01', 'ashlar-epoch-65', 'ashlar-epoch-1 ', 'epoch-1', '']) {
      assert.equal(epochOfPolicyRef(text), undefined);
    }
  });

  it('do not depend on the order in which registers are given', () => {
    const values: [number, Uint8Array][] = [
      [7, Buffer.alloc(32, 7)],
      [12, Buffer.alloc(32, 12)],
    ];
    assert.deepEqual(policyPcr(new Map(values)), policyPcr(new Map(values.toReversed())));
    assert.throws(() => pcrDigest(new Map([[1, new Uint8Array(20)]])), /PCR 1: its value has 20 bytes/);
  });

  it('change with the key, the policyRef, PCR 7 and PCR 12', () => {
    const base = { policyKey: policyKey.publicKey, policyRef: 'a', pcr7: zeroPcr() };
    const all = [
      sealingPolicy(base),
      sealingPolicy({ ...base, policyKey: otherKey.publicKey }),
      sealingPolicy({ ...base, policyRef: 'b' }),
      sealingPolicy({ ...base, pcr7: Buffer.alloc(32, 1) }),
      sealingPolicy({ ...base, values: new Map([[12, Buffer.alloc(32, 1)]]) }),
    ];
    assert.equal(new Set(all.map(hex)).size, all.length);
  });

  it('refuse a key that the template does not describe', () => {
    assert.throws(() => rsaPolicyKeyName(generateKeyPairSync('ed25519').publicKey), /it is ed25519; use RSA/);
  });
});

describe('PCR signatures', () => {
  const signature = signPcr11({ pcr11, policyRef: 'ashlar-epoch-1', key: policyKey.privateKey });

  it('survive their JSON', () => {
    const [read] = decodePcrSignatures(encodePcrSignatures([signature]));
    assert.ok(read);
    assert.equal(hex(read.policy), hex(signature.policy));
    assert.equal(read.policyRef, 'ashlar-epoch-1');
    assert.ok(verifyPcrSignature(read, policyKey.publicKey));
  });

  it('hold for one key and one policyRef', () => {
    assert.ok(!verifyPcrSignature(signature, otherKey.publicKey));
    assert.ok(!verifyPcrSignature({ ...signature, policyRef: 'ashlar-epoch-2' }, policyKey.publicKey));
  });

  it("are systemd-measure's when there is no policyRef", () => {
    const plain = signPcr11({ pcr11, policyRef: '', key: policyKey.privateKey });
    const root = JSON.parse(encodePcrSignatures([plain])) as { sha256: [{ pkfp: string; pol: string }] };
    const [entry] = root.sha256;
    const pkcs1 = policyKey.publicKey.export({ type: 'pkcs1', format: 'der' });
    assert.deepEqual(Object.keys(entry), ['pcrs', 'pkfp', 'pol', 'sig']);
    assert.equal(entry.pkfp, createHash('sha256').update(pkcs1).digest('hex'));
    assert.deepEqual(Buffer.from(pcrSignatureInput(plain.policy, '')), Buffer.from(entry.pol, 'hex'));
  });

  it('are refused by name when malformed', () => {
    const refuse = (change: object, message: RegExp) => {
      const root = JSON.parse(encodePcrSignatures([signature]));
      Object.assign(root.sha256[0], change);
      assert.throws(() => decodePcrSignatures(JSON.stringify(root)), message);
    };
    refuse({ pol: 'xyz' }, /sha256\[0\]\.pol is not 64 hex digits/);
    refuse({ pcrs: [99] }, /sha256\[0\]\.pcrs/);
    refuse({ sig: '!' }, /sha256\[0\]\.sig/);
    refuse({ ref: 5 }, /sha256\[0\]\.ref/);
    assert.throws(() => decodePcrSignatures('{'), /cannot decode PCR signatures/);
    assert.throws(() => decodePcrSignatures('[]'), /no list "sha256"/);
    assert.throws(() => decodePcrSignatures(' '.repeat(2 ** 20 + 1)), /over the limit/);
  });
});

describe('a real TPM 2.0', { skip: skipWithout('swtpm') || skipWithout('tpm2_policyauthorize') }, () => {
  let directory: string;
  let tpm: ChildProcess;
  before(async () => {
    directory = mkdtempSync(join(tmpdir(), 'ashlar-tpm-'));
    const socket = join(directory, 'sock');
    tpm = spawn(
      'swtpm',
      [
        'socket',
        '--tpm2',
        '--tpmstate',
        `dir=${directory}`,
        '--server',
        `type=unixio,path=${socket}`,
        '--ctrl',
        `type=unixio,path=${socket}.ctrl`,
        '--flags',
        'not-need-init,startup-clear',
      ],
      { stdio: 'ignore' },
    );
    for (let tries = 0; !existsSync(socket) && tries < 100; tries++) await sleep(50);
  });
  after(() => {
    tpm.kill();
    rmSync(directory, { recursive: true });
  });

  it('comes to the same key name and sealing policy', () => {
    const at = (name: string) => join(directory, name);
    const tool = (name: string, ...args: string[]) =>
      execFileSync(`tpm2_${name}`, args, {
        stdio: 'pipe',
        env: { ...process.env, TPM2TOOLS_TCTI: `swtpm:path=${at('sock')}` },
      });
    const policyRef = 'ashlar-epoch-1';
    const signature = signPcr11({ pcr11, policyRef, key: policyKey.privateKey });
    writeFileSync(at('pub.pem'), policyKey.publicKey.export({ type: 'spki', format: 'pem' }));
    writeFileSync(at('sig'), signature.signature);
    writeFileSync(at('ref'), policyRef);
    writeFileSync(at('input'), pcrSignatureInput(signature.policy, policyRef));
    tool('pcrextend', `11:sha256=${hex(bootPhase('enter-initrd').digest)}`);
    tool('loadexternal', '-C', 'o', '-G', 'rsa', '-u', at('pub.pem'), '-c', at('key.ctx'), '-n', at('name'));
    assert.equal(hex(rsaPolicyKeyName(policyKey.publicKey)), readFileSync(at('name'), 'hex'));
    tool(
      'verifysignature',
      '-c',
      at('key.ctx'),
      '-g',
      'sha256',
      '-m',
      at('input'),
      '-s',
      at('sig'),
      '-f',
      'rsassa',
      '-t',
      at('ticket'),
    );
    tool('startauthsession', '--policy-session', '-S', at('session'));
    tool('policypcr', '-S', at('session'), '-l', 'sha256:11', '-L', at('pol'));
    assert.equal(readFileSync(at('pol'), 'hex'), hex(signature.policy));
    tool(
      'policyauthorize',
      '-S',
      at('session'),
      '-i',
      at('pol'),
      '-q',
      at('ref'),
      '-n',
      at('name'),
      '-t',
      at('ticket'),
      '-L',
      at('authorized'),
    );
    assert.equal(
      readFileSync(at('authorized'), 'hex'),
      hex(policyAuthorize(readFileSync(at('name')), Buffer.from(policyRef))),
    );
    tool('policypcr', '-S', at('session'), '-l', 'sha256:7,12,13,15', '-L', at('sealing'));
    assert.equal(
      readFileSync(at('sealing'), 'hex'),
      hex(sealingPolicy({ policyKey: policyKey.publicKey, policyRef, pcr7: zeroPcr() })),
    );
  });
});
