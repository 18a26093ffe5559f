/** `measure verify` as a person runs it, on evidence of a real TPM (swtpm) and measurements that mkimage made. */
import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { mkdir, mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { after, before, describe, it } from 'node:test';
import { minimalPe } from '../../src/formats/fixtures.ts';
import { createCertificate, encodePem } from '../../src/formats/x509.ts';
import { type Evidence, encodeEvidence } from '../../src/measure/evidence.ts';
import { authorityOf, bootTpm, encodeLog, takeTestEvidence, testMachine } from '../../src/tpm/evidence-fixture.ts';
import { type SoftwareTpm, startSoftwareTpm } from '../../src/tpm/swtpm-fixture.ts';
import { runCommandLine } from '../host/command-line.ts';
import { generateKeys, loadKeys, secureBootVariablesOf } from '../mkimage/keys.ts';
import { formatMeasurements } from '../mkimage/measurements.ts';
import { assembleUki } from '../mkimage/uki.ts';
import { ashlarctl } from './commands.ts';

let directory: string;
let tpm: SoftwareTpm;
let evidence: Evidence;
let nonce: string;
const at = (name: string): string => join(directory, name);

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-verify-'));
  await generateKeys(at('keys'), { isDevelopment: true });
  const keys = await loadKeys(at('keys'));
  const build = (cmdline: string) =>
    assembleUki({
      stub: minimalPe(),
      kernel: minimalPe({ text: Buffer.from('kernel') }),
      initrd: Buffer.from('initramfs'),
      cmdline,
      osRelease: 'ID=ashlar\n',
      uname: '6.12.1-ashlar',
      epoch: 1,
      keys,
    });
  const { uki, measurements } = build('quiet');
  await writeFile(at('measurements.json'), formatMeasurements(measurements));
  await writeFile(at('other.json'), formatMeasurements(build('loud').measurements));
  const board = testMachine({ uki, variables: secureBootVariablesOf(keys, 'empty') });
  const log = encodeLog(board.events);
  tpm = await startSoftwareTpm({ manufactured: true });
  await bootTpm(tpm, log);
  evidence = takeTestEvidence(tpm, log);
  nonce = Buffer.from(evidence.nonce).toString('hex');
  await writeFile(at('evidence.json'), encodeEvidence(evidence));
  const authority = authorityOf(tpm);
  await writeFile(at('ca.der'), authority);
  await writeFile(at('ca.pem'), `A maker\n${encodePem('CERTIFICATE', authority)}`.repeat(2));
  await writeFile(at('empty'), '');
  await mkdir(at('dir'));
  await using file = await open(at('huge'), 'w');
  await file.truncate(5 * 1024 ** 3);
});
after(async () => {
  await tpm[Symbol.asyncDispose]();
  await rm(directory, { recursive: true });
});

/** PEM of an authority that has made no TPM. */
function otherAuthority(): string {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const name = { commonName: 'swtpm-localca' };
  return createCertificate({
    subject: name,
    publicKey,
    issuer: { name, key: privateKey },
    serialNumber: Uint8Array.of(1),
    notBefore: new Date('2025-01-01T00:00:00Z'),
    notAfter: new Date('2099-01-01T00:00:00Z'),
    isCa: true,
    usages: [],
  });
}

