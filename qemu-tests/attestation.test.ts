/** A real node proves what it runs, and what is not its proof is refused. */
import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { vmTest } from './lab/lab.ts';
import { nodeConsole } from './lab/node-console.ts';
import { provisionedNode } from './lab/provisioned-node.ts';
import { manufactureTpm } from './machine/software-tpm.ts';

interface Judged {
  readonly verdict: {
    readonly accepted: boolean;
    readonly checks: readonly { readonly name: string; readonly outcome: string; readonly detail: string }[];
  };
}

vmTest('a node proves to its operator what it runs, and that a certified TPM says so', async (lab) => {
  const { snapshot, nodeId, fingerprint } = await provisionedNode(lab);
  const machine = await lab.machine({ snapshot });
  await machine.powerOn();
  await machine.waitForLine(nodeConsole.ready, { deadlineMs: lab.bootDeadlineMs });
  const operator = await lab.operator(machine);
  await operator.takeOwnership(fingerprint);

  const image = ['--image', lab.image.measurementsPath];
  const evidence = join(lab.directory, 'evidence.json');
  const attest = ['node', 'attest', nodeId, ...image];
  const trusted = ['--ek-ca', lab.tpmAuthorityPath];
  const judged = (await operator.run(...attest, ...trusted, '--out', evidence)) as Judged;
  const failed = judged.verdict.checks.filter(({ outcome }) => outcome === 'failed');
  assert.deepEqual(failed, []);
  for (const name of ['nonce', 'tls-key', 'ek-chain', 'activation', 'quote-signature', 'replay']) {
    assert.equal(judged.verdict.checks.find((check) => check.name === name)?.outcome, 'passed', name);
  }

  // Two that come together share one TPM: one of them waits, and both get an answer of their own.
  const both = await Promise.all([0, 1].map(() => operator.run(...attest, ...trusted)));
  assert.ok((both as Judged[]).every(({ verdict }) => verdict.accepted));

  // The evidence as a file: whoever kept the nonce can judge it again, and it answers no other nonce.
  const verify = ['measure', 'verify', '--evidence', evidence, ...image, ...trusted];
  const { nonce } = JSON.parse(await readFile(evidence, 'utf8')) as { nonce: string };
  assert.equal((await operator.attempt(...verify, '--nonce', nonce)).code, 0);
  const replayed = await operator.attempt(...verify, '--nonce', 'ab'.repeat(32));
  assert.equal(replayed.code, 1);
  assert.match(replayed.stdout, /^REFUSED: .*nonce/m);

  // A quote that is claimed for another nonce is not the TPM's word on it.
  const forged = { ...JSON.parse(await readFile(evidence, 'utf8')), nonce: 'ab'.repeat(32) };
  const forgedPath = join(lab.directory, 'forged.json');
  await writeFile(forgedPath, JSON.stringify(forged));
  const claimed = await operator.attempt(
    ...['measure', 'verify', '--evidence', forgedPath, ...image, '--nonce', 'ab'.repeat(32)],
  );
  assert.equal(claimed.code, 1);
  assert.match(claimed.stdout, /^REFUSED: .*qualifying-data/m);

  // Another maker's certificate vouches for no TPM of ours.
  const stranger = join(lab.directory, 'another-maker');
  await manufactureTpm(join(stranger, 'tpm'), join(stranger, 'authority'));
  const other = await operator.attempt(...attest, '--ek-ca', join(stranger, 'authority/issuer-certificate.pem'));
  assert.equal(other.code, 1);
  assert.match(other.stdout, /^REFUSED: .*ek-chain/m);
});
