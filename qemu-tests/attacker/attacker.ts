/**
 * The attacks from inside a node, run by the test variant's service `attacker`: it has the TPM and the data partition's
 * raw disk, which no service of an image has. Each attack ends in one line, `ATTACK NAME: refused: REASON` or
 * `ATTACK NAME: SUCCEEDED …`; attacks-inside.full.test.ts reads them over the node's API.
 */
import { createHash, createPublicKey } from 'node:crypto';
import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import { decodePcrSignatures, pcrSignatureInput } from '../../src/measure/pcr-signature.ts';
import { encodeRsaPolicyKey, rsaPolicyKeyName } from '../../src/measure/policy.ts';
import { TpmWire, transmitToDevice } from './tpm-wire.ts';

const TPM = '/dev/tpmrm0';
const DATA = '/dev/vda4';
const SYSTEM_DESCRIPTION = '/run/ashlar/system.json';
const PCR_SIGNATURES = '/run/ashlar/tpm2-pcr-signature.json';
const STORAGE_ROOT_KEY = 0x81000001;
const ANCHORS = [0x01a51a00, 0x01a51a01] as const;
const ANCHOR_BYTES = 100;
const FREE_INDEX = 0x01a51a0f;
const LUKS_JSON = { offset: 4096, bytes: 12 * 1024 } as const;
const IMAGE_PCR = 11;
const VOLUME_PCR = 15;
const OTHER_SEALED_PCRS = [7, 12, 13, 15] as const;
const IDLE_MS = 60_000;

const sha256 = (text: string | Uint8Array) => createHash('sha256').update(text).digest();

/** The node's sealed keys, as they lie on the disk. */
function sealedKeys(): { publicArea: Buffer; privateArea: Buffer }[] {
  const area = Buffer.alloc(LUKS_JSON.bytes);
  const disk = openSync(DATA, 'r');
  readSync(disk, area, 0, area.length, LUKS_JSON.offset);
  closeSync(disk);
  const { tokens } = JSON.parse(area.toString('utf8', 0, area.indexOf(0))) as {
    tokens: Record<string, { type: string; publicArea: string; privateArea: string }>;
  };
  return Object.values(tokens)
    .filter(({ type }) => type === 'ashlar-tpm2')
    .map(({ publicArea, privateArea }) => ({
      publicArea: Buffer.from(publicArea, 'base64'),
      privateArea: Buffer.from(privateArea, 'base64'),
    }));
}

/** A policy session taken as far as it goes: with the image's signature, or with the PCRs alone. */
function policySession(wire: TpmWire, isSigned: boolean): number {
  const session = wire.policySession();
  wire.policyPcr(session, [IMAGE_PCR]);
  if (isSigned) {
    const { policyKeyPem } = JSON.parse(readFileSync(SYSTEM_DESCRIPTION, 'utf8')) as { policyKeyPem: string };
    const key = createPublicKey(policyKeyPem);
    const [signed] = decodePcrSignatures(readFileSync(PCR_SIGNATURES));
    if (signed === undefined) throw new Error('the image brings no PCR signature');
    const policyRef = Buffer.from(signed.policyRef);
    const digest = sha256(pcrSignatureInput(signed.policy, signed.policyRef));
    const policyKey = { publicArea: encodeRsaPolicyKey(key), keyName: rsaPolicyKeyName(key) };
    wire.policyAuthorize(session, { ...policyKey, policy: signed.policy, policyRef }, digest, signed.signature);
  }
  wire.policyPcr(session, OTHER_SEALED_PCRS);
  return session;
}

function unseal(wire: TpmWire, isSigned: boolean): string {
  const [sealed] = sealedKeys();
  if (sealed === undefined) throw new Error('the disk has no sealed key: this attack tries nothing');
  const session = policySession(wire, isSigned);
  return `${wire.unseal(wire.load(STORAGE_ROOT_KEY, sealed), session).length} bytes`;
}

type Attack = (wire: TpmWire) => string;

const ATTACKS: Readonly<Record<string, Attack>> = {
  'unseal with the signed policy': (wire) => unseal(wire, true),
  'unseal with the PCRs as they are': (wire) => unseal(wire, false),
  'enter the initrd phase again, then unseal': (wire) => {
    wire.pcrExtend(IMAGE_PCR, sha256('enter-initrd'));
    return unseal(wire, true);
  },
  'reset PCR 11': (wire) => {
    wire.pcrReset(IMAGE_PCR);
    return 'it is zero';
  },
  'reset PCR 15': (wire) => {
    wire.pcrReset(VOLUME_PCR);
    return 'it is zero';
  },
  'define an NV index': (wire) => {
    wire.nvDefine(FREE_INDEX, ANCHOR_BYTES);
    return 'the owner has no password';
  },
  'take the place of the storage root key': (wire) => {
    wire.evict(STORAGE_ROOT_KEY);
    return 'it is gone';
  },
  ...Object.fromEntries(
    ANCHORS.flatMap((anchor, generation): [string, Attack][] => [
      [
        `read anchor ${generation} by its own password`,
        (wire) => `${wire.nvRead(anchor, 'index', ANCHOR_BYTES).length} bytes`,
      ],
      [
        `read anchor ${generation} as its owner`,
        (wire) => `${wire.nvRead(anchor, 'owner', ANCHOR_BYTES).length} bytes`,
      ],
      [
        `read anchor ${generation} by its policy`,
        (wire) => `${wire.nvRead(anchor, { policySession: policySession(wire, true) }, ANCHOR_BYTES).length} bytes`,
      ],
      [
        `undefine anchor ${generation}, to define it anew`,
        (wire) => {
          wire.nvUndefine(anchor);
          return 'it is gone';
        },
      ],
    ]),
  ),
};

function main(): void {
  for (const [name, attack] of Object.entries(ATTACKS)) {
    let result: string;
    try {
      // Each from a connection of its own: the kernel then clears away what the last one left in the TPM.
      result = `SUCCEEDED: ${attack(new TpmWire(transmitToDevice(TPM)))}`;
    } catch (error) {
      result = `refused: ${error instanceof Error ? error.message : String(error)}`;
    }
    process.stdout.write(`ATTACK ${name}: ${result}\n`);
  }
  process.stdout.write(`ATTACKS DONE: ${Object.keys(ATTACKS).length}, PCR 11 ${pcr11()}\n`);
  process.on('SIGTERM', () => process.exit(0));
  setInterval(() => undefined, IDLE_MS);
}

function pcr11(): string {
  return new TpmWire(transmitToDevice(TPM)).pcrRead(IMAGE_PCR);
}

main();
