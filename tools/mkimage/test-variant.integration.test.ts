import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { createProgress } from '../host/progress.ts';
import { buildImage } from './build.ts';
import { generateKeys, loadKeys } from './keys.ts';
import { readTestVariant } from './test-variant.ts';

const VARIANT = join(import.meta.dirname, '../../qemu-tests/attacker');

let directory: string;
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-variant-'));
  await generateKeys(join(directory, 'plain'), { isDevelopment: false });
  await generateKeys(join(directory, 'test-only'), { isDevelopment: false, isTestOnly: true });
});
after(() => rm(directory, { recursive: true }));

describe('keys marked as test-only', () => {
  it('are refused by a build of anything but a test variant, before it begins', async () => {
    const options = {
      outDir: join(directory, 'out'),
      keysDir: join(directory, 'test-only'),
      progress: createProgress(),
    };
    await assert.rejects(buildImage(options), /marked as test-only.*mkimage keys generate/);
  });

  it('are the only ones that sign a test variant', async () => {
    const options = { outDir: join(directory, 'out'), keysDir: join(directory, 'plain'), progress: createProgress() };
    await assert.rejects(buildImage({ ...options, testVariantDir: VARIANT }), /mkimage keys generate --test-only/);
  });

  it('keep their mark when only the policy key is moved to a directory without', async () => {
    const mixed = join(directory, 'mixed');
    await generateKeys(mixed, { isDevelopment: false });
    assert.equal((await loadKeys(mixed)).isTestOnly, false);
    for (const name of ['policy.key', 'policy.pub']) {
      await writeFile(join(mixed, name), await readFile(join(directory, 'test-only', name)));
    }
    assert.equal((await loadKeys(mixed)).isTestOnly, true);
  });

  it('give images a public key without the mark', async () => {
    const { policyPublicKeyPem } = await loadKeys(join(directory, 'test-only'));
    assert.match(policyPublicKeyPem, /^-----BEGIN PUBLIC KEY-----\n/);
  });
});

describe('a test variant', () => {
  it('gives its service the bundle of its own under a role of the executable', async () => {
    const { services, files } = await readTestVariant(VARIANT);
    assert.deepEqual(
      services.map(({ service }) => service.name),
      ['attacker'],
    );
    assert.deepEqual(Object.keys(files['attacker'] ?? {}), ['agent.js']);
  });

  it('must have a service', async () => {
    await assert.rejects(readTestVariant(directory), /it has no service/);
  });
});
