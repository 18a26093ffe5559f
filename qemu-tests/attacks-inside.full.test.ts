/**
 * Attacks from inside a running node: a service that has been taken over and was given the TPM and the raw disk. No image
 * has such a service; this is a test variant, with keys that no other build takes (docs/attacks.md).
 */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { createProgress } from '../tools/host/progress.ts';
import { buildImage } from '../tools/mkimage/build.ts';
import { generateKeys, loadKeys } from '../tools/mkimage/keys.ts';
import { readBuiltImage } from './lab/built-image.ts';
import { vmTest } from './lab/lab.ts';
import { nodeConsole } from './lab/node-console.ts';
import type { Operator } from './lab/operator.ts';

const VARIANT = join(import.meta.dirname, 'attacker');
const ATTACKS_DEADLINE_MS = 120_000;

/** TPM_RC in the words of the attacker's lines, with what each says. */
const RC = {
  /** Format 1, first session or handle: the password is wrong. */
  badAuth: '0x9a2',
  locality: '0x907',
  /** The signature approves another digest than the session has: PCR 11 has moved on. */
  policyAuthorizeValue: '0x1c4',
  policyFail: '0x99d',
} as const;

const expected: Readonly<Record<string, RegExp>> = {
  'unseal with the signed policy': new RegExp(`policyAuthorize ${RC.policyAuthorizeValue}`),
  'unseal with the PCRs as they are': new RegExp(`unseal ${RC.policyFail}`),
  'enter the initrd phase again, then unseal': new RegExp(`policyAuthorize ${RC.policyAuthorizeValue}`),
  'reset PCR 11': new RegExp(`pcrReset ${RC.locality}`),
  'reset PCR 15': new RegExp(`pcrReset ${RC.locality}`),
  'define an NV index': new RegExp(`nvDefineSpace ${RC.badAuth}`),
  'take the place of the storage root key': new RegExp(`evictControl ${RC.badAuth}`),
  'read anchor 0 by its own password': new RegExp(`nvRead ${RC.badAuth}`),
  'read anchor 0 as its owner': new RegExp(`nvRead ${RC.badAuth}`),
  'read anchor 0 by its policy': new RegExp(`policyAuthorize ${RC.policyAuthorizeValue}`),
  'undefine anchor 0, to define it anew': new RegExp(`nvUndefineSpace ${RC.badAuth}`),
};

async function attackLines(operator: Operator, nodeId: string): Promise<string[]> {
  const deadline = performance.now() + ATTACKS_DEADLINE_MS;
  for (;;) {
    const { stdout } = await operator.attempt('node', 'logs', nodeId, '--service', 'attacker');
    const lines = stdout.split('\n').flatMap((line) => /ATTACKS? .*$/.exec(line)?.[0] ?? []);
    if (lines.some((line) => line.startsWith('ATTACKS DONE')) || performance.now() > deadline) return lines;
    await sleep(2000);
  }
}

vmTest('a service that holds the TPM and the disk of a running node gets nothing out of either', async (lab) => {
  const keysDir = join(lab.directory, 'keys');
  await generateKeys(keysDir, { isDevelopment: false, isTestOnly: true });
  const outDir = join(lab.directory, 'image');
  await buildImage({ outDir, keysDir, testVariantDir: VARIANT, allowDrift: true, progress: createProgress() });
  const image = await readBuiltImage(outDir);
  const machine = await lab.machine({
    image: { path: image.diskImagePath, format: 'raw' },
    firmware: await lab.firmwareIn({}, await loadKeys(keysDir)),
  });
  await machine.powerOn();
  const ready = await machine.waitForLine(nodeConsole.ready, { deadlineMs: lab.bootDeadlineMs });
  const nodeId = nodeConsole.ready.exec(ready.text)?.[1] ?? '';
  const said = machine.linesSinceMark().map(({ text }) => text);
  const fingerprint = said.flatMap((text) => nodeConsole.fingerprint.exec(text)?.[1] ?? [])[0] ?? '';
  const operator = await lab.operator(machine);
  await operator.takeOwnership(fingerprint);

  const lines = await attackLines(operator, nodeId);
  for (const line of lines) lab.context.diagnostic(line);
  assert.match(lines.at(-1) ?? '', /^ATTACKS DONE/);
  assert.deepEqual(
    lines.filter((line) => line.startsWith('ATTACK ') && !line.includes(': refused: ')),
    [],
  );
  for (const [name, reason] of Object.entries(expected)) {
    const line = lines.find((candidate) => candidate.startsWith(`ATTACK ${name}: `));
    assert.match(line ?? `the attack ${name} was not tried`, reason);
  }
});
