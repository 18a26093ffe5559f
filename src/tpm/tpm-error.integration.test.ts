import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import fc from 'fast-check';
import koffi from 'koffi';
import { NV } from '../formats/tpm-nv-public.ts';
import { startSoftwareTpm } from './swtpm-fixture.ts';
import { Tpm } from './tpm.ts';
import { tapTpm } from './tpm-bus-fixture.ts';
import { unusableDevice } from './tpm-device.ts';
import { decodeResponse, TPM_RC, TpmError, type TpmFailure } from './tpm-error.ts';
import { retryWhileBusy } from './tss.ts';

const EMPTY = new Uint8Array();
const OWNED = NV.ownerRead | NV.ownerWrite | NV.noDictionaryAttackProtection;

function refusedAs(failure: TpmFailure, message: RegExp) {
  return (error: unknown): boolean => {
    assert.ok(error instanceof TpmError, String(error));
    assert.match(error.message, message);
    assert.equal(error.failure, failure);
    return true;
  };
}

test('a response code is taken apart into name, subject and layer', () => {
  const decoded = (code: number) => {
    const { responseName, subject, layer } = decodeResponse(code);
    return [responseName, subject, layer];
  };
  assert.deepEqual(decoded(0x99d), ['TPM_RC_POLICY_FAIL', 'session 1', 'TPM']);
  assert.deepEqual(decoded(0x1df), ['TPM_RC_INTEGRITY', 'parameter 1', 'TPM']);
  assert.deepEqual(decoded(0x18b), ['TPM_RC_HANDLE', 'handle 1', 'TPM']);
  assert.deepEqual(decoded(0x084), ['TPM_RC_VALUE', undefined, 'TPM']);
  assert.deepEqual(decoded(0x921), ['TPM_RC_LOCKOUT', undefined, 'TPM']);
  assert.deepEqual(decoded(0xa000a), ['TSS2_TCTI_RC_IO_ERROR', undefined, 'TCTI']);
  assert.deepEqual(decoded(0x70007), ['TSS2_ESYS_RC_BAD_SEQUENCE', undefined, 'ESAPI']);
  // The kernel's resource manager refuses a command it does not know (tpm2-space.c).
  assert.deepEqual(decoded(0xb0143), ['TPM_RC_COMMAND_CODE', undefined, 'resource manager']);
  assert.deepEqual(decoded(0x50001), ['TSS2_UNKNOWN_RC_GENERAL_FAILURE', undefined, 'unknown layer']);
});

test('every code is taken apart, with the layer and subject that tpm2-tss says', () => {
  const textOf = koffi.load('libtss2-rc.so.0', { deep: true }).func('const char *Tss2_RC_Decode(uint32_t code)');
  const layers: Record<string, string> = {
    tpm: 'TPM',
    esapi: 'ESAPI',
    sys: 'SAPI',
    mu: 'marshalling',
    tcti: 'TCTI',
    rm: 'resource manager',
    rmt: 'resource manager',
  };
  const code = fc
    .tuple(fc.constantFrom(0, 7, 8, 9, 10, 11, 12), fc.nat(0xfff))
    .map(([layer, low]) => (layer << 16) | low);
  fc.assert(
    fc.property(code, (value) => {
      const text = String(textOf(value));
      const { layer, subject, responseName } = decodeResponse(value);
      const [, said = '', kind, number] = /^(\w+):(?:(session|parameter|handle)\((\w+)\):)?/.exec(text) ?? [];
      assert.equal(layer, layers[said], text);
      // It says `unk` for the number 0, and 1 for parameter 9: the specification has four bits for parameters.
      if (said !== 'tpm' && said !== 'rmt') assert.ok(kind === undefined);
      else if ((value & 0x8c0) === 0x8c0) assert.equal(subject, `parameter ${(value >> 8) & 0xf}`);
      else assert.equal(subject, kind && number !== 'unk' ? `${kind} ${number}` : undefined, text);
      assert.match(responseName, /^(TPM|TSS2_[A-Z]+)_RC_\w+$/);
    }),
    { numRuns: 2000 },
  );
});

test('no TPM: the error names the place where there is none', () => {
  assert.throws(
    () => new Tpm('device:/dev/ashlar-no-such-tpm'),
    refusedAs('no-tpm', /^cannot open TPM device:\/dev\/ashlar-no-such-tpm: there is no device .*; enable the TPM 2.0/),
  );
  assert.throws(
    () => new Tpm('swtpm:path=/run/ashlar-nobody'),
    refusedAs('no-tpm', /there is no socket \/run\/ashlar/),
  );
});

test('a TPM 1.2 is recognised by its answer', async () => {
  await using machine = await startSoftwareTpm({ family: '1.2' });
  using tpm = new Tpm(machine.tcti);
  assert.throws(() => tpm.startup(), refusedAs('tpm-1.2', /a TPM 2.0 is needed/));
});

