/** A machine as its event log shows it, with an image and a sealing that fit: for tests of what changes. Only tests import this. */
import { createPublicKey } from 'node:crypto';
import { join } from 'node:path';
import {
  decodeSignatureLists,
  efiGlobalVariable,
  efiImageSecurityDatabase,
  type SecureBootVariables,
} from '../../src/formats/efi-signature-list.ts';
import { encodeVariableData } from '../../src/formats/efi-variable-data.ts';
import { eventType } from '../../src/formats/event-types.ts';
import { encodeEventLog, minimalPe } from '../../src/formats/fixtures.ts';
import { encodeGuid } from '../../src/formats/guid.ts';
import { measure, predictPcr } from '../../src/measure/pcr.ts';
import { policyKeyFingerprint } from '../../src/measure/pcr-signature.ts';
import type { SealedTo } from '../../src/measure/predict-unseal.ts';
import { generateKeys, type Keys, loadKeys, secureBootVariablesOf } from '../mkimage/keys.ts';
import { assembleUki } from '../mkimage/uki.ts';

export interface SealedMachine {
  readonly keys: Keys;
  readonly uki: Uint8Array;
  readonly variables: SecureBootVariables;
  readonly eventLog: Uint8Array;
  readonly sealedTo: SealedTo & { readonly policyKeyPem: string };
  /** Another image of these keys. */
  build(change: { readonly cmdline?: string; readonly epoch?: number; readonly keys?: Keys }): Uint8Array;
}

/** @param directory gets the keys */
export async function sealedMachine(directory: string): Promise<SealedMachine> {
  const keys = await makeKeys(join(directory, 'machine-keys'));
  const build: SealedMachine['build'] = (change) =>
    assembleUki({
      stub: minimalPe(),
      kernel: minimalPe({ text: Buffer.from('kernel') }),
      initrd: Buffer.from('initramfs'),
      cmdline: change.cmdline ?? 'quiet',
      osRelease: 'ID=ashlar\n',
      uname: '6.12.1-ashlar',
      epoch: change.epoch ?? 2,
      keys: change.keys ?? keys,
    }).uki;
  const variables = secureBootVariablesOf(keys, 'dummy');
  const events = pcr7Events(variables);
  const value = predictPcr(events.map(({ data }) => measure('event', data))).value;
  return {
    keys,
    build,
    uki: build({}),
    variables,
    eventLog: encodeEventLog(events.map((event) => ({ ...event, pcr: 7 }))),
    sealedTo: {
      policyRef: 'ashlar-epoch-2',
      policyKeyFingerprint: Buffer.from(policyKeyFingerprint(createPublicKey(keys.policyPublicKeyPem))).toString('hex'),
      policyKeyPem: keys.policyPublicKeyPem,
      pcr7: Buffer.from(value).toString('hex'),
    },
  };
}

export async function makeKeys(directory: string): Promise<Keys> {
  await generateKeys(directory, { isDevelopment: true });
  return loadKeys(directory);
}

/** As a board measures that does more than EDK II: one variable and one authority of its own. */
function pcr7Events({ pk, kek, db, dbx }: SecureBootVariables): { type: number; data: Uint8Array }[] {
  const variable = (name: string, guid: string, data: Uint8Array) => ({
    type: eventType.efiVariableDriverConfig,
    data: encodeVariableData(name, guid, data),
  });
  const [entry] = decodeSignatureLists(db).flatMap(({ signatures }) => signatures);
  const ofImage = Buffer.concat([encodeGuid(entry?.ownerGuid ?? ''), entry?.data ?? Buffer.alloc(0)]);
  const authority = (data: Uint8Array) => ({
    type: eventType.efiVariableAuthority,
    data: encodeVariableData('db', efiImageSecurityDatabase, data),
  });
  return [
    variable('SecureBoot', efiGlobalVariable, Uint8Array.of(1)),
    variable('PK', efiGlobalVariable, pk),
    variable('KEK', efiGlobalVariable, kek),
    variable('db', efiImageSecurityDatabase, db),
    variable('dbx', efiImageSecurityDatabase, dbx),
    variable('DeployedMode', efiGlobalVariable, Uint8Array.of(1)),
    { type: eventType.separator, data: Buffer.alloc(4) },
    authority(Buffer.from('what let an option ROM run')),
    authority(ofImage),
  ];
}
