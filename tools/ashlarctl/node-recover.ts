/**
 * `ashlarctl node recover`: from a refused node to one that boots with its data, in one command.
 *
 *   1. look at the server's key and compare it with the fingerprint on the console; nothing is sent before that
 *   2. connect as the owner, trusting exactly that key
 *   3. attest: a fresh quote must name that key, and the judge must accept image, TPM and firmware state
 *   4. decrypt the recovery slot's key here, with the operator's key, which goes nowhere
 *   5. send that key over this channel; the node opens its data, seals it anew, and reboots
 *
 * What the node must prove is what makes it safe to send: this image, which seals and forgets the key, behind this TLS key,
 * in a machine whose TPM a maker vouches for.
 */
import { constants, createPrivateKey, createPublicKey, type KeyObject, privateDecrypt } from 'node:crypto';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { spkiFingerprint } from '../../src/formats/x509.ts';
import { encodeEvidence } from '../../src/measure/evidence.ts';
import { type JudgePolicy, judge, type Verdict } from '../../src/measure/judge.ts';
import type { GetRecoveryStateResponse } from '../../src/rpc/gen/ashlar/node/v1/recovery_pb.ts';
import { RecoveryService } from '../../src/rpc/gen/ashlar/node/v1/recovery_pb.ts';
import { openChannel, type ServiceClient } from '../../src/rpc/grpc-client.ts';
import { pinnedServer, WrongFingerprintError } from '../../src/rpc/pinned-server.ts';
import { RECOVERY_SERVER_NAME } from '../../src/rpc/tls-names.ts';
import { command, UsageError } from '../host/command-line.ts';
import { refuseSharedFile } from '../host/private-file.ts';
import { withAdvice } from './advice.ts';
import { RECOVERY_KEY_FILE } from './cluster-prepare.ts';
import { checkEndpointOption, checkFingerprintOption, printJson } from './command-options.ts';
import { JUDGE_OPTIONS, readJudgePolicy } from './judge-options.ts';
import { printable } from './table.ts';
import { ATTESTATION_TIMEOUT_MS, takeEvidence } from './take-evidence.ts';
import { readOwner, wrongFingerprint } from './take-ownership.ts';
import { verdictJson, verdictLines } from './verdict-view.ts';

/** Longer than the node gives itself to open and seal. */
const RECOVER_TIMEOUT_MS = 200_000;

export const nodeRecover = command({
  name: 'recover',
  summary: 'bring back a node whose data does not open: after a change of firmware keys, or of the TPM',
  description:
    'The node shows endpoint and fingerprint on its console. It must prove what it runs before anything is sent to it;\nits PCR 7 is what may have changed, so give the value that you expect with --accept-pcr7 if no image predicts it.\nThe recovery key is used on this machine and goes nowhere.',
  options: {
    endpoint: { type: 'string', value: 'HOST:PORT', required: true, summary: 'where the node serves recovery' },
    fingerprint: { type: 'string', value: 'SHA256:…', required: true, summary: "its key, from the node's console" },
    owner: { type: 'string', value: 'DIR', required: true, summary: 'what cluster prepare made: proves the owner' },
    'recovery-key': {
      type: 'string',
      value: 'FILE',
      summary: "the operator's recovery key, PEM; recovery.key of --owner unless given",
    },
    image: JUDGE_OPTIONS.image,
    'ek-ca': JUDGE_OPTIONS['ek-ca'],
    'trust-any-tpm': {
      type: 'boolean',
      summary: 'instead of --ek-ca: send the key though nobody vouches for the TPM',
    },
    'accept-header': {
      type: 'boolean',
      summary: 'though the TPM does not know the disk header: somebody may have put a volume of his own there',
    },
    'accept-pcr7': { type: 'string', value: 'HEX', summary: 'a PCR 7 that no image predicts, and that you expect' },
    out: { type: 'string', value: 'FILE', summary: 'where to write the evidence' },
    json: { type: 'boolean', summary: 'print JSON' },
  },
  async run(values, { print, signal, progress }) {
    const { endpoint, fingerprint, out } = values;
    checkEndpointOption(endpoint);
    checkFingerprintOption(fingerprint);
    if ((values['ek-ca'] === undefined) !== values['trust-any-tpm']) {
      throw new UsageError(
        "give --ek-ca FILE with the TPM maker's certificates, or --trust-any-tpm: then a program that claims to be a TPM could have the key",
      );
    }
    const policy = await readJudgePolicy({ ...values, pcr7: values['accept-pcr7'] });
    const owner = await readOwner(values.owner);
    const recoveryKey = await readRecoveryKey(values['recovery-key'] ?? join(values.owner, RECOVERY_KEY_FILE));

    const report = await recover({
      endpoint,
      fingerprint,
      owner,
      recoveryKey,
      policy,
      out,
      acceptsHeader: values['accept-header'],
      signal,
      note: (text) => progress.note(text),
    });
    if (values.json) {
      printJson(print, { recovered: report.summary !== undefined, ...report, verdict: verdictJson(report.verdict) });
    } else {
      for (const line of verdictLines(report.verdict)) print(line);
      if (report.summary === undefined) print('Nothing was sent to the node.');
      else print(`Recovered: ${printable(report.summary)}. The node reboots.`);
    }
    return report.summary === undefined ? 1 : 0;
  },
});

