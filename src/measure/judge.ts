/**
 * The judge: evidence and a policy in, a decision with its reasons out. Pure, and the same for the operator's command
 * line, the cluster, and anybody's own program.
 *
 * ```
 * maker's certificate ─▶ endorsement key ─(activation)─▶ attestation key ─(signature)─▶ quote
 *                                                                              │ nonce, secret, TLS key
 *                                                    event log ─(replay)─▶ PCR 0 … 15 ◀─(predictions)─ allowed image
 * ```
 *
 * Each arrow is a check or a few, one function each (judge-quote.ts, judge-registers.ts). All are made, always: who reads
 * the verdict sees everything that is wrong, not the first thing. Evidence is hostile input; whatever is wrong with it is a
 * failed check, never an exception.
 */
import { decodeEvidence, type Evidence } from './evidence.ts';
import { quoteRules } from './judge-quote.ts';
import { findRegisters, registerRules } from './judge-registers.ts';
import { type CheckRule, type JudgedCase, openCase } from './judged-case.ts';
import type { JudgeCheck, JudgePolicy, Verdict } from './verdict.ts';

export type { JudgeCheck, JudgePolicy, Outcome, RegisterFinding, Verdict } from './verdict.ts';

const formatCheck = { name: 'format', title: 'The evidence has the documented form' } as const;
const rules: readonly CheckRule[] = [...quoteRules, ...registerRules];

/** Names of all checks, in the order of every verdict on evidence that can be read. */
export const checkNames: readonly string[] = [formatCheck.name, ...rules.map(({ name }) => name)];

/**
 * @param source an evidence file's content.
 * @throws RangeError when the policy allows no image: a fault of the caller, not of the evidence.
 */
export function judge(source: string | Uint8Array, policy: JudgePolicy): Verdict {
  if (policy.images.length === 0) throw new RangeError('cannot judge evidence: the policy allows no image');
  const isStrict = policy.isStrict ?? false;
  let evidence: Evidence;
  try {
    evidence = decodeEvidence(source);
  } catch (error) {
    const checks: JudgeCheck[] = [{ ...formatCheck, outcome: 'failed', detail: messageOf(error) }];
    return { accepted: false, isStrict, reservations: [], checks, registers: [] };
  }
  const judged = openCase(evidence, policy);
  const checks: JudgeCheck[] = [
    { ...formatCheck, outcome: 'passed', detail: `ashlar-evidence/1, ${source.length} bytes` },
    ...rules.map((rule) => runCheck(rule, judged)),
  ];
  const image = judged.image();
  const reservations = reservationsOf(checks);
  return {
    accepted: checks.every(({ outcome }) => outcome !== 'failed') && !(isStrict && reservations.length > 0),
    isStrict,
    reservations,
    ...(image !== undefined && { image: image.name }),
    checks,
    registers: findRegisters(judged),
  };
}

function runCheck({ name, title, check }: CheckRule, judged: JudgedCase): JudgeCheck {
  try {
    return { name, title, ...check(judged) };
  } catch (error) {
    return { name, title, outcome: 'failed', detail: messageOf(error) };
  }
}

/** What was not done leaves something open, unless another check settles the same question. */
function reservationsOf(checks: readonly JudgeCheck[]): string[] {
  const outcome = (name: string) => checks.find((check) => check.name === name)?.outcome;
  const isSettled = (name: string) => name.startsWith('ek-') && outcome('ak-enrolled') === 'passed';
  return rules
    .filter(({ name, reservation }) => reservation !== undefined && outcome(name) === 'not-done' && !isSettled(name))
    .map(({ reservation }) => reservation ?? '');
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
