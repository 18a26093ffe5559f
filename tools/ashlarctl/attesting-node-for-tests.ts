/** What stands for init and its machine where the agent and ashlarctl are tested: a TPM in software. Only tests import this. */
import assert from 'node:assert/strict';
import { type AttestTask, runAttestTask } from '../../src/init/attest-tpm.ts';
import type { InitService } from '../../src/init/init-server.ts';
import { InitRefusal } from '../../src/rpc/init-protocol.ts';
import type { TestMachine } from '../../src/tpm/evidence-fixture.ts';

/** What init does with the TPM, without the Worker between. */
export function tpmService(tpm: string, tlsSpki: Uint8Array): Pick<InitService, 'attestationIdentity' | 'attest'> {
  const ask = (task: AttestTask) => {
    const answer = runAttestTask(task);
    if (answer.type === 'refused') throw new InitRefusal('INVALID', answer.message);
    return answer;
  };
  const identity = () => {
    const answer = ask({ kind: 'identity', tpm });
    assert.ok(answer.type === 'identity');
    return answer.identity;
  };
  return {
    async attestationIdentity() {
      const { ekKind: _, ...told } = identity();
      return told;
    },
    async attest(params) {
      const { ekKind } = identity();
      const answer = ask({ kind: 'attest', tpm, ekKind, ...params, tlsSpki: Buffer.from(tlsSpki).toString('base64') });
      assert.ok(answer.type === 'attestation');
      return answer.attestation;
    },
  };
}

/** What a judge reads of an image's measurements.json. */
export function measurementsOf({ image }: TestMachine): string {
  const { pcr7, pcr11, authenticode } = image;
  const step = { description: 'Authenticode digest of the UKI', digest: authenticode };
  return JSON.stringify({ bank: 'sha256', pcr7, pcr11, steps: { pcr4: { 'secure-boot-on': [step] } } });
}
