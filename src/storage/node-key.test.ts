import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { extendPcr, sha256, zeroPcr } from '../measure/pcr.ts';
import { encodePcrSignatures, signPcr11 } from '../measure/pcr-signature.ts';
import { SealingError } from '../tpm/sealing.ts';
import { type SoftwareTpm, startSoftwareTpm } from '../tpm/swtpm-fixture.ts';
import { Tpm } from '../tpm/tpm.ts';
import type { DataToken } from './luks-tokens.ts';
import { type NodeKeyKeeper, NoNodeKeyError, SecureBootOffError, tpmKeeper, unsealedKeeper } from './node-key.ts';

const EFI_GLOBAL = '8be4df61-93ca-11d2-aa0d-00e098032b8c';
const ENTER_INITRD = sha256('enter-initrd');
const KEY = generateKeyPairSync('rsa', { modulusLength: 2048 });
const POLICY = {
  policyKeyPem: KEY.publicKey.export({ format: 'pem', type: 'spki' }).toString(),
  policyRef: 'ashlar-epoch-1',
};

interface Boot {
  readonly secureBoot?: number;
  readonly setupMode?: number;
}

/** Runs `body` on a machine just after stage 1. */
async function onBoot<T>(machine: SoftwareTpm, boot: Boot, body: (keeper: NodeKeyKeeper, tpm: Tpm) => T): Promise<T> {
  await machine.restart();
  const efivars = join(machine.directory, 'efivars');
  mkdirSync(efivars, { recursive: true });
  const variable = (name: string, value: number) =>
    writeFileSync(join(efivars, `${name}-${EFI_GLOBAL}`), Buffer.of(6, 0, 0, 0, value));
  variable('SecureBoot', boot.secureBoot ?? 1);
  variable('SetupMode', boot.setupMode ?? 0);
  const pcr11 = extendPcr(zeroPcr(), ENTER_INITRD);
  const pcrSignaturePath = join(machine.directory, 'pcrsig.json');
  const signature = signPcr11({ pcr11, policyRef: POLICY.policyRef, key: KEY.privateKey });
  writeFileSync(pcrSignaturePath, encodePcrSignatures([signature]));
  using tpm = new Tpm(machine.tcti);
  tpm.extendPcr(7, sha256('Secure Boot'));
  tpm.extendPcr(11, ENTER_INITRD);
  using rootKey = tpm.storageRootKey();
  return body(tpmKeeper(tpm, rootKey, { policy: POLICY, pcrSignaturePath, efivars }), tpm);
}

test('a key that was made on one boot is recalled on the next, from either copy', async () => {
  await using machine = await startSoftwareTpm();
  const made = await onBoot(machine, {}, (keeper) => keeper.create());
  assert.equal(made.tokens.length, 2);
  assert.deepEqual(await onBoot(machine, {}, (keeper) => keeper.recall(made.tokens)), made.key);
  const [first, second] = made.tokens;
  assert.ok(first?.type === 'ashlar-tpm2' && second !== undefined);
  const damaged: DataToken = { ...first, privateArea: 'AAAA' };
  assert.deepEqual(await onBoot(machine, {}, (keeper) => keeper.recall([damaged, second])), made.key);
  await assert.rejects(
    onBoot(machine, {}, (keeper) => keeper.recall([damaged, damaged])),
    (error) => error instanceof NoNodeKeyError && /both copies of the sealed key are damaged/.test(error.message),
  );
});

test('no key is made while Secure Boot is off or the firmware is in Setup Mode', async () => {
  await using machine = await startSoftwareTpm();
  for (const [boot, message] of [
    [{ secureBoot: 0 }, /Secure Boot is off/],
    [{ setupMode: 1 }, /Setup Mode/],
  ] as const) {
    await assert.rejects(
      onBoot(machine, boot, (keeper) => keeper.create()),
      (error) => error instanceof SecureBootOffError && message.test(error.message),
    );
  }
});

test('no key is made when the image could not recall it', async () => {
  await using machine = await startSoftwareTpm();
  await assert.rejects(
    onBoot(machine, {}, (keeper, tpm) => {
      tpm.extendPcr(11, sha256('leave-initrd'));
      return keeper.create();
    }),
    (error) => error instanceof SealingError && error.failure === 'image-not-allowed',
  );
});

test('a key sealed for another generation of images is refused by that name', async () => {
  await using machine = await startSoftwareTpm();
  const made = await onBoot(machine, {}, (keeper) => keeper.create());
  const [token] = made.tokens;
  assert.ok(token?.type === 'ashlar-tpm2');
  // The checksum covers policyRef, so a changed one is a damaged copy and not another generation.
  await assert.rejects(
    onBoot(machine, {}, (keeper) => keeper.recall([{ ...token, policyRef: 'ashlar-epoch-0' }])),
    NoNodeKeyError,
  );
});

test('a machine with a TPM refuses an unsealed key', async () => {
  await using machine = await startSoftwareTpm();
  const { tokens } = unsealedKeeper().create();
  await assert.rejects(
    onBoot(machine, {}, (keeper) => keeper.recall(tokens)),
    (error) => error instanceof NoNodeKeyError && /though this machine has a TPM/.test(error.message),
  );
});

test('a machine without TPM keeps its key in the clear, and says so', () => {
  const keeper = unsealedKeeper();
  const { key, tokens } = keeper.create();
  assert.deepEqual(keeper.recall(tokens), key);
  assert.match(keeper.warnings.join(), /whoever has the disk has the data/);
  assert.throws(() => keeper.recall([]), NoNodeKeyError);
});

test('a TPM in lockout is a warning', async () => {
  await using machine = await startSoftwareTpm();
  machine.tool('tpm2_createprimary', '-Q', '-C', 'o', '-p', 'right', '-c', 'guarded.ctx');
  machine.tool('tpm2_flushcontext', '-t');
  for (let attempt = 0; attempt < 8; attempt += 1) {
    try {
      machine.tool('tpm2_create', '-Q', '-C', 'guarded.ctx', '-P', 'wrong', '-u', 'x.pub', '-r', 'x.priv');
    } catch {
      machine.tool('tpm2_flushcontext', '-t');
    }
  }
  assert.match(await onBoot(machine, {}, (keeper) => keeper.warnings.join()), /dictionary attack lockout/);
});