interface Recovery {
  readonly endpoint: string;
  readonly fingerprint: string;
  readonly owner: { readonly certificatePem: string; readonly privateKeyPem: string };
  readonly recoveryKey: KeyObject;
  readonly policy: JudgePolicy;
  /** Also a volume whose header the TPM does not know. */
  readonly acceptsHeader: boolean;
  readonly out: string | undefined;
  readonly signal: AbortSignal;
  readonly note: (text: string) => void;
}

interface RecoveryReport {
  readonly refusal: string;
  readonly volumeUuid: string;
  readonly verdict: Verdict;
  /** What the node sealed anew; undefined when nothing was sent. */
  readonly summary: string | undefined;
}

async function recover(options: Recovery): Promise<RecoveryReport> {
  const { endpoint, fingerprint, owner, recoveryKey, policy, signal, note } = options;
  try {
    const pinned = await pinnedServer(endpoint, RECOVERY_SERVER_NAME, fingerprint, { signal });
    const seen: { spki?: Uint8Array } = {};
    using channel = openChannel({
      address: endpoint,
      serverName: RECOVERY_SERVER_NAME,
      trustedPem: [pinned],
      identity: owner,
      // Only the pinned certificate comes through the handshake, so there is one key to see.
      onServerCertificate: () => {
        seen.spki = createPublicKey(pinned).export({ type: 'spki', format: 'der' });
      },
    });
    const client = channel.client(RecoveryService);
    const state = await client.getRecoveryState({}, { signal, timeoutMs: ATTESTATION_TIMEOUT_MS });
    note(`the node says: ${printable(state.message)}`);
    const { refusal, volumeUuid } = state;
    // Before the TPM is troubled: the wrong key file would be noticed last otherwise.
    checkRecoveryKey(state, recoveryKey);
    checkRefusal(state, options.acceptsHeader);
    const { verdict, text } = await attestAndJudge(client, () => seen.spki ?? new Uint8Array(), policy, signal);
    if (options.out !== undefined) await writeFile(options.out, text);
    if (!verdict.accepted) return { refusal, volumeUuid, verdict, summary: undefined };
    const recoverySecret = decryptRecoveryKey(state, recoveryKey);
    try {
      const answer = await client.recover({ recoverySecret }, { signal, timeoutMs: RECOVER_TIMEOUT_MS });
      return { refusal, volumeUuid, verdict, summary: answer.summary };
    } finally {
      recoverySecret.fill(0);
    }
  } catch (error) {
    if (error instanceof WrongFingerprintError) throw wrongFingerprint(endpoint, error);
    throw withAdvice(error, {
      server: 'the node in recovery',
      address: endpoint,
      now: new Date(),
      credential: "the owner's certificate",
      wayOut: "give the directory whose node-parameters.json the cluster's first node was booted with",
    });
  }
}

