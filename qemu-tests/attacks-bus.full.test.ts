/**
 * The wires between a machine and its TPM. A listener hears every command and response, and no secret. Somebody who may
 * also speak gets the key from the TPM: shown here, since a test that could not find the key would prove nothing, and
 * since it must be known (docs/attacks.md, "Residual").
 */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { deriveAnchorAuth, deriveOwnerAuth, deriveSlotKey } from '../src/storage/data-key.ts';
import { ANCHOR_INDICES } from '../src/tpm/anchor.ts';
import { readAnchor } from '../src/tpm/anchor-store.ts';
import { Tpm } from '../src/tpm/tpm.ts';
import { runProcess } from '../tools/host/run-process.ts';
import { developmentKeys } from '../tools/mkimage/keys.ts';
import { partitionOf } from './lab/disk-edits.ts';
import { type Lab, vmTest } from './lab/lab.ts';
import { luksJson, readLuksHeader } from './lab/luks-edits.ts';
import { nodeConsole } from './lab/node-console.ts';
import { provisionedNode } from './lab/provisioned-node.ts';
import { unsealOnBench } from './lab/tpm-on-bench.ts';
import { commandCode, findInClear, parseTpmRecording, TPM_CC, type TpmExchange } from './machine/tpm-recording.ts';

interface Recordings {
  /** Of the first boot, which makes everything. */
  readonly first: readonly TpmExchange[];
  /** Of a boot that opens what is there. */
  readonly later: readonly TpmExchange[];
  readonly header: Buffer;
  /** All that must stay secret, by name. */
  readonly secrets: Readonly<Record<string, Uint8Array>>;
}

async function recordings(lab: Lab): Promise<Recordings> {
  const { snapshot, tpmTrafficPath } = await provisionedNode(lab);
  const first = parseTpmRecording(await readFile(tpmTrafficPath, 'utf8'));
  const machine = await lab.machine({ snapshot });
  const header = await readLuksHeader(machine);
  const { uniqueGuid } = await partitionOf(machine, 'DATA');
  const uki = await readFile(lab.image.ukiPath);
  const { policyPublicKeyPem: policyKeyPem } = await developmentKeys();
  let fromTpm: { nodeUnlockKey: Buffer; share: Uint8Array } | undefined;
  await machine.withTpm(async (tcti) => {
    const nodeUnlockKey = unsealOnBench(tcti, first, { header, uki, policyKeyPem });
    await runProcess('tpm2_flushcontext', ['-T', tcti, '--transient-object']);
    fromTpm = { nodeUnlockKey, share: shareOf(tcti, nodeUnlockKey, uniqueGuid) };
  });
  assert.ok(fromTpm !== undefined);
  await machine.powerOn();
  await machine.waitForLine(nodeConsole.dataOpen, { deadlineMs: lab.bootDeadlineMs });
  const later = await machine.tpmExchanges();
  await machine.powerCut();
  const { nodeUnlockKey, share } = fromTpm;
  const recovery = Object.values(luksJson(header).tokens).find(({ type }) => type === 'ashlar-recovery');
  const slotKey = deriveSlotKey({
    ...{ nodeUnlockKey, share, clusterUnlockKey: new Uint8Array(), partitionUuid: uniqueGuid },
    recoveryPublicKeySha256: String(recovery?.['publicKeySha256']),
  });
  const volumeKey = await volumeKeyOf(lab, header, slotKey);
  const secrets = {
    'the node unlock key': nodeUnlockKey,
    'the share in the anchor': share,
    "the anchor's authorization": deriveAnchorAuth(nodeUnlockKey, uniqueGuid),
    'the slot key': slotKey,
    'the volume key': volumeKey,
    "the owner's authorization": deriveOwnerAuth(volumeKey, uniqueGuid),
  };
  return { first, later, header, secrets };
}

/** What the TPM keeps in its anchor, for whoever has the key. */
function shareOf(tcti: string, nodeUnlockKey: Uint8Array, uuid: string): Uint8Array {
  using tpm = new Tpm(tcti);
  using rootKey = tpm.persistentStorageRootKey();
  assert.ok(rootKey !== undefined);
  return readAnchor(tpm, rootKey, ANCHOR_INDICES[0], deriveAnchorAuth(nodeUnlockKey, uuid)).share;
}

/** By cryptsetup, so that the keys are really those that open the volume. */
async function volumeKeyOf(lab: Lab, header: Uint8Array, slotKey: Uint8Array): Promise<Buffer> {
  const path = (name: string) => join(lab.directory, name);
  await writeFile(path('header'), header);
  await writeFile(path('slot-key'), slotKey);
  const dump = ['luksDump', '--batch-mode', '--dump-volume-key', '--volume-key-file', path('volume-key')];
  await runProcess('cryptsetup', [...dump, '--key-file', path('slot-key'), path('header')]);
  return readFile(path('volume-key'));
}

vmTest(
  'no secret of the node crosses the TPM’s bus in the clear, though the TPM gives it to who speaks there',
  async (lab) => {
    const { first, later, header, secrets } = await recordings(lab);
    for (const exchanges of [first, later]) {
      assert.ok(exchanges.some((exchange) => commandCode(exchange) === TPM_CC.unseal));
      assert.ok(exchanges.some((exchange) => commandCode(exchange) === TPM_CC.nvRead));
      for (const [name, secret] of Object.entries(secrets)) {
        assert.equal(secret.length, name === 'the volume key' ? 64 : 32, name);
        assert.deepEqual(findInClear(exchanges, secret), [], name);
        assert.deepEqual(findInClear(exchanges, secret.subarray(0, 16)), [], `half of ${name}`);
      }
    }
    for (const command of [TPM_CC.create, TPM_CC.nvDefineSpace, TPM_CC.nvWrite]) {
      assert.ok(first.some((exchange) => commandCode(exchange) === command));
    }
    // What is no secret is found: the listener hears.
    const sealed = Object.values(luksJson(header).tokens).find(({ type }) => type === 'ashlar-tpm2');
    const publicArea = Buffer.from(String(sealed?.['publicArea']), 'base64');
    assert.notDeepEqual(findInClear(later, publicArea), []);
    const commands = later.filter((exchange) => exchange.command.length > 0).map(commandCode);
    lab.context.diagnostic(`commands of a later boot until its data was open: ${commands.length}`);
  },
);