test('what Linux shows of the devices tells a TPM 1.2, a missing resource manager and a busy device apart', () => {
  const root = mkdtempSync(join(tmpdir(), 'ashlar-devices-'));
  const sysfs = join(root, 'sys/class/tpm/tpm0');
  mkdirSync(join(root, 'dev'));
  mkdirSync(sysfs, { recursive: true });
  const look = (path: string, errno?: string) =>
    unusableDevice(`device:${path}`, {
      root,
      tryOpen: () => {
        if (errno !== undefined) throw Object.assign(new Error(errno), { code: errno });
      },
    });
  assert.equal(look('/dev/tpmrm0')?.failure, 'no-tpm');
  writeFileSync(join(root, 'dev/tpm0'), '');
  assert.equal(look('/dev/tpmrm0')?.failure, 'resource-manager-absent');
  assert.match(look('/dev/tpmrm0')?.message ?? '', /there is \/dev\/tpm0, but no \/dev\/tpmrm0; use a kernel/);
  assert.equal(look('/dev/tpm0')?.failure, undefined);
  writeFileSync(join(sysfs, 'tpm_version_major'), '2\n');
  assert.equal(look('/dev/tpmrm0')?.failure, 'resource-manager-absent');
  writeFileSync(join(sysfs, 'tpm_version_major'), '1\n');
  assert.equal(look('/dev/tpmrm0')?.failure, 'tpm-1.2');
  assert.equal(look('/dev/tpm0')?.failure, 'tpm-1.2');
  assert.equal(look('/dev/tpm0', 'EBUSY')?.failure, 'tpm-busy');
  assert.match(look('/dev/tpm0', 'EBUSY')?.message ?? '', /another program has \/dev\/tpm0 open; close the program/);
  assert.equal(look('/dev/tpm0', 'ENODEV')?.failure, 'no-tpm');
  rmSync(root, { recursive: true });
});

test('a TPM that stays busy is a named error, after about six seconds of patience', () => {
  let waitedMs = 0;
  const code = retryWhileBusy(
    () => TPM_RC.retry,
    (ms) => {
      waitedMs += ms;
    },
  );
  assert.ok(waitedMs > 5000 && waitedMs < 7000);
  assert.ok(
    refusedAs('tpm-busy', /TPM_RC_RETRY, from the TPM: .*; close the program/)(new TpmError('Unseal', code, 'busy')),
  );
});

test('too many wrong authorizations lead to a lockout, which can be read, and ended', async () => {
  await using machine = await startSoftwareTpm();
  machine.tool('tpm2_dictionarylockout', '-s', '-n', '2', '-t', '1000', '-l', '1000');
  using tpm = new Tpm(machine.tcti);
  using rootKey = tpm.storageRootKey();
  using session = tpm.encryptedSession(rootKey);
  const attributes = NV.authRead | NV.ownerWrite;
  const definition = { index: 0x01500000, attributes, authPolicy: EMPTY, sizeBytes: 4, auth: randomBytes(32) };
  using nv = tpm.nvDefine(definition, session);
  tpm.nvWrite(nv, Buffer.alloc(4), { by: 'owner' });
  tpm.useAuth(nv, randomBytes(32));
  const read = () => tpm.nvRead(nv, 4, { by: 'index', session });
  assert.throws(read, refusedAs('wrong-auth', /TPM_RC_AUTH_FAIL, session 1, from the TPM/));
  assert.deepEqual([tpm.lockout().counter, tpm.lockout().active], [1, false]);
  assert.throws(read, refusedAs('wrong-auth', /TPM_RC_AUTH_FAIL/));
  assert.throws(read, refusedAs('lockout', /TPM_RC_LOCKOUT, from the TPM: .*; wait until the TPM forgets/));
  assert.deepEqual(tpm.lockout(), {
    counter: 2,
    limit: 2,
    active: true,
    recoverySeconds: 1000,
    lockoutAuthRecoverySeconds: 1000,
  });
  tpm.dictionaryAttackLockReset();
  assert.equal(tpm.lockout().active, false);
  tpm.useAuth(nv, definition.auth);
  assert.deepEqual(read(), Buffer.alloc(4));
});

test('who does not know the value of the lockout hierarchy cannot end a lockout, and is not heard a second time', async () => {
  await using machine = await startSoftwareTpm();
  const auth = randomBytes(32);
  using tpm = new Tpm(machine.tcti);
  using rootKey = tpm.storageRootKey();
  using session = tpm.encryptedSession(rootKey);
  tpm.hierarchyChangeAuth('lockout', auth, session);
  assert.throws(() => tpm.dictionaryAttackLockReset(), /would cross the bus in clear/);
  tpm.dictionaryAttackLockReset(session);
  tpm.useAuth('lockout', randomBytes(32));
  assert.throws(() => tpm.dictionaryAttackLockReset(session), refusedAs('wrong-auth', /TPM_RC_AUTH_FAIL, session 1/));
  tpm.useAuth('lockout', auth);
  assert.throws(() => tpm.dictionaryAttackLockReset(session), refusedAs('lockout', /TPM_RC_LOCKOUT/));
});

