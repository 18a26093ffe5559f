/**
 * Attacks that change what boots: files dropped on the ESP, boot entries, SMBIOS strings, other images, another TPM. The
 * firmware, the stub or the sealing policy refuses each, and the reason is on the console (docs/attacks.md).
 */
import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { signAuthenticode } from '../src/formats/authenticode.ts';
import { buildUki } from '../src/formats/pe.ts';
import { createProgress } from '../tools/host/progress.ts';
import { buildImage } from '../tools/mkimage/build.ts';
import { developmentKeys } from '../tools/mkimage/keys.ts';
import { encodeBootEntry, putFirst } from './lab/boot-entries.ts';
import { partitionOf, putOnEsp } from './lab/disk-edits.ts';
import { type Lab, vmTest } from './lab/lab.ts';
import { nodeConsole } from './lab/node-console.ts';
import { provisionedNode } from './lab/provisioned-node.ts';
import { unpackLockedPackage } from './machine/locked-package.ts';
import type { Machine, MachineOptions } from './machine/machine.ts';
import { manufactureTpm } from './machine/software-tpm.ts';

const ZERO = '0'.repeat(64);
const ADDON_STUB = 'usr/lib/systemd/boot/efi/addonx64.efi.stub';
const OWN_ENTRY = 0x0a5;
/** Would be the whole machine, were it taken. */
const ARGUMENT = 'rdinit=/bin/sh';

async function provisionedMachine(lab: Lab, overrides: Partial<MachineOptions> = {}): Promise<Machine> {
  const { snapshot } = await provisionedNode(lab);
  return lab.machine({ snapshot, ...overrides });
}

/** Switches on, and gives the line that ended the unlock. */
async function unlock(lab: Lab, machine: Machine): Promise<string> {
  await machine.powerOn();
  const end = await machine.waitForLine(nodeConsole.unlockOver, { deadlineMs: lab.bootDeadlineMs, failOn: 'nothing' });
  lab.context.diagnostic(end.text);
  return end.text;
}

/** A file on this host with this content. */
async function hostFile(lab: Lab, name: string, content: Uint8Array | string): Promise<string> {
  const path = join(lab.directory, name);
  await writeFile(path, content);
  return path;
}

/** A kernel command line as an addon for the stub, not signed. */
async function unsignedAddon(): Promise<Uint8Array> {
  const options = { progress: createProgress(), allowDrift: true };
  const stub = await readFile(join(await unpackLockedPackage('boot', 'systemd-boot-efi', options), ADDON_STUB));
  return buildUki({ stub, sections: [{ name: '.cmdline', data: Buffer.from(ARGUMENT) }] });
}

vmTest('a credential dropped on the ESP makes the unseal fail, named as PCR 12', async (lab) => {
  const machine = await provisionedMachine(lab);
  const credential = await hostFile(lab, 'credential', 'let me in');
  await putOnEsp(machine, { '/loader/credentials/ashlar.cred': credential });
  assert.match(await unlock(lab, machine), /FAILED data: .*PCR 12 is [0-9a-f]{64}, expected 0/);
  assert.notEqual((await machine.pcrs())['12'], ZERO);
});

vmTest('a system extension dropped beside the UKI makes the unseal fail, named as PCR 13', async (lab) => {
  const machine = await provisionedMachine(lab);
  const extension = await hostFile(lab, 'extension', Buffer.alloc(4096, 0x5a));
  await putOnEsp(machine, { '/EFI/BOOT/BOOTX64.EFI.extra.d/evil.sysext.raw': extension });
  assert.match(await unlock(lab, machine), /FAILED data: .*PCR 13 is [0-9a-f]{64}, expected 0/);
});

vmTest('a command line in /loader/addons, even signed with our own key, makes the unseal fail', async (lab) => {
  const machine = await provisionedMachine(lab);
  const { dbKey, dbCertificatePem } = await developmentKeys();
  const signed = signAuthenticode(await unsignedAddon(), { certificatePem: dbCertificatePem, key: dbKey });
  await putOnEsp(machine, { '/loader/addons/evil.addon.efi': await hostFile(lab, 'addon.efi', signed) });
  assert.match(await unlock(lab, machine), /FAILED data: .*PCR 12 is [0-9a-f]{64}, expected 0/);
});

vmTest(
  'load options of a boot entry, credentials in SMBIOS strings and an addon that nobody signed are not taken',
  async (lab) => {
    const machine = await provisionedMachine(lab, {
      smbiosStrings: ['io.systemd.credential:ashlar.evil=1', `io.systemd.boot.kernel-cmdline-extra=${ARGUMENT}`],
    });
    const addon = await hostFile(lab, 'addon.efi', await unsignedAddon());
    await putOnEsp(machine, { '/loader/addons/evil.addon.efi': addon });
    const esp = await partitionOf(machine, 'ESP');
    const path = '\\EFI\\BOOT\\BOOTX64.EFI';
    const entry = encodeBootEntry({ description: 'Evil', esp, path, loadOptions: ARGUMENT });
    await machine.changeVariables((image) => putFirst(image, OWN_ENTRY, entry));
    assert.match(await unlock(lab, machine), nodeConsole.dataOpen);
    assert.ok(machine.linesSinceMark().some(({ text }) => /starting Boot00A5 "Evil"/.test(text)));
    assert.equal((await machine.pcrs())['12'], ZERO);
  },
);

vmTest('an image signed with our Secure Boot key, but of another policy key, opens nothing', async (lab) => {
  const keysDir = join(lab.directory, 'keys');
  await cp((await developmentKeys()).directory, keysDir, { recursive: true });
  const other = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const pem = { format: 'pem' } as const;
  await writeFile(join(keysDir, 'policy.key'), other.privateKey.export({ ...pem, type: 'pkcs8' }), { mode: 0o600 });
  await writeFile(join(keysDir, 'policy.pub'), other.publicKey.export({ ...pem, type: 'spki' }));
  const options = { outDir: join(lab.directory, 'image'), keysDir, allowDrift: true, progress: createProgress() };
  const { uki } = await buildImage(options);

  const machine = await provisionedMachine(lab);
  await putOnEsp(machine, { '/EFI/BOOT/BOOTX64.EFI': uki });
  assert.match(await unlock(lab, machine), /FAILED data: .*polic/);
  // The firmware had no objection: it is the sealing policy that refused.
  assert.ok(machine.linesSinceMark().some(({ text }) => nodeConsole.stage2.test(text)));
});

vmTest('a TPM that has only the SHA-1 bank seals nothing, and opens nothing', async (lab) => {
  const machine = await lab.machine({ tpm: false });
  const tpm = join(lab.directory, 'sha1-tpm');
  await manufactureTpm(tpm, join(lab.run.path, 'tpm-authority'), 'sha1');
  await machine.changeTpm(tpm);
  assert.match(await unlock(lab, machine), /FAILED data: .*SHA-256/);
});
