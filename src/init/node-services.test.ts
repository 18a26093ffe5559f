import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { createLogStore } from '../supervisor/log-store.ts';
import { loadServiceManifests } from '../supervisor/service-manifest.ts';
import { nodeServiceHost } from '../supervisor/service-runnable.ts';
import { ensureIdentity } from './identity.ts';
import { writeConfigurations } from './node-services.ts';

const manifests = loadServiceManifests(join(import.meta.dirname, '../../image/system/services'));

test('each service finds its keys in /config, where it can read them and change nothing', {
  skip: process.getuid?.() === 0 ? false : 'changing owners needs root',
}, async () => {
  const directory = mkdtempSync(join(tmpdir(), 'configurations-'));
  try {
    const roles = ['control', 'node'];
    const identity = await ensureIdentity({ dataDirectory: directory, roles, notBefore: new Date() });
    const host = { ...nodeServiceHost(createLogStore()), configDirectory: join(directory, 'config') };
    const parameters = {
      version: 1,
      cluster: { bootstrap: { ownerCertificatePem: 'owner' } },
      recovery: { publicKeyPem: 'recovery' },
    } as const;
    const recoveryKeyFingerprint = `SHA256:${'R'.repeat(43)}`;
    const version = '0.0.0-test';
    writeConfigurations({ host, manifests, parameters, identity, recoveryKeyFingerprint, roles, version });
    // The volume's, not the parameters'.
    const ofCurator = JSON.parse(readFileSync(join(host.configDirectory, 'curator/config.json'), 'utf8'));
    assert.equal(ofCurator.recoveryKeyFingerprint, recoveryKeyFingerprint);

    for (const [name, files] of Object.entries(identity.serviceFiles)) {
      const manifest = manifests.find((one) => one.name === name);
      assert.ok(manifest?.mounts.config, name);
      for (const [file, content] of Object.entries(files)) {
        const path = join(host.configDirectory, name, file);
        assert.equal(readFileSync(path, 'utf8'), content);
        const { uid, gid, mode } = statSync(path);
        assert.deepEqual([uid, gid, mode & 0o777], [0, manifest.gid, 0o640]);
      }
    }
    // What the command lines name is there.
    for (const { name, process } of manifests)
      for (const [, file = ''] of process.args.join(' ').matchAll(/\/config\/([\w.-]+)/g))
        assert.ok(readdirSync(join(host.configDirectory, name)).includes(file), `${name}: ${file}`);
  } finally {
    rmSync(directory, { recursive: true });
  }
});
