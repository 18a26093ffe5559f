import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { encodeSized } from '../formats/tpm-structures.ts';
import { type SoftwareTpm, startSoftwareTpm } from './swtpm-fixture.ts';
import { Tpm } from './tpm.ts';
import { tapTpm } from './tpm-bus-fixture.ts';

let machine: SoftwareTpm;
before(async () => {
  machine = await startSoftwareTpm();
});
after(async () => {
  await machine[Symbol.asyncDispose]();
});

test("the storage root keys are those that tpm2_createprimary makes from the TCG's template", () => {
  // What the template has as `unique`, as tpm2-tools reads it: the C structure, little-endian.
  const zeroPoint = Buffer.alloc(2 * 130);
  for (const start of [0, 130]) zeroPoint.writeUInt16LE(32, start);
  const zeroModulus = Buffer.alloc(2 + 256);
  zeroModulus.writeUInt16LE(256);
  for (const [kind, algorithm, unique] of [
    ['ecc-p256', 'ecc256:aes128cfb', zeroPoint],
    ['rsa-2048', 'rsa2048:aes128cfb', zeroModulus],
  ] as const) {
    writeFileSync(join(machine.directory, 'unique'), unique);
    machine.tool(
      'tpm2_createprimary',
      ...['-Q', '-C', 'o', '-g', 'sha256', '-G', algorithm, '-u', 'unique', '-c', 'primary.ctx'],
      ...['-a', 'fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt'],
    );
    machine.tool('tpm2_readpublic', '-Q', '-c', 'primary.ctx', '-o', 'primary.pub');
    machine.tool('tpm2_flushcontext', '-t');
    using tpm = new Tpm(machine.tcti);
    using key = tpm.createStorageRootKey(kind);
    assert.deepEqual(encodeSized(key.publicArea), readFileSync(join(machine.directory, 'primary.pub')), kind);
  }
});

test('what the vendor says of the chip is what tpm2_getcap reads', () => {
  const shown = machine.tool('tpm2_getcap', 'properties-fixed');
  using tpm = new Tpm(machine.tcti);
  const identity = tpm.identity();
  assert.deepEqual([identity.family, identity.manufacturer], ['2.0', 'IBM']);
  const raw = (property: string): number => {
    const found = new RegExp(`${property}:\\s+raw: 0x([0-9A-F]+)`, 'i').exec(shown);
    return Number.parseInt(found?.[1] ?? 'NaN', 16);
  };
  assert.equal(identity.revision, raw('TPM2_PT_REVISION'));
  const version = [raw('TPM2_PT_FIRMWARE_VERSION_1'), raw('TPM2_PT_FIRMWARE_VERSION_2')];
  assert.equal(identity.firmwareVersion, version.map((part) => part.toString(16).padStart(8, '0')).join(''));
});

test('a TPM that asks for patience is asked again, and the caller never knows', async () => {
  await using bus = await tapTpm(machine);
  for (const code of ['00000922', '00000908', '0000090a']) {
    for (let times = 0; times < 7; times += 1) {
      await bus.change('GetRandom', Buffer.from(`80010000000a${code}`, 'hex'));
    }
    await bus.forget();
    using tpm = new Tpm(bus.tcti);
    assert.equal(tpm.random(8).length, 8, code);
    assert.equal((await bus.commands()).length, 8, code);
  }
});

test('a handle that is given back twice is flushed once', async () => {
  await using bus = await tapTpm(machine);
  using tpm = new Tpm(bus.tcti);
  using session = tpm.trialSession();
  await bus.forget();
  session[Symbol.dispose]();
  session[Symbol.dispose]();
  assert.deepEqual(await bus.commands(), ['FlushContext']);
});
