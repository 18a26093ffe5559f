/**
 * Attacks of somebody who had the disk: the LUKS2 header rewritten, the volume or the sealed key replaced. Each is refused
 * with its reason on the console, and what the attack put there is untouched (docs/attacks.md).
 */
import assert from 'node:assert/strict';
import { randomBytes, randomUUID } from 'node:crypto';
import { open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setPartitionAttribute } from '../src/formats/gpt.ts';
import { encodeRecoveryToken, readRecoveryPublicKey } from '../src/storage/data-key.ts';
import { diskLayout, initialisedAttributeBit } from '../src/storage/disk-layout.ts';
import { newHeader } from '../src/storage/header-edit.ts';
import { HEADER_BYTES } from '../src/storage/luks-metadata.ts';
import { type DataToken, decodeToken, encodeTpm2Token, sealedGenerations } from '../src/storage/luks-tokens.ts';
import { Tpm } from '../src/tpm/tpm.ts';
import { runProcess } from '../tools/host/run-process.ts';
import type { Measurements } from '../tools/mkimage/measurements.ts';
import { partitionOf, readTable, writeTable } from './lab/disk-edits.ts';
import { type Lab, vmTest } from './lab/lab.ts';
import { type LuksJson, luksJson, readLuksHeader, withLuksJson, writeLuksHeader } from './lab/luks-edits.ts';
import { nodeConsole } from './lab/node-console.ts';
import { createOwner } from './lab/owner.ts';
import { provisionedNode } from './lab/provisioned-node.ts';
import type { Machine } from './machine/machine.ts';

/** Boots a machine that must refuse its data for this reason, and leaves the disk's header as the attack made it. */
async function assertRefused(lab: Lab, machine: Machine, reason: RegExp): Promise<void> {
  const before = await readLuksHeader(machine);
  await machine.powerOn();
  const end = await machine.waitForLine(nodeConsole.unlockOver, { deadlineMs: lab.bootDeadlineMs, failOn: 'nothing' });
  assert.match(end.text, reason);
  lab.context.diagnostic(end.text);
  await machine.powerCut();
  assert.ok(before.equals(await readLuksHeader(machine)), 'a refused header must stay as it is');
}

/** The provisioned node with another header on its disk. */
async function withHeader(lab: Lab, change: (header: Buffer) => Buffer): Promise<Machine> {
  const { snapshot } = await provisionedNode(lab);
  const machine = await lab.machine({ snapshot });
  await writeLuksHeader(machine, change(await readLuksHeader(machine)));
  return machine;
}

const rewrites: readonly (readonly [attack: string, change: (json: LuksJson) => void, reason: RegExp])[] = [
  [
    'a null cipher, so that what the node writes next is in the clear',
    (json) => Object.assign(json.segments['0'] ?? {}, { encryption: 'cipher_null-ecb' }),
    /FAILED data: .*its LUKS2 header is refused: in its metadata, segments\.0\.encryption/,
  ],
  [
    'one segment more, in the clear',
    (json) => {
      const [first] = Object.values(json.segments);
      Object.assign(first ?? {}, { size: '1048576' });
      json.segments['1'] = { type: 'linear', offset: '3145728', size: 'dynamic' };
    },
    /FAILED data: .*its LUKS2 header is refused: in its metadata, segments/,
  ],
  [
    "one key slot more, for somebody's own key",
    (json) => {
      const [first] = Object.values(json.keyslots);
      assert.ok(first !== undefined);
      const ends = Object.values(json.keyslots).map(({ area }) => Number(area.offset) + Number(area.size));
      json.keyslots['7'] = { ...first, area: { ...first.area, offset: String(Math.max(...ends)) } };
      json.digests['0']?.keyslots.push('7');
    },
    /FAILED data: .*its LUKS2 header is refused: in its metadata, keyslots/,
  ],
];

for (const [attack, change, reason] of rewrites) {
  vmTest(`a LUKS2 header with ${attack}, is refused`, async (lab) => {
    const machine = await withHeader(lab, (header) => withLuksJson(header, change));
    // For cryptsetup it is a header like any other.
    const path = join(lab.directory, 'header');
    await machine.copyFromDisk((await partitionOf(machine, 'DATA')).offset, HEADER_BYTES, path);
    await runProcess('cryptsetup', ['luksDump', path]);
    await assertRefused(lab, machine, reason);
  });
}

