import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { cacheDirectory } from '../host/cache.ts';
import { contentOf } from './file-tree.ts';

test('a file that changed since it was indexed is refused, and the entry to remove is named', async (t) => {
  const home = await mkdtemp(join(tmpdir(), 'ashlar-indexed-'));
  process.env.XDG_CACHE_HOME = home;
  t.after(() => rm(home, { recursive: true }));
  const entry = join(cacheDirectory(), 'objects/packages-1');
  const hostPath = join(entry, 'chrony/usr/sbin/chronyd');
  await mkdir(dirname(hostPath), { recursive: true });
  await writeFile(hostPath, 'whole');
  const sha256 = createHash('sha256').update('whole').digest('hex');
  const content = { kind: 'host-file', hostPath } as const;
  const file = { type: 'file', path: '/usr/sbin/chronyd', mode: 0o755, content, sha256, size: 5, origin: 'x' } as const;
  assert.equal(String(await contentOf(file)), 'whole');
  // What a power cut leaves of a file that was renamed before it was written.
  await writeFile(hostPath, '');
  await assert.rejects(contentOf(file), ({ message }: Error) => {
    assert.match(message, /^cannot take \/usr\/sbin\/chronyd from .*: its SHA-256 is e3b0c442[0-9a-f]+, not /);
    assert.ok(message.endsWith(`remove ${entry} and build again`), message);
    return true;
  });
});
