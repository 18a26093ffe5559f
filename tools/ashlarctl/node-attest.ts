/** `ashlarctl node attest`: evidence of one node over its API, judged here. */
import { writeFile } from 'node:fs/promises';
import { encodeEvidence } from '../../src/measure/evidence.ts';
import { judge } from '../../src/measure/judge.ts';
import { RpcCallError } from '../../src/rpc/rpc-error.ts';
import { command, UsageError } from '../host/command-line.ts';
import { COMMON_OPTIONS, OVERRIDE_OPTION, printJson } from './command-options.ts';
import { connectCluster, type NodeConnection } from './connection.ts';
import { openContexts } from './contexts.ts';
import { JUDGE_OPTIONS, readJudgePolicy, writeReport } from './judge-options.ts';
import { ATTESTATION_TIMEOUT_MS, type AttestationCalls, takeEvidence } from './take-evidence.ts';
import { verdictJson, verdictLines } from './verdict-view.ts';

export const nodeAttest = command({
  name: 'attest',
  summary: 'have a node prove what it runs, and judge the proof',
  description:
    'Nonce and challenge are fresh, and the TLS key that the node proves is compared with the one that this connection\nhas seen. Exit code 0 when the evidence is accepted and 1 when it is refused. Without --image it is only written.',
  options: {
    ...COMMON_OPTIONS,
    'endpoint-override': OVERRIDE_OPTION,
    ...JUDGE_OPTIONS,
    out: { type: 'string', value: 'FILE', summary: 'where to write the evidence; measure verify judges it again' },
  },
  positionals: [{ name: 'node', summary: 'its ID, or an unambiguous beginning of it', required: true }],
  async run(values, { print, signal }) {
    const { out } = values;
    const isJudged = values.image.length > 0;
    if (!isJudged && out === undefined) {
      throw new UsageError('give --image FILE to judge by, or --out FILE to keep the evidence for later');
    }
    if (!isJudged && values.report !== undefined) throw new UsageError('--report needs --image FILE to judge by');
    // Before the node is asked: a mistyped file should cost its TPM nothing.
    const policy = isJudged ? await readJudgePolicy(values) : undefined;
    using connection = await connectCluster(openContexts(), {
      context: values.context,
      overrides: values['endpoint-override'],
    });
    const node = await connection.node(values.node);
    const evidence = await takeEvidence(nodeAttestation(node, signal), { signal });
    const text = encodeEvidence(evidence);
    if (out !== undefined) await writeFile(out, text);
    const subject = { nodeId: node.nodeId, ...(out !== undefined && { file: out }) };
    if (policy === undefined) {
      if (values.json) return printJson(print, subject);
      print(`${out}: evidence of ${node.nodeId}, not judged; to judge it:`);
      return print(`  ashlarctl measure verify --evidence ${out} --image FILE`);
    }
    const { nonce, time } = evidence;
    const verdict = judge(text, { ...policy, time, nonce, tlsSpki: node.tlsSpki() });
    if (values.report !== undefined) await writeReport(values.report, text, verdict);
    if (values.json) printJson(print, { ...subject, verdict: verdictJson(verdict) });
    else for (const line of verdictLines(verdict)) print(line);
    return verdict.accepted ? 0 : 1;
  },
});

/** A node's attestation as `takeEvidence` asks for it. */
export function nodeAttestation(node: NodeConnection, signal: AbortSignal): AttestationCalls {
  const options = { signal, timeoutMs: ATTESTATION_TIMEOUT_MS };
  return {
    identity: () => node.call((client) => client.getAttestationIdentity({}, options)),
    attest: (request) => node.call((client) => client.attest(request, options)),
    async sealing() {
      try {
        return (await node.call((client) => client.getSealing({}, { signal }))).sealing;
      } catch (error) {
        if (error instanceof RpcCallError && error.code === 'FAILED_PRECONDITION') return undefined;
        throw error;
      }
    },
    tlsSpki: () => node.tlsSpki(),
  };
}
