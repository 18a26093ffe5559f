/**
 * A TPM taken out of its machine: on the bench, somebody tells it what the machine told it, and asks it for what it keeps.
 * A TPM knows nothing of its machine but what it is told, so this works; that it needs the chip, or wires to it, is all
 * that stands against it (docs/attacks.md, "Residual").
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash, createPublicKey } from 'node:crypto';
import { decodePe, findPeSection, peSectionContent } from '../../src/formats/pe.ts';
import { decodePcrSignatures, pcrSignatureInput } from '../../src/measure/pcr-signature.ts';
import { encodeRsaPolicyKey, rsaPolicyKeyName, sealedPcrs } from '../../src/measure/policy.ts';
import { TpmWire } from '../attacker/tpm-wire.ts';
import { commandCode, responseCode, TPM_CC, type TpmExchange } from '../machine/tpm-recording.ts';
import { luksJson } from './luks-edits.ts';

const STORAGE_ROOT_KEY = 0x81000001;
const IMAGE_PCR = 11;

export interface SealedToImage {
  /** Of the data partition: it holds the sealed key. */
  readonly header: Uint8Array;
  /** The image: it holds the signature of its policy. */
  readonly uki: Uint8Array;
  readonly policyKeyPem: string;
}

/** The node unlock key, from a TPM that has no machine and a recording of its machine's last boot. */
export function unsealOnBench(tcti: string, recording: readonly TpmExchange[], sealedTo: SealedToImage): Buffer {
  const send = (command: Uint8Array) => {
    const { stdout, stderr } = spawnSync('tpm2_send', ['-T', tcti], { input: command });
    assert.ok(stdout.length >= 10, `the TPM must answer: ${stderr.toString()}`);
    return stdout;
  };
  for (const { command } of extendsBeforeUnseal(recording)) assert.equal(send(command).readUInt32BE(6), 0);
  const wire = new TpmWire(send);
  const key = createPublicKey(sealedTo.policyKeyPem);
  const token = Object.values(luksJson(sealedTo.header).tokens).find(({ type }) => type === 'ashlar-tpm2');
  assert.ok(token !== undefined, 'the header must hold a sealed key');
  const bytes = (field: string) => Buffer.from(String(token[field]), 'base64');
  const policyRef = String(token['policyRef']);
  const signed = signaturesOf(sealedTo.uki).find((candidate) => candidate.policyRef === policyRef);
  assert.ok(signed !== undefined, `the image must be signed for ${policyRef}`);

  const session = wire.policySession();
  wire.policyPcr(session, [IMAGE_PCR]);
  wire.policyAuthorize(
    session,
    {
      publicArea: encodeRsaPolicyKey(key),
      keyName: rsaPolicyKeyName(key),
      policy: signed.policy,
      policyRef: Buffer.from(policyRef),
    },
    createHash('sha256').update(pcrSignatureInput(signed.policy, policyRef)).digest(),
    signed.signature,
  );
  wire.policyPcr(session, sealedPcrs);
  const object = wire.load(STORAGE_ROOT_KEY, { publicArea: bytes('publicArea'), privateArea: bytes('privateArea') });
  return wire.unseal(object, session);
}

/** What the machine had told its TPM when it first asked for the key. */
function extendsBeforeUnseal(recording: readonly TpmExchange[]): TpmExchange[] {
  const unseal = recording.findIndex((exchange) => commandCode(exchange) === TPM_CC.unseal);
  assert.notEqual(unseal, -1, 'the recording must hold an unseal');
  return recording
    .slice(0, unseal)
    .filter((exchange) => commandCode(exchange) === TPM_CC.pcrExtend && responseCode(exchange) === 0);
}

function signaturesOf(uki: Uint8Array) {
  const section = findPeSection(decodePe(uki), '.pcrsig');
  assert.ok(section !== undefined);
  return decodePcrSignatures(peSectionContent(uki, section));
}
