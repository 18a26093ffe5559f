/** Images, disks and TPMs that a node must refuse: with one clear sentence, and nothing half-done. */
import assert from 'node:assert/strict';
import { copyFile, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { runProcess } from '../tools/host/run-process.ts';
import { partitionNamed, readPartitions } from './lab/disk-partitions.ts';
import { diskWithUki } from './lab/disk-with-uki.ts';
import { type Lab, vmTest } from './lab/lab.ts';
import { nodeConsole } from './lab/node-console.ts';
import { provisionedNode } from './lab/provisioned-node.ts';

vmTest('firmware refuses a UKI without a signature, and one with a modified byte', async (lab) => {
  const uki = await readFile(lab.image.ukiPath);
  const unsigned = join(lab.directory, 'unsigned.efi');
  await copyFile(lab.image.ukiPath, unsigned);
  await runProcess('sbattach', ['--remove', unsigned]);
  const modified = join(lab.directory, 'modified.efi');
  const at = Math.floor(uki.length / 2);
  uki.writeUInt8(uki.readUInt8(at) ^ 0x01, at);
  await writeFile(modified, uki);

  for (const path of [unsigned, modified]) {
    const disk = `${path}.disk.img`;
    await diskWithUki(lab.image.diskImagePath, path, disk);
    const machine = await lab.machine({ image: { path: disk, format: 'raw' } });
    await machine.powerOn();
    await machine.waitForLine(/failed to load .*Access Denied/, { deadlineMs: lab.bootDeadlineMs });
    assert.ok(!machine.linesSinceMark().some((line) => nodeConsole.stage1.test(line.text)));
    await machine.powerCut();
  }
});

vmTest('a flipped bit in the system partition panics the kernel, and the next boot tells', async (lab) => {
  const machine = await lab.machine();
  const system = partitionNamed(await readPartitions(lab.image.diskImagePath), 'SYSTEM-A');
  // The first block holds the superblock, which every mount reads.
  await machine.flipBit(system.offset + 1024);
  await machine.powerOn();
  await machine.waitForLine(/Kernel panic - not syncing.*verity/i, {
    deadlineMs: lab.bootDeadlineMs,
    failOn: 'nothing',
  });
  await machine.waitForReset(lab.shutdownDeadlineMs);
  machine.mark();
  await machine.waitForLine(/previous boot ended in a kernel panic.*verity/i, {
    deadlineMs: lab.bootDeadlineMs,
    failOn: 'nothing',
  });
});

vmTest('a kernel argument injected over SMBIOS makes the unseal fail, named as PCR 12', async (lab) => {
  const { snapshot, nodeId } = await provisionedNode(lab);
  const machine = await lab.machine({
    snapshot,
    smbiosStrings: ['io.systemd.stub.kernel-cmdline-extra=ashlar.harmless=1'],
  });
  await machine.powerOn();
  const refusal = await machine.waitForLine(/FAILED data: .*PCR 12/, {
    deadlineMs: lab.bootDeadlineMs,
    failOn: nodeConsole.unlockOver,
  });
  lab.context.diagnostic(refusal.text);
  await machine.powerCut();
  // Without the injection the same disk and TPM open again.
  machine.setSmbiosStrings([]);
  await machine.powerOn();
  const identity = await machine.waitForLine(nodeConsole.identity, { deadlineMs: lab.bootDeadlineMs });
  assert.equal(nodeConsole.identity.exec(identity.text)?.[1], nodeId);
});

vmTest(
  'a disk in a machine with another TPM, or none, stays closed and untouched; with its own TPM it opens',
  async (lab) => {
    const { snapshot, nodeId } = await provisionedNode(lab);
    const machine = await lab.machine({ snapshot });
    const own = machine.tpmDirectory;
    for (const tpm of [join(lab.directory, 'another-tpm'), undefined]) {
      await machine.changeTpm(tpm);
      await machine.powerOn();
      const refusal = await machine.waitForLine(tpm === undefined ? /FAILED data: .*no TPM/ : /FAILED data: /, {
        deadlineMs: lab.bootDeadlineMs,
        failOn: nodeConsole.unlockOver,
      });
      lab.context.diagnostic(refusal.text);
      await machine.powerCut();
    }
    await machine.changeTpm(own);
    await machine.powerOn();
    const identity = await machine.waitForLine(nodeConsole.identity, { deadlineMs: lab.bootDeadlineMs });
    assert.equal(nodeConsole.identity.exec(identity.text)?.[1], nodeId);
  },
);

vmTest('a new machine without a TPM is refused, unless its parameters allow it, and then it says so', async (lab) => {
  const machine = await lab.machine({ tpm: false });
  await machine.powerOn();
  const refusal = await machine.waitForLine(/FAILED data: .*no TPM.*"required": false/, {
    deadlineMs: lab.bootDeadlineMs,
    failOn: nodeConsole.unlockOver,
  });
  lab.context.diagnostic(refusal.text);
  await machine.powerCut();
  machine.setNodeParameters(await lab.nodeParameters((parameters) => ({ ...parameters, tpm: { required: false } })));
  await machine.powerOn();
  await machine.waitForLine(nodeConsole.dataOpen, { deadlineMs: lab.bootDeadlineMs });
  assert.ok(machine.linesSinceMark().some((line) => /unsealed|as open as the disk/i.test(line.text)));
});

vmTest('a TPM in lockout still unseals, and the console says that it is locked out', async (lab) => {
  const { snapshot } = await provisionedNode(lab);
  const machine = await lab.machine({ snapshot });
  await machine.withTpm((tcti) => lockOut(lab, tcti));
  await machine.powerOn();
  await machine.waitForLine(nodeConsole.dataOpen, { deadlineMs: lab.bootDeadlineMs });
  assert.ok(machine.linesSinceMark().some((line) => /lockout/i.test(line.text)));
});

/** Fails authorisations until the TPM refuses to check more: one wrong password, with one try allowed. */
async function lockOut(lab: Lab, tcti: string): Promise<void> {
  const path = (name: string) => join(lab.directory, name);
  // Straight to the TPM, with no resource manager between: what a command leaves loaded would fill its three places.
  const tpm2 = async (command: string, args: readonly string[], allowFailure = false) => {
    const result = await runProcess(`tpm2_${command}`, [...args, '-T', tcti], { allowFailure });
    await runProcess('tpm2_flushcontext', ['--transient-object', '-T', tcti]);
    return result;
  };
  await tpm2('dictionarylockout', [
    '--setup-parameters',
    '--max-tries=1',
    '--recovery-time=86400',
    '--lockout-recovery-time=86400',
  ]);
  // The node has given the owner hierarchy an authorization value; the endorsement hierarchy has none.
  await tpm2('createprimary', ['-C', 'e', '-c', path('primary.ctx')]);
  await tpm2('create', ['-C', path('primary.ctx'), '-p', 'right', '-u', path('k.pub'), '-r', path('k.priv')]);
  await tpm2('load', ['-C', path('primary.ctx'), '-u', path('k.pub'), '-r', path('k.priv'), '-c', path('k.ctx')]);
  await writeFile(path('message'), 'x');
  for (let attempt = 0; attempt < 3; attempt++) {
    await tpm2('sign', ['-c', path('k.ctx'), '-p', 'wrong', '-o', path('signature'), path('message')], true);
  }
  const { stdout } = await tpm2('getcap', ['properties-variable']);
  assert.match(stdout, /inLockout:\s+1/, 'the TPM must be in lockout for this test to mean anything');
}