async function attestAndJudge(
  client: ServiceClient<typeof RecoveryService>,
  tlsSpki: () => Uint8Array,
  policy: JudgePolicy,
  signal: AbortSignal,
): Promise<{ readonly verdict: Verdict; readonly text: string }> {
  const call = { signal, timeoutMs: ATTESTATION_TIMEOUT_MS };
  const evidence = await takeEvidence(
    {
      async identity() {
        const { identity } = await client.getRecoveryAttestationIdentity({}, call);
        if (identity === undefined) throw new Error('cannot attest the node: it does not say which keys its TPM has');
        return identity;
      },
      async attest(request) {
        const { attestation } = await client.attestRecovery({ request }, call);
        if (attestation === undefined) throw new Error('cannot attest the node: its answer is empty');
        // A node whose data is closed has no ID, and evidence names one.
        return { ...attestation, nodeId: attestation.nodeId === '' ? 'recovery' : attestation.nodeId };
      },
      tlsSpki,
    },
    { signal },
  );
  const text = encodeEvidence(evidence);
  const { nonce, time } = evidence;
  return { text, verdict: judge(text, { ...policy, nonce, time, tlsSpki: tlsSpki() }) };
}

/**
 * Recovery takes the header as it is. When the machine was not changed and its TPM does not know the header, the likeliest
 * reason is that the disk was: anybody can make a volume for a public recovery key.
 */
function checkRefusal({ refusal }: GetRecoveryStateResponse, acceptsHeader: boolean): void {
  if (refusal !== 'header-refused' && refusal !== 'wrong-key') return;
  if (acceptsHeader) return;
  throw new Error(
    'cannot recover without your word: the TPM does not know the header of this disk, so it may be a volume that somebody else has put there; find out who had the disk (docs/data-partition.md, "A refused header"), and if it is yours, say so with --accept-header',
  );
}

/** Throws unless the volume's recovery slot was made for this key. */
function checkRecoveryKey({ recoveryKeyFingerprint }: GetRecoveryStateResponse, key: KeyObject): void {
  const own = spkiFingerprint(createPublicKey(key));
  if (own === recoveryKeyFingerprint) return;
  throw new Error(
    `cannot recover: the volume's recovery slot is for the key ${printable(recoveryKeyFingerprint)}, yours is ${own}; give the right one with --recovery-key`,
  );
}

function decryptRecoveryKey({ encryptedRecoveryKey }: GetRecoveryStateResponse, key: KeyObject): Buffer {
  try {
    return privateDecrypt({ key, padding: constants.RSA_PKCS1_OAEP_PADDING, oaepHash: 'sha256' }, encryptedRecoveryKey);
  } catch {
    throw new Error(
      "cannot recover: the recovery slot's key does not decrypt with yours: the header was damaged or changed",
    );
  }
}

async function readRecoveryKey(path: string): Promise<KeyObject> {
  const pem = await readFile(path, 'utf8').catch((cause: Error) => {
    throw new Error(`cannot read the recovery key: ${cause.message}`, { cause });
  });
  let key: KeyObject;
  try {
    key = createPrivateKey(pem);
  } catch {
    // The parser's message could quote the key.
    throw new Error(`cannot read the recovery key ${path}: it is no private key in PEM without a passphrase`);
  }
  await refuseSharedFile(path, 'cannot use the recovery key');
  if (key.asymmetricKeyType === 'rsa') return key;
  throw new Error(`cannot use the recovery key ${path}: it is ${key.asymmetricKeyType}, and recovery keys are RSA`);
}
