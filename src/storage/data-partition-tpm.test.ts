import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DataPartitionError, openDataPartition } from './data-partition.ts';

const request = {
  systemDisk: '/nonexistent/disk',
  systemPartitionUuid: '00000000-0000-0000-0000-000000000000',
  policy: { policyKeyPem: '', policyRef: '', formerPolicyKeyPems: [] },
  recoveryPublicKeyPem: '',
  paths: {
    tpm: '/nonexistent/tpmrm0',
    efivars: '/nonexistent',
    pcrSignature: '/nonexistent',
    headers: '/nonexistent',
    mountPoint: '/nonexistent',
  },
};
const surroundings = { run: async () => ({ code: 1, output: '' }), report: () => undefined };

test('a TPM that is gone since the start is named, and neither a machine without nor a reason to keep the key open', async () => {
  for (const isTpmRequired of [true, false])
    await assert.rejects(
      openDataPartition({ ...request, isTpmRequired, hasTpm: true }, surroundings),
      (error) =>
        error instanceof DataPartitionError &&
        error.refusal === 'tpm-failed' &&
        /there is no \/nonexistent\/tpmrm0, though this machine started with a TPM/.test(error.message),
    );
  await assert.rejects(
    openDataPartition({ ...request, isTpmRequired: true, hasTpm: false }, surroundings),
    (error) => error instanceof DataPartitionError && error.refusal === 'no-tpm',
  );
});
