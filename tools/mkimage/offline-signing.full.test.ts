/**
 * The whole of an image, signed at build and signed elsewhere: SHA256SUMS, and so every file, must be the same. Through the
 * command line, as an operator would.
 */
import assert from 'node:assert/strict';
import { cp, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { partitionNamed, readPartitions } from '../../qemu-tests/lab/disk-partitions.ts';
import { runProcess } from '../host/run-process.ts';
import { generateKeys } from './keys.ts';
import { makeSoftHsm, skipWithoutSoftHsm } from './softhsm-fixture.ts';

const MAIN = join(import.meta.dirname, 'main.ts');
const skipToken = skipWithoutSoftHsm();

let directory = '';
let privateKeys = '';
let publicKeys = '';
let onlineSums = '';
/** Of every build here: the files that the ESP gets for enrolment. */
let enrolment: readonly string[] = [];
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-offline-'));
  privateKeys = join(directory, 'private');
  publicKeys = join(directory, 'public');
  await generateKeys(privateKeys, { isDevelopment: false });
  await cp(privateKeys, publicKeys, { recursive: true, filter: (path) => !path.endsWith('.key') });
  await mkimage(['keys', 'export-auth', '--keys', privateKeys, '--out', join(directory, 'auth')]);
  enrolment = ['--enrolment', join(directory, 'auth')];
  await mkimage(['build', '--out', join(directory, 'online'), '--keys', privateKeys, ...enrolment, '--allow-drift']);
  onlineSums = await readFile(join(directory, 'online/SHA256SUMS'), 'utf8');
});
after(() => rm(directory, { recursive: true, force: true }));

async function mkimage(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<string> {
  const inherited = Object.fromEntries(Object.entries(process.env).filter(([, value]) => value !== undefined));
  const { stdout } = await runProcess(process.execPath, [MAIN, ...args], {
    env: { ...(inherited as Record<string, string>), ...env },
  });
  return stdout;
}

async function buildUnsigned(name: string): Promise<string> {
  const out = join(directory, name);
  await mkimage(['build', '--unsigned', '--out', out, '--keys', publicKeys, ...enrolment, '--allow-drift']);
  return out;
}

async function assertSame(out: string): Promise<void> {
  assert.deepEqual(await readdir(out), await readdir(join(directory, 'online')), 'and nothing is left over');
  const differing = (await runProcess('sha256sum', ['-c', join(directory, 'online/SHA256SUMS')], {
    cwd: out,
    allowFailure: true,
  }).then(({ stdout }) => stdout)) as string;
  assert.equal(await readFile(join(out, 'SHA256SUMS'), 'utf8'), onlineSums, differing);
}

test('the files for enrolment are on the ESP, as mtools reads it', async () => {
  const names = await readdir(join(directory, 'online'));
  const disk = join(directory, 'online', names.find((name) => name.endsWith('.disk.img')) ?? '');
  const { offset } = partitionNamed(await readPartitions(disk), 'ESP');
  for (const name of ['PK', 'KEK', 'db']) {
    const copy = join(directory, `${name}.copy`);
    await runProcess('mcopy', ['-i', `${disk}@@${offset}`, `::/EFI/ashlar/keys/${name}.auth`, copy]);
    assert.deepEqual(await readFile(copy), await readFile(join(directory, 'auth', `${name}.auth`)));
  }
});

const commandOf = (name: string) =>
  `command:${JSON.stringify(['openssl', 'dgst', '-sha256', '-sign', join(privateKeys, `${name}.key`)])}`;

test('signatures that travel as files give the image that a build with keys gives', {
  timeout: 1_800_000,
}, async () => {
  const out = await buildUnsigned('files');
  const request = join(out, 'unsigned/signing-request.json');
  const answer = join(directory, 'answer.json');
  for (const [option, key, next] of [
    ['--policy-key', 'policy.key', /waits for secure-boot/],
    ['--secure-boot-key', 'db.key', /signed: .*\.efi/],
  ] as const) {
    await mkimage(['sign', '--request', request, '--out', answer, option, join(privateKeys, key)]);
    assert.match(await mkimage(['sign', out, '--signatures', answer, '--allow-drift']), next);
  }
  await assertSame(out);
});

test('so do a command and a PKCS #11 token', { timeout: 1_800_000, skip: skipToken }, async () => {
  const files = { db: join(privateKeys, 'db.key'), policy: join(privateKeys, 'policy.key') };
  const token = await makeSoftHsm(join(directory, 'softhsm'), files, { token: 'operator', pin: '483920' });
  for (const [name, policy, secureBoot] of [
    ['command', commandOf('policy'), commandOf('db')],
    ['token', token.uri('policy'), token.uri('db')],
  ] as const) {
    const out = await buildUnsigned(name);
    const signers = ['--policy-key', policy, '--secure-boot-key', secureBoot];
    assert.match(await mkimage(['sign', out, ...signers, '--allow-drift'], token.env), /signed: /);
    await assertSame(out);
  }
});

test('so does a build that asks a token at once', { timeout: 1_800_000, skip: skipToken }, async () => {
  const files = { db: join(privateKeys, 'db.key') };
  const token = await makeSoftHsm(join(directory, 'softhsm-build'), files, { token: 'builder', pin: '573920' });
  const out = join(directory, 'at-once');
  const signers = ['--policy-key', commandOf('policy'), '--secure-boot-key', token.uri('db')];
  await mkimage(['build', '--out', out, '--keys', publicKeys, ...enrolment, ...signers, '--allow-drift'], token.env);
  await assertSame(out);
});
