import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { skipWithout } from './fixtures.ts';
import { computeVerityRootHash } from './verity-tree.ts';

const directory = mkdtempSync(join(tmpdir(), 'ashlar-verity-'));
after(() => rmSync(directory, { recursive: true }));
const salt = Buffer.from('00112233', 'hex');

describe('computeVerityRootHash', () => {
  for (const count of [1, 2, 128, 129, 20_000]) {
    it(`agrees with veritysetup about ${count} blocks`, { skip: skipWithout('veritysetup') }, async () => {
      const data = Buffer.alloc(count * 4096, `block ${count}`);
      const path = join(directory, `${count}`);
      writeFileSync(path, data);
      const text = execFileSync('veritysetup', ['format', '--salt', salt.toString('hex'), path, `${path}.tree`], {
        encoding: 'utf8',
      });
      const pieces = [data.subarray(0, 4096), data.subarray(4096)];
      const root = Buffer.from(await computeVerityRootHash(pieces, { salt, blockSize: 4096 })).toString('hex');
      assert.equal(root, /Root hash:\s+([0-9a-f]{64})/.exec(text)?.[1]);
    });
  }

  it('refuses part of a block', async () => {
    await assert.rejects(
      computeVerityRootHash([new Uint8Array(100)], { salt, blockSize: 4096 }),
      /100 bytes are not whole blocks/,
    );
    await assert.rejects(computeVerityRootHash([], { salt, blockSize: 4096 }), /there are no blocks/);
  });
});
