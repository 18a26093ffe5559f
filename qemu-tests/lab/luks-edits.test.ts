import assert from 'node:assert/strict';
import { test } from 'node:test';
import { madeHeader } from '../../src/storage/data-volume-fixture.ts';
import { acceptHeader } from '../../src/storage/luks-header.ts';
import { luksJson, withLuksJson } from './luks-edits.ts';

test('a header written anew without a change is accepted, so that what a node refuses is the change', () => {
  const { bytes, uuid } = madeHeader();
  acceptHeader(
    withLuksJson(bytes, () => undefined),
    { uuid },
  );
});

test('a change is in both copies, and their checksums are right', () => {
  const { bytes, uuid } = madeHeader();
  const changed = withLuksJson(bytes, (json) => {
    json.config['evil'] = true;
  });
  assert.equal(luksJson(changed).config['evil'], true);
  // Refused for what it says, not for a checksum.
  assert.throws(() => acceptHeader(changed, { uuid }), /in its metadata, config\.evil/);
});
