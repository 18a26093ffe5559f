/** A node whose data does not open any more is brought back by its owner, over the network, with its data. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { encodeHashList, secureBootVariables } from '../src/formats/efi-signature-list.ts';
import { enrollSecureBoot } from '../src/formats/efi-variable-store.ts';
import { developmentKeys } from '../tools/mkimage/keys.ts';
import { type Lab, vmTest } from './lab/lab.ts';
import { nodeConsole } from './lab/node-console.ts';
import type { Operator } from './lab/operator.ts';
import { provisionedNode } from './lab/provisioned-node.ts';
import type { Machine } from './machine/machine.ts';

const SERVES_RECOVERY =
  /init\.recovery: this node can be recovered over its API.*its key is (SHA256:[A-Za-z0-9_-]{43})/;

interface Refused {
  readonly recovered: boolean;
  readonly verdict: {
    readonly checks: readonly { readonly name: string; readonly outcome: string }[];
    readonly registers: readonly { readonly pcr: number; readonly quoted: string }[];
  };
}

vmTest(
  'a disk in a machine with another TPM is refused, recovered with one command, and boots with its data',
  async (lab) => {
    const { snapshot, nodeId, clusterId, fingerprint } = await provisionedNode(lab);
    const machine = await lab.machine({ snapshot });
    await machine.changeTpm(join(lab.directory, 'another-tpm'));
    const recover = await untilRefused(lab, machine, /FAILED data: .*belongs to another TPM/);
    const operator = await lab.operator(machine);

    // What is not proved gets nothing: the node stays as it is.
    const uncertified = await recover(operator, '--ek-ca', join(lab.run.path, 'owner', 'owner.crt'));
    assert.equal(uncertified.code, 1);
    assert.match(uncertified.stdout, /ek-chain[^]*Nothing was sent to the node/);

    const outcome = await recover(operator, '--ek-ca', lab.tpmAuthorityPath);
    assert.equal(outcome.code, 0, outcome.stdout + outcome.stderr);
    await assertBootsAgain(lab, machine, nodeId);
    await operator.takeOwnership(fingerprint);
    assert.equal(await operator.clusterId(), clusterId, 'the data is the same as before');
  },
);

vmTest('a node whose dbx was changed is refused, and recovered only when that PCR 7 is expected', async (lab) => {
  const { snapshot, nodeId } = await provisionedNode(lab);
  const machine = await lab.machine({ snapshot });
  const keys = await developmentKeys();
  const dbx = encodeHashList(keys.ownerGuid, [Buffer.alloc(32, 0x5a)]);
  await machine.changeVariables((image) => enrollSecureBoot(image, secureBootVariables({ ...keys, dbx })));
  const recover = await untilRefused(lab, machine, /FAILED data: .*PCR 7/);
  const operator = await lab.operator(machine);
  const trusted = ['--ek-ca', lab.tpmAuthorityPath];

  const unexpected = await recover(operator, ...trusted, '--json');
  assert.equal(unexpected.code, 1, unexpected.stderr);
  const refused = JSON.parse(unexpected.stdout) as Refused;
  assert.equal(refused.recovered, false);
  const failed = refused.verdict.checks.filter(({ outcome }) => outcome === 'failed').map(({ name }) => name);
  assert.deepEqual(failed, ['pcr-7']);

  const pcr7 = refused.verdict.registers.find(({ pcr }) => pcr === 7)?.quoted ?? '';
  const outcome = await recover(operator, ...trusted, '--accept-pcr7', pcr7);
  assert.equal(outcome.code, 0, outcome.stdout + outcome.stderr);
  await assertBootsAgain(lab, machine, nodeId);
});

/** Powers on, and gives a function that runs `node recover` with what the console has shown. */
async function untilRefused(lab: Lab, machine: Machine, refusal: RegExp) {
  await machine.powerOn();
  await machine.waitForLine(refusal, { deadlineMs: lab.bootDeadlineMs, failOn: nodeConsole.unlockOver });
  const line = await machine.waitForLine(SERVES_RECOVERY, { deadlineMs: lab.bootDeadlineMs, failOn: 'nothing' });
  const key = SERVES_RECOVERY.exec(line.text)?.[1] ?? '';
  const endpoint = `127.0.0.1:${await machine.hostPort(7401)}`;
  return (operator: Operator, ...more: string[]) =>
    operator.attempt(
      ...['node', 'recover', '--endpoint', endpoint, '--fingerprint', key],
      ...['--owner', join(lab.run.path, 'owner'), '--image', lab.image.measurementsPath, ...more],
    );
}

async function assertBootsAgain(lab: Lab, machine: Machine, nodeId: string): Promise<void> {
  await machine.waitForReset(lab.shutdownDeadlineMs);
  machine.mark();
  const ready = await machine.waitForLine(nodeConsole.ready, { deadlineMs: lab.bootDeadlineMs });
  assert.equal(nodeConsole.ready.exec(ready.text)?.[1], nodeId);
}