interface Outcome {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

async function verify(...argv: string[]): Promise<Outcome> {
  const captured = { stdout: '', stderr: '' };
  const stream = (name: 'stdout' | 'stderr') =>
    new Writable({
      write(chunk: Buffer, _encoding, callback) {
        captured[name] += chunk.toString();
        callback();
      },
    });
  const code = await runCommandLine(ashlarctl, ['measure', 'verify', ...argv], {
    stdout: stream('stdout'),
    stderr: stream('stderr') as unknown as NodeJS.WriteStream,
  });
  for (const line of captured.stdout.split('\n'))
    assert.ok(argv.includes('--json') || line.length <= 100, `${line.length} columns: ${line}`);
  return { code, ...captured };
}

const files = (): string[] => ['--evidence', at('evidence.json'), '--image', at('measurements.json')];

describe('measure verify', () => {
  it('accepts genuine evidence of an image that mkimage has made, with no reservation when all is given', async () => {
    for (const ca of ['ca.pem', 'ca.der']) {
      const outcome = await verify(...files(), '--nonce', nonce, '--ek-ca', at(ca), '--strict');
      assert.equal(outcome.code, 0, outcome.stdout + outcome.stderr);
      assert.match(outcome.stdout, /^passed {4}quote-signature {2}ecdsa sha256$/m);
      assert.match(outcome.stdout, /^ACCEPTED: the node runs /m);
    }
  });

  it('says what acceptance does not cover, and with --strict refuses that', async () => {
    const outcome = await verify(...files());
    assert.equal(outcome.code, 0, outcome.stdout + outcome.stderr);
    assert.match(outcome.stdout, /^not done {2}ek-chain {9}no trusted authorities were given$/m);
    assert.match(outcome.stdout, /^ACCEPTED WITH RESERVATIONS: /m);
    assert.match(outcome.stdout, /^ {2}- nobody vouched for the TPM: .* \(give --ek-ca\)$/m);
    const strict = await verify(...files(), '--strict');
    assert.equal(strict.code, 1);
    assert.match(strict.stdout, /^REFUSED: no check failed, but --strict allows no reservation:$/m);
    assert.match(strict.stdout, /^ {2}- nobody vouched for the TPM: .* \(give --ek-ca\)$/m);
    assert.doesNotMatch(strict.stdout, /ACCEPTED/);
    const { code, stdout } = await verify(...files(), '--strict', '--json');
    const answer = JSON.parse(stdout) as { accepted: boolean; strict: boolean; reservations: string[] };
    assert.deepEqual([code, answer.accepted, answer.strict], [1, false, true]);
    assert.match(answer.reservations.join('\n'), /nobody vouched for the TPM/);
  });

  it('refuses the measurements of another image, and names what differs with both values', async () => {
    const outcome = await verify('--evidence', at('evidence.json'), '--image', at('other.json'));
    assert.equal(outcome.code, 1);
    assert.match(outcome.stdout, /^FAILED {4}pcr-11 +[0-9a-f]{64},\n +expected\n? +[0-9a-f]{64}/m);
    assert.match(outcome.stdout, /^REFUSED: 2 of 25 checks failed: pcr-4, pcr-11$/m);
    const both = await verify(...files(), '--image', at('other.json'));
    assert.equal(both.code, 0);
  });

  it('refuses another nonce and another maker', async () => {
    const wrong = await verify(...files(), '--nonce', '00'.repeat(32));
    assert.equal(wrong.code, 1);
    assert.match(wrong.stdout, /^REFUSED: 1 of 25 checks failed: nonce$/m);
    await writeFile(at('other-ca.pem'), otherAuthority());
    const maker = await verify(...files(), '--ek-ca', at('other-ca.pem'));
    assert.match(maker.stdout, /^REFUSED: 1 of 25 checks failed: ek-chain$/m);
  });

  it('takes the PCR 7 of a board that measures more than is predicted', async () => {
    const pcr7 = Buffer.from(evidence.pcrs.get(7) ?? []).toString('hex');
    assert.equal((await verify(...files(), '--pcr7', pcr7)).code, 0);
    assert.match((await verify(...files(), '--pcr7', '11'.repeat(32))).stdout, /failed: pcr-7$/m);
  });

  it('gives programs every check and every register', async () => {
    const { stdout, code } = await verify(...files(), '--json');
    assert.equal(code, 0);
    const answer = JSON.parse(stdout) as { accepted: boolean; checks: { name: string }[]; registers: unknown[] };
    assert.equal(answer.accepted, true);
    assert.equal(answer.checks.length, 25);
    assert.equal(answer.registers.length, 16);
    const broken = await verify('--evidence', at('ca.pem'), '--image', at('measurements.json'), '--json');
    assert.equal(broken.code, 1);
    assert.equal((JSON.parse(broken.stdout) as { accepted: boolean }).accepted, false);
  });

  it('writes a report, of what is refused too, and says when it cannot', async () => {
    const other = ['--evidence', at('evidence.json'), '--image', at('other.json')];
    for (const [argv, word, expected] of [
      [files(), 'Accepted with reservations', 0],
      [[...files(), '--strict'], 'Refused', 1],
      [other, 'Refused', 1],
    ] as const) {
      const { code, stdout } = await verify(...argv, '--report', at('report.html'));
      assert.equal(code, expected, stdout);
      assert.ok((await readFile(at('report.html'), 'utf8')).includes(`${word}</strong>`));
    }
    const outcome = await verify(...files(), '--report', at('dir'));
    assert.equal(outcome.code, 1);
    assert.match(outcome.stderr, /^error: cannot write the report .*dir: it is a directory$/m);
  });

  it('shows nothing of hostile evidence that a terminal would act on', async () => {
    const text = await readFile(at('evidence.json'), 'utf8');
    await writeFile(at('hostile.json'), text.replace('"node-test"', '"\\u001b[2Jnode"'));
    const outcome = await verify('--evidence', at('hostile.json'), '--image', at('measurements.json'));
    assert.equal(outcome.code, 1);
    assert.ok(!`${outcome.stdout}${outcome.stderr}`.includes('\u001b[2J'));
  });

  for (const [title, change, reason] of [
    ['a directory as evidence', { evidence: 'dir' }, /cannot read the evidence .*dir: it is a directory/],
    ['no evidence at all', { evidence: 'absent' }, /cannot read the evidence .*absent: there is no such file/],
    ['an empty file', { evidence: 'empty' }, /cannot read the evidence .*empty: it is empty/],
    ['a file of 5 GB', { evidence: 'huge' }, /cannot read the evidence .*huge: it has 5368709120 bytes; at most/],
    ['measurements as evidence', { evidence: 'measurements.json' }, /measurements.json: cannot decode evidence: /],
    ['something else as evidence', { evidence: 'ca.pem' }, /ca.pem: cannot decode evidence: it is not JSON/],
    ['a directory as measurements', { image: 'dir' }, /cannot read the measurements .*dir: it is a directory/],
    ['evidence as measurements', { image: 'evidence.json' }, /cannot read measurements: bank is missing; give the/],
    ['a file of 5 GB as measurements', { image: 'huge' }, /cannot read the measurements .*huge: it has 5368709120/],
    ['an empty file as authorities', { 'ek-ca': 'empty' }, /cannot read the makers' certificates .*empty: it is empty/],
    ['JSON as authorities', { 'ek-ca': 'evidence.json' }, /evidence.json: cannot decode X.509 certificate/],
  ] as const)
    it(`${title}: one line that says so, exit code 1`, async () => {
      const options: Record<string, string> = { evidence: 'evidence.json', image: 'measurements.json', ...change };
      const outcome = await verify(...Object.entries(options).flatMap(([name, file]) => [`--${name}`, at(file)]));
      assert.equal(outcome.code, 1, outcome.stdout);
      assert.equal(outcome.stdout, '');
      assert.equal(outcome.stderr.trim().split('\n').length, 1, outcome.stderr);
      assert.match(outcome.stderr, reason);
    });

  it('a wrong command line is a wrong command line', async () => {
    assert.equal((await verify('--evidence', at('evidence.json'))).code, 2);
    assert.equal((await verify(...files(), '--nonce', 'abc')).code, 2);
    assert.equal((await verify(...files(), '--pcr7', 'abc')).code, 2);
  });
});