/** A volume of an attacker's, who knows its keys, with these tokens. @returns its header */
async function attackersVolume(lab: Lab, uuid: string, nodeTokens: readonly DataToken[]): Promise<Buffer> {
  const path = join(lab.directory, `volume-${randomUUID()}`);
  await using file = await open(path, 'w');
  await file.truncate(HEADER_BYTES + 4 * 1024 * 1024);
  const { nodeParameters } = createOwner();
  const recoveryKey = randomBytes(32);
  const recoveryToken = encodeRecoveryToken(recoveryKey, readRecoveryPublicKey(nodeParameters.recovery.publicKeyPem));
  const generation = { place: 'a' as const, slotKey: randomBytes(32), tokens: nodeTokens };
  return Buffer.from(newHeader(path, { uuid, generation, recoveryKey, recoveryToken }, { path: lab.directory }).bytes);
}

function sealedTokens(header: Buffer): DataToken[] {
  return Object.entries(luksJson(header).tokens)
    .filter(([, { type }]) => type === 'ashlar-tpm2')
    .map(([id, token]) => decodeToken(token, `tokens.${id}`));
}

vmTest("a volume of an attacker's, with its key in the clear, is refused on a machine with a TPM", async (lab) => {
  const { snapshot } = await provisionedNode(lab);
  const machine = await lab.machine({ snapshot });
  const { uniqueGuid } = await partitionOf(machine, 'DATA');
  const nodeUnlockKey = randomBytes(32).toString('base64');
  const header = await attackersVolume(lab, uniqueGuid, [
    { type: 'ashlar-unsealed', keyslots: ['0'], version: 1, nodeUnlockKey },
  ]);
  await writeLuksHeader(machine, header);
  await assertRefused(lab, machine, /FAILED data: .*keeps its key unsealed, though this machine has a TPM/);
});

vmTest("a volume of an attacker's, under the node's own sealed key, is refused", async (lab) => {
  const { snapshot } = await provisionedNode(lab);
  const machine = await lab.machine({ snapshot });
  const { uniqueGuid } = await partitionOf(machine, 'DATA');
  const own = await readLuksHeader(machine);
  await writeLuksHeader(machine, await attackersVolume(lab, uniqueGuid, sealedTokens(own)));
  await assertRefused(lab, machine, /FAILED data: .*its LUKS2 header is refused: it is not the one that the TPM knows/);
});

vmTest("a volume of an attacker's, under a key that the attacker sealed on this TPM, is refused", async (lab) => {
  const { snapshot } = await provisionedNode(lab);
  const machine = await lab.machine({ snapshot });
  const { uniqueGuid } = await partitionOf(machine, 'DATA');
  const [own] = sealedGenerations(sealedTokens(await readLuksHeader(machine)));
  assert.ok(own !== undefined);
  // Sealing needs no permission: anybody with the TPM may, and the policy is no secret.
  const { policy } = JSON.parse(await readFile(lab.image.measurementsPath, 'utf8')) as Measurements;
  const authPolicy = Buffer.from(policy.sealing['ovmf-empty-dbx'] ?? '', 'hex');
  let token: DataToken | undefined;
  await machine.withTpm(async (tcti) => {
    using tpm = new Tpm(tcti);
    using rootKey = tpm.persistentStorageRootKey();
    assert.ok(rootKey !== undefined);
    using session = tpm.encryptedSession(rootKey);
    const sealed = tpm.seal(rootKey, session, { secret: randomBytes(32), authPolicy });
    token = encodeTpm2Token({ ...own, sealed: { ...own.sealed, ...sealed } });
  });
  assert.ok(token !== undefined);
  await writeLuksHeader(machine, await attackersVolume(lab, uniqueGuid, [token, token]));
  await assertRefused(lab, machine, /FAILED data: .*anchor 0x01a51a00 of the TPM is not this key's/);
});

vmTest('a partition table that calls the data partition new again does not get it formatted', async (lab) => {
  const { snapshot } = await provisionedNode(lab);
  const machine = await lab.machine({ snapshot });
  const table = await readTable(machine);
  await writeTable(machine, setPartitionAttribute(table, diskLayout.data.number, initialisedAttributeBit, false));
  await assertRefused(lab, machine, /FAILED data: .*clear the TPM in the firmware settings/);
});

vmTest("another node's sealed key in the header is refused, as another TPM's", async (lab) => {
  const { snapshot } = await provisionedNode(lab);
  const other = await lab.machine();
  await other.powerOn();
  await other.waitForLine(nodeConsole.dataOpen, { deadlineMs: lab.bootDeadlineMs });
  await other.powerCut();
  const others = luksJson(await readLuksHeader(other)).tokens;

  const machine = await lab.machine({ snapshot });
  const header = withLuksJson(await readLuksHeader(machine), (json) => {
    for (const [id, token] of Object.entries(others)) if (token['type'] === 'ashlar-tpm2') json.tokens[id] = token;
  });
  await writeLuksHeader(machine, header);
  await assertRefused(lab, machine, /FAILED data: this data partition belongs to another TPM/);
});