test('the wrong password of a hierarchy is a named error', async () => {
  await using machine = await startSoftwareTpm();
  machine.tool('tpm2_changeauth', '-c', 'owner', 'theirs');
  using tpm = new Tpm(machine.tcti);
  assert.throws(
    () => tpm.createStorageRootKey('ecc-p256'),
    refusedAs('wrong-auth', /^cannot CreatePrimary: TPM_RC_BAD_AUTH, session 1, from the TPM: /),
  );
});

test('a full NV memory is a named error', async () => {
  await using machine = await startSoftwareTpm();
  using tpm = new Tpm(machine.tcti);
  assert.throws(
    () => {
      for (let index = 0x01500000; index < 0x01500200; index += 1) {
        tpm.nvDefine({ index, attributes: OWNED, authPolicy: EMPTY, sizeBytes: 2048 });
      }
    },
    refusedAs('nv-full', /^cannot NV_DefineSpace: TPM_RC_NV_SPACE, from the TPM: .*; undefine NV indices/),
  );
});

test('answers of unexpected size or shape are named errors, whatever is wrong with them', async () => {
  await using machine = await startSoftwareTpm();
  await using bus = await tapTpm(machine);
  const response = (hex: string): Buffer => {
    const bytes = Buffer.from(hex.replaceAll(' ', ''), 'hex');
    bytes.writeUInt32BE(bytes.length, 2);
    return bytes;
  };
  const wrong: [string, Buffer][] = [
    ['fewer random bytes than asked for', response('8001 00000000 00000000 0004 01020304')],
    ['a size larger than what follows', response('8001 00000000 00000000 0040 01020304')],
    ['an unknown tag', response('1234 00000000 00000000')],
    ['more than a digest holds', response(`8001 00000000 00000000 0100 ${'00'.repeat(256)}`)],
  ];
  for (const [what, bytes] of wrong) {
    await bus.change('GetRandom', bytes);
    using tpm = new Tpm(bus.tcti);
    assert.throws(() => tpm.random(8), refusedAs('unexpected-response', /; the TPM is defective/), what);
  }
});

test('in an encrypted session, an answer that somebody else has written is a named error', async () => {
  await using machine = await startSoftwareTpm();
  await using bus = await tapTpm(machine);
  {
    using tpm = new Tpm(bus.tcti);
    using rootKey = tpm.storageRootKey();
    using session = tpm.encryptedSession(rootKey);
    tpm.random(8, session);
  }
  const genuine = (await bus.transfers()).findLast(({ command }) => command[9] === 0x7b)?.response;
  assert.ok(genuine);
  const empty = Buffer.from('80020000000a00000000', 'hex');
  for (const answer of [
    genuine,
    empty,
    Buffer.from('80010000001400000000000801020304050607 08'.replace(' ', ''), 'hex'),
  ]) {
    using tpm = new Tpm(bus.tcti);
    const rootKey = tpm.persistentStorageRootKey();
    assert.ok(rootKey);
    using session = tpm.encryptedSession(rootKey);
    await bus.change('GetRandom', answer);
    assert.throws(() => tpm.random(8, session), refusedAs('unexpected-response', /./));
  }
});

test('the storage root key has the name of the key that sessions are salted to, whatever name the bus tells', async () => {
  await using machine = await startSoftwareTpm();
  await using bus = await tapTpm(machine);
  await using other = await startSoftwareTpm();
  await using otherBus = await tapTpm(other);
  const provision = (tcti: string): Uint8Array => {
    using tpm = new Tpm(tcti);
    using rootKey = tpm.storageRootKey();
    return rootKey.name;
  };
  const name = provision(bus.tcti);
  provision(otherBus.tcti);
  const readPublic = async (tap: typeof bus): Promise<Buffer> => {
    await tap.forget();
    {
      using tpm = new Tpm(tap.tcti);
      assert.ok(tpm.persistentStorageRootKey());
    }
    const found = (await tap.transfers()).find(({ command }) => Buffer.from(command).readUInt32BE(6) === 0x173);
    assert.ok(found);
    return Buffer.from(found.response);
  };
  const genuine = await readPublic(bus);
  const attackers = await readPublic(otherBus);
  // The attacker's public area with the genuine name: header, TPM2B_PUBLIC, TPM2B_NAME, TPM2B_NAME.
  const areaEnd = 12 + genuine.readUInt16BE(10);
  const mixed = Buffer.concat([attackers.subarray(0, areaEnd), genuine.subarray(areaEnd)]);
  await bus.change('ReadPublic', mixed);
  using tpm = new Tpm(bus.tcti);
  const shown = tpm.persistentStorageRootKey();
  assert.ok(shown);
  assert.deepEqual(Buffer.from(shown.publicArea), attackers.subarray(12, areaEnd));
  assert.notDeepEqual(shown.name, name);
});
