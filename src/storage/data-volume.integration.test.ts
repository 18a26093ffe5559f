import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { openDataVolume, readDataHeader, repairStaleCopy, WrongSlotKeyError } from './data-volume.ts';
import { type FixtureVolume, makeVolume } from './data-volume-fixture.ts';
import type { DataHeader } from './header-mac.ts';
import { HEADER_BYTES, METADATA_BYTES } from './luks-metadata.ts';

function run(program: string, args: readonly string[], input?: Uint8Array): string {
  return execFileSync(program, args, { encoding: 'utf8', stdio: ['pipe', 'pipe', 'pipe'], ...(input && { input }) });
}

/** Opens the node's slot, with its own key unless told. */
function open(volume: FixtureVolume, header: DataHeader, key: Uint8Array = volume.slotKey) {
  return openDataVolume(volume.path, header, { slot: 0, key }, { path: volume.directory });
}

test('a new volume opens with the slot key, and cryptsetup opens it with the same key', () => {
  using volume = makeVolume();
  using opened = open(volume, readDataHeader(volume.device, volume.uuid));
  assert.equal(opened.volumeKey.length, 64);
  const key = join(volume.directory, 'key');
  writeFileSync(key, volume.slotKey);
  run('cryptsetup', ['open', '--test-passphrase', '--key-slot', '0', '--key-file', key, volume.path]);
});

test('cryptsetup luksDump sees one aes-xts segment with 4096 byte sectors, pbkdf2 slots and our tokens', () => {
  using volume = makeVolume();
  const dump = run('cryptsetup', ['luksDump', volume.path]);
  for (const line of [
    /cipher: aes-xts-plain64\n\tsector: 4096/,
    /offset: 2097152 \[bytes\]\n\tlength: \(whole device\)/,
    /PBKDF: {6}pbkdf2\n\tHash: {7}sha256\n\tIterations: 1000/,
    /0: ashlar-tpm2\n\tKeyslot: {4}0/,
    /2: ashlar-recovery\n\tKeyslot: {4}1/,
  ]) {
    assert.match(dump, line);
  }
});

test('the recovery key, decrypted by openssl with the operator key, opens the volume by cryptsetup', () => {
  using volume = makeVolume();
  const at = (name: string) => join(volume.directory, name);
  writeFileSync(at('operator.pem'), volume.recoveryPrivateKeyPem);
  const token = JSON.parse(run('cryptsetup', ['token', 'export', '--token-id', '2', volume.path])) as {
    encryptedKey: string;
  };
  writeFileSync(at('encrypted'), Buffer.from(token.encryptedKey, 'base64'));
  const options = ['rsa_padding_mode:oaep', 'rsa_oaep_md:sha256', 'rsa_mgf1_md:sha256'].flatMap((o) => ['-pkeyopt', o]);
  const files = ['-inkey', at('operator.pem'), '-in', at('encrypted'), '-out', at('recovery.key')];
  run('openssl', ['pkeyutl', '-decrypt', ...files, ...options]);
  assert.deepEqual(readFileSync(at('recovery.key')), volume.recoveryKey);
  run('cryptsetup', ['open', '--test-passphrase', '--key-slot', '1', '--key-file', at('recovery.key'), volume.path]);
});

test('another key is refused as another key', () => {
  using volume = makeVolume();
  const header = readDataHeader(volume.device, volume.uuid);
  assert.throws(() => open(volume, header, Buffer.alloc(32, 1)), WrongSlotKeyError);
  assert.throws(() => open(volume, header, volume.recoveryKey), WrongSlotKeyError);
});

test('what is opened is the header that was checked, whatever the disk holds by then', () => {
  using volume = makeVolume();
  const header = readDataHeader(volume.device, volume.uuid);
  const swapped = readFileSync(volume.path);
  swapped.fill(0, 0, HEADER_BYTES);
  writeFileSync(volume.path, swapped);
  using opened = open(volume, header);
  assert.equal(opened.volumeKey.length, 64);
});

for (const [copy, offset] of [
  ['primary', 0],
  ['secondary', METADATA_BYTES],
] as const) {
  test(`a damaged ${copy} copy of the header is written again`, () => {
    using volume = makeVolume();
    const bytes = readFileSync(volume.path);
    bytes.fill(0xff, offset, offset + 4096);
    writeFileSync(volume.path, bytes);
    const header = readDataHeader(volume.device, volume.uuid);
    assert.equal(header.accepted.stale, copy);
    assert.equal(repairStaleCopy(volume.device, header), true);
    assert.equal(readDataHeader(volume.device, volume.uuid).accepted.stale, undefined);
    run('cryptsetup', ['luksDump', volume.path]);
  });
}

test('a whole header is left as it is', () => {
  using volume = makeVolume();
  const before = readFileSync(volume.path);
  assert.equal(repairStaleCopy(volume.device, readDataHeader(volume.device, volume.uuid)), false);
  assert.ok(before.equals(readFileSync(volume.path)));
});
