import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { chmod, cp, mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { after, before, describe, it } from 'node:test';
import { runCommandLine } from '../host/command-line.ts';
import { exportAuthCommand } from './enrolment-files.ts';
import {
  developmentKeys,
  generateKeys,
  generateKeysCommand,
  loadKeys,
  loadPublicKeys,
  rotatePolicyKey,
  rotatePolicyKeyCommand,
} from './keys.ts';

const compareText = (a: string | undefined, b: string | undefined): number => ((a ?? '') < (b ?? '') ? -1 : 1);

let directory: string;
let made: string;
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-keys-'));
  made = join(directory, 'made');
  await generateKeys(made, { isDevelopment: false });
});
after(() => rm(directory, { recursive: true }));

describe('generateKeys', () => {
  it('makes every file, private ones only for the owner', async () => {
    const modes = await Promise.all(
      (await readdir(made)).map(async (name) => [name, ((await stat(join(made, name))).mode & 0o777).toString(8)]),
    );
    const privateFiles = modes.filter(([name]) => name?.endsWith('.key'));
    assert.deepEqual(privateFiles.map(([name]) => name).toSorted(compareText), [
      'KEK.key',
      'PK.key',
      'db.key',
      'policy.key',
      'update.key',
    ]);
    assert.ok(privateFiles.every(([, mode]) => mode === '600'));
    assert.equal(((await stat(made)).mode & 0o777).toString(8), '700');
    assert.deepEqual(
      modes
        .map(([name]) => name)
        .filter((name) => !name?.endsWith('.key'))
        .toSorted(compareText),
      ['KEK.crt', 'PK.crt', 'db.crt', 'owner-guid', 'policy.pub', 'update.pub'],
    );
  });

  it('never overwrites and leaves nothing half-done', async () => {
    await assert.rejects(generateKeys(made, { isDevelopment: false }), /exists; keys are never overwritten/);
    assert.deepEqual(await readdir(directory), ['made']);
  });

  it('gives certificates ten years and db the purpose of signing code', async () => {
    const keys = await loadKeys(made);
    const db = new X509Certificate(keys.dbCertificatePem);
    assert.deepEqual(db.keyUsage, ['1.3.6.1.5.5.7.3.3']);
    assert.equal(db.validToDate.getUTCFullYear() - db.validFromDate.getUTCFullYear(), 10);
    assert.ok(db.verify(db.publicKey));
    assert.equal(keys.isDevelopment, false);
  });
});

describe('loadKeys', () => {
  it('refuses a private key that others can read', async () => {
    await chmod(join(made, 'db.key'), 0o644);
    await assert.rejects(loadKeys(made), /db\.key has mode 0644, others can read it; run: chmod 600/);
    await chmod(join(made, 'db.key'), 0o600);
  });

  it('refuses a key that does not fit, and never shows it', async () => {
    const mixed = join(directory, 'mixed');
    await generateKeys(mixed, { isDevelopment: false });
    await writeFile(join(mixed, 'db.key'), 'SECRET', { mode: 0o600 });
    await assert.rejects(
      loadKeys(mixed),
      (error: Error) => /not a PEM private key/.test(error.message) && !/SECRET/.test(String(error.stack)),
    );
    await rm(mixed, { recursive: true });
  });

  it('names the file that is missing and the way out', async () => {
    await assert.rejects(loadKeys(join(directory, 'none')), /none\/db\.crt: .*mkimage keys generate/);
  });
});

