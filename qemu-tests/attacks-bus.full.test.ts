/**
 * The wires between a machine and its TPM. A listener hears every command and response, and no secret. Somebody who may
 * also speak gets the key from the TPM: shown here, since a test that could not find the key would prove nothing, and
 * since it must be known (docs/attacks.md, "Residual").
 */
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { runProcess } from '../tools/host/run-process.ts';
import { developmentKeys } from '../tools/mkimage/keys.ts';
import { type Lab, vmTest } from './lab/lab.ts';
import { luksJson, readLuksHeader } from './lab/luks-edits.ts';
import { nodeConsole } from './lab/node-console.ts';
import { provisionedNode } from './lab/provisioned-node.ts';
import { unsealOnBench } from './lab/tpm-on-bench.ts';
import { commandCode, findInClear, parseTpmRecording, TPM_CC, type TpmExchange } from './machine/tpm-recording.ts';

/** What the bus of the provisioned node carried: at its first boot, and at one that opened what was there. */
async function recordings(
  lab: Lab,
): Promise<{ first: TpmExchange[]; later: TpmExchange[]; header: Buffer; key: Buffer }> {
  const { snapshot, tpmTrafficPath } = await provisionedNode(lab);
  const first = parseTpmRecording(await readFile(tpmTrafficPath, 'utf8'));
  const machine = await lab.machine({ snapshot });
  const header = await readLuksHeader(machine);
  const uki = await readFile(lab.image.ukiPath);
  const { policyPublicKeyPem: policyKeyPem } = await developmentKeys();
  let key: Buffer = Buffer.alloc(0);
  await machine.withTpm(async (tcti) => {
    key = unsealOnBench(tcti, first, { header, uki, policyKeyPem });
    await runProcess('tpm2_flushcontext', ['-T', tcti, '--transient-object']);
  });
  await machine.powerOn();
  await machine.waitForLine(nodeConsole.dataOpen, { deadlineMs: lab.bootDeadlineMs });
  const later = await machine.tpmExchanges();
  await machine.powerCut();
  return { first, later, header, key };
}

vmTest(
  'no secret of the node crosses the TPM’s bus in the clear, though the TPM gives it to who speaks there',
  async (lab) => {
    const { first, later, header, key } = await recordings(lab);
    assert.equal(key.length, 32, 'on the bench the TPM must release the node unlock key');
    for (const exchanges of [first, later]) {
      assert.ok(exchanges.some((exchange) => commandCode(exchange) === TPM_CC.unseal));
      assert.deepEqual(findInClear(exchanges, key), []);
    }
    assert.ok(first.some((exchange) => commandCode(exchange) === TPM_CC.create));
    // What is no secret is found: the listener hears.
    const sealed = Object.values(luksJson(header).tokens).find(({ type }) => type === 'ashlar-tpm2');
    const publicArea = Buffer.from(String(sealed?.['publicArea']), 'base64');
    assert.notDeepEqual(findInClear(later, publicArea), []);
  },
);
