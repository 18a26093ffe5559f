import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { findDebianMirror } from './host-apt-sources.ts';

async function mirrorOf(files: Record<string, string>) {
  const directory = await mkdtemp(join(tmpdir(), 'ashlar-apt-'));
  try {
    for (const [name, text] of Object.entries(files)) {
      await mkdir(dirname(join(directory, name)), { recursive: true });
      await writeFile(join(directory, name), text);
    }
    return await findDebianMirror(undefined, directory);
  } finally {
    await rm(directory, { recursive: true });
  }
}

const MIRROR = { archive: 'http://mirror.test/debian', security: 'http://mirror.test/debian-security' };

test('one-line sources are read, options and comments and deb-src lines aside', async () => {
  const text = `# deb http://old.test/debian buster main
deb-src http://src.test/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.test/debian/ bookworm main
deb http://mirror.test/debian-security bookworm-security main
`;
  assert.deepEqual(await mirrorOf({ 'sources.list': text }), MIRROR);
});

test('deb822 sources are read, folded fields and comments included', async () => {
  const text = `Types: deb deb-src
# a comment between fields
URIs: http://mirror.test/debian
Suites:
 trixie
 trixie-updates
Components: main

Types: deb
URIs: http://mirror.test/debian-security/
Suites: trixie-security
Components: main
`;
  assert.deepEqual(await mirrorOf({ 'sources.list.d/debian.sources': text }), MIRROR);
});

test('a disabled stanza and a file of another ending do not count', async () => {
  const disabled = 'Enabled: no\nTypes: deb\nURIs: http://off.test/debian\nSuites: trixie\nComponents: main\n';
  const text = 'deb http://mirror.test/debian stable main\n';
  const files = {
    'sources.list.d/a.sources': disabled,
    'sources.list.d/b.list.disabled': 'deb http://off.test/debian trixie main\n',
    'sources.list.d/c.list': text,
  };
  assert.deepEqual(await mirrorOf(files), MIRROR);
});

test("another vendor's archive is not taken for Debian's", async () => {
  const vendor = 'deb https://vendor.test/apt nodistro main\n';
  await assert.rejects(
    mirrorOf({ 'sources.list.d/vendor.list': vendor }),
    /cannot find a Debian mirror.*--mirror URI/s,
  );
});

test('--mirror overrides, and must be a URI', async () => {
  assert.deepEqual(await findDebianMirror('http://mirror.test/debian/'), MIRROR);
  await assert.rejects(findDebianMirror('mirror.test'), /"mirror.test" as a mirror: it is not a URI/);
});