describe('rotatePolicyKey', () => {
  it('keeps everything but the policy key, which is new, and the one before beside it', async () => {
    const rotated = join(directory, 'rotated');
    const { former } = await rotatePolicyKey(made, rotated);
    const [before, after] = [await loadKeys(made), await loadKeys(rotated)];
    assert.deepEqual(after.formerPolicyKeys, [{ name: former, publicKeyPem: before.policyPublicKeyPem }]);
    assert.ok(after.formerPolicyPrivateKeys.get(former)?.equals(before.policyKey));
    assert.notEqual(after.policyPublicKeyPem, before.policyPublicKeyPem);
    assert.equal(after.dbCertificatePem, before.dbCertificatePem);
    assert.equal((await stat(join(rotated, 'policy.key'))).mode & 0o777, 0o600);
    assert.equal((await stat(join(rotated, 'former-policy', `${former}.key`))).mode & 0o777, 0o600);
  });

  it('overwrites nothing, and leaves nothing behind when it refuses', async () => {
    const listed = await readdir(directory);
    await assert.rejects(rotatePolicyKey(made, join(directory, 'rotated')), /exists; keys are never overwritten/);
    assert.deepEqual(await readdir(directory), listed);
  });

  it('refuses a fifth former key, a private half of another, and a former key that is the present one', async () => {
    let last = made;
    for (let turn = 1; turn <= 4; turn += 1) {
      const next = join(directory, `turn-${turn}`);
      await rotatePolicyKey(last, next);
      last = next;
    }
    await assert.rejects(rotatePolicyKey(last, join(directory, 'turn-5')), /holds 4 former ones already/);
    const [{ name: one } = { name: '' }, { name: other } = { name: '' }] = (await loadKeys(last)).formerPolicyKeys;
    const path = (file: string) => join(last, 'former-policy', file);
    await cp(path(`${one}.key`), path(`${other}.key`));
    await assert.rejects(loadKeys(last), new RegExp(`${other}\\.key is not the key of ${other}\\.pub`));
    await cp(join(last, 'policy.pub'), path(`${one}.pub`));
    await assert.rejects(loadPublicKeys(last), new RegExp(`former-policy/${one}\\.pub is the key of policy\\.pub`));
  });
});

describe('developmentKeys', () => {
  it('are made once, marked, and the same for all who ask at once', async () => {
    const previous = process.env['XDG_DATA_HOME'];
    process.env['XDG_DATA_HOME'] = join(directory, 'data');
    try {
      const [first, second] = await Promise.all([developmentKeys(), developmentKeys()]);
      assert.equal(first.dbCertificatePem, second.dbCertificatePem);
      assert.equal(first.isDevelopment, true);
      assert.match(new X509Certificate(first.pkCertificatePem).subject, /DEVELOPMENT — do not ship/);
      assert.deepEqual(await readdir(join(directory, 'data', 'ashlar', 'keys')), ['development']);
    } finally {
      if (previous === undefined) delete process.env['XDG_DATA_HOME'];
      else process.env['XDG_DATA_HOME'] = previous;
    }
  });
});

describe('the commands', () => {
  const json = async (command: Parameters<typeof runCommandLine>[0], ...argv: string[]): Promise<unknown> => {
    const stdout = new PassThrough();
    const code = await runCommandLine(command, [...argv, '--json'], { stdout, stderr: process.stderr });
    assert.equal(code, 0);
    return JSON.parse(String(stdout.read()));
  };

  it('say as JSON where the keys are and what kind they are', async () => {
    const out = join(directory, 'as-json');
    assert.deepEqual(await json(generateKeysCommand, '--out', out, '--development'), {
      directory: out,
      isDevelopment: true,
      isTestOnly: false,
    });
    assert.equal((await loadKeys(out)).isDevelopment, true);
    const next = join(directory, 'as-json-2');
    const rotated = await json(rotatePolicyKeyCommand, '--keys', out, '--out', next);
    const [former] = (await loadPublicKeys(next)).formerPolicyKeys;
    assert.deepEqual(rotated, { directory: next, former: former?.name });
  });

  it('say as JSON which files enrol the keys', async () => {
    const out = join(directory, 'enrolment');
    const made = await json(exportAuthCommand, '--keys', join(directory, 'made'), '--out', out);
    const files = ['db.auth', 'db.esl', 'KEK.auth', 'KEK.esl', 'PK.auth', 'PK.esl'];
    assert.deepEqual(made, { directory: out, files });
    assert.deepEqual((await readdir(out)).toSorted(compareText), files.toSorted(compareText));
  });
});
