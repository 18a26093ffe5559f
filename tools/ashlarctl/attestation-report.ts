/**
 * The attestation report: evidence and verdict as one page for people who were not there. It is whole in itself (no script,
 * no picture, nothing that is fetched) and made to be printed and filed. What it shows of the evidence is hostile text.
 */
import { eventBinding } from '../../src/formats/event-binding.ts';
import { decodeEventData } from '../../src/formats/event-data.ts';
import { decodeEventLog, type EventLogEntry } from '../../src/formats/event-log.ts';
import { objectName } from '../../src/formats/tpm-public-area.ts';
import { decodeEvidence, type Evidence } from '../../src/measure/evidence.ts';
import type { JudgeCheck, RegisterFinding, Verdict } from '../../src/measure/judge.ts';
import { reportStyle } from './attestation-report-style.ts';
import { type ChainStep, chainOfTrust } from './chain-of-trust.ts';
import { eventSummary } from './event-summary.ts';
import { Html, html } from './html-text.ts';

export interface AttestationReportOptions {
  /** The evidence file's content. */
  readonly source: string | Uint8Array;
  /** What the judge said of it. */
  readonly verdict: Verdict;
  readonly madeAt: Date;
}

type Outcome = JudgeCheck['outcome'];
const words: Record<Outcome, string> = { passed: 'passed', failed: 'failed', 'not-done': 'not done' };
const tones: Record<Outcome, string> = { passed: 'good', failed: 'bad', 'not-done': 'open' };
const signs: Record<Outcome, string> = { passed: '✓', failed: '✕', 'not-done': '–' };

/** Registers whose events tell what was run and under which rules. */
const tellingPcrs: ReadonlySet<number> = new Set([4, 7, 11, 12, 13]);
const maxEvents = 200;
const maxSummary = 400;

/** A whole HTML document. Never throws: evidence that cannot be read is a report that says so. */
export function attestationReport({ source, verdict, madeAt }: AttestationReportOptions): string {
  const evidence = readOrNothing(() => decodeEvidence(source));
  const title = `Attestation of ${evidence?.node.id ?? 'unreadable evidence'}`;
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="referrer" content="no-referrer">
<title>${title}</title>
<style>${new Html(reportStyle)}</style>
</head>
<body>
<main>
<p class="kicker">Attestation report</p>
<h1>${evidence?.node.id ?? 'Evidence that cannot be read'}</h1>
${banner(verdict)}
${evidence === undefined ? [] : [facts(evidence, verdict)]}
${evidence === undefined ? [] : [chainSection(chainOfTrust(verdict))]}
${verdict.registers.length === 0 ? [] : [registerSection(verdict.registers)]}
${evidence === undefined ? [] : [eventSection(evidence)]}
${checkSection(verdict.checks)}
${footer(madeAt)}
</main>
</body>
</html>
`.text;
}

function banner(verdict: Verdict): Html {
  const failed = verdict.checks.filter(({ outcome }) => outcome === 'failed');
  const reservations = html`<ul>${verdict.reservations.map((reservation) => html`<li>${reservation}</li>`)}</ul>`;
  if (failed.length > 0)
    return html`<div class="verdict bad" role="status"><strong>✕ Refused</strong>
<p>${failed.length} of ${verdict.checks.length} checks failed. What this machine runs is not proven.</p>
<ul>${failed.map(({ title, name }) => html`<li>${title} (<code>${name}</code>)</li>`)}</ul></div>`;
  if (!verdict.accepted)
    return html`<div class="verdict bad" role="status"><strong>✕ Refused</strong>
<p>No check failed, but the judge was told to accept nothing with reservations (<code>--strict</code>).</p>
${reservations}</div>`;
  const image = html`<p>The machine runs <code>${verdict.image ?? 'an allowed image'}</code>.</p>`;
  if (verdict.reservations.length === 0)
    return html`<div class="verdict good" role="status"><strong>✓ Accepted</strong>${image}
<p>All ${verdict.checks.filter(({ outcome }) => outcome === 'passed').length} checks that were made have passed.</p></div>`;
  return html`<div class="verdict open" role="status"><strong>✓ Accepted with reservations</strong>${image}
${reservations}</div>`;
}

function facts(evidence: Evidence, verdict: Verdict): Html {
  const detail = (name: string) => verdict.checks.find((check) => check.name === name)?.detail ?? '';
  const { sealing } = evidence;
  const entries: [term: string, value: string | Html][] = [
    ['Taken', evidence.time.toISOString()],
    ['Version, as the node says', evidence.node.version],
    ['Boot, as the node says', html`<code>${evidence.node.bootId}</code>`],
    ['Nonce', digest(hex(evidence.nonce))],
    ['Attestation key', digest(hex(objectName(evidence.ak.publicArea)))],
    ['TPM', detail('ek-certificate')],
    ['TPM clock', detail('clock')],
    ...(sealing === undefined
      ? []
      : ([
          [
            'Sealing, as the node says',
            `${sealing.policyRef}, generation ${sealing.generation}, anchor ${sealing.anchor}`,
          ],
        ] satisfies [string, string][])),
  ];
  return html`<dl class="facts">${entries.map(([term, value]) => html`<div><dt>${term}</dt><dd>${value}</dd></div>`)}</dl>`;
}

function chainSection(steps: readonly ChainStep[]): Html {
  return html`<section aria-labelledby="chain"><h2 id="chain">Chain of trust</h2>
<p class="lead">From the chip to the services: each link holds only if all before it hold.</p>
<ol class="chain">${steps.map(
    ({ title, outcome, text, reasons }) => html`<li>
<span class="node ${tones[outcome]}" aria-hidden="true">${signs[outcome]}</span>
<header><h3>${title}</h3>${mark(outcome)}</header>
<p class="${outcome === 'failed' ? 'unproven' : 'claim'}">${outcome === 'failed' ? 'Not proven: ' : ''}${text}</p>
${reasons.map((reason) => html`<p class="why ${tones[reason.outcome]}">${reason.text}</p>`)}</li>`,
  )}</ol></section>`;
}

function registerSection(registers: readonly RegisterFinding[]): Html {
  return html`<section aria-labelledby="registers"><h2 id="registers">Registers</h2>
<p class="lead">SHA-256 bank, as quoted, beside what each should be and where that is from.</p>
${scrollingTable(
  'Registers',
  ['PCR', 'Holds', 'Expected and actual', 'Expected from', 'Result'],
  registers.map(
    ({ pcr, purpose, quoted, expected, source, equal }) => html`<tr class="${equal ? 'equal' : 'differs'}">
<th scope="row">${pcr}</th><td class="what">${purpose}</td>
<td class="values"><div><span class="label">expected</span>${expected === undefined ? html`any value` : digest(expected || 'unknown')}</div>
<div><span class="label">actual</span><span class="digest actual">${quoted}</span></div></td>
<td class="what">${source}</td><td>${resultMark(equal, expected)}</td></tr>`,
  ),
)}</section>`;
}

function resultMark(equal: boolean, expected: string | undefined): Html {
  if (expected === undefined) return html`<span class="mark open">any</span>`;
  return equal ? html`<span class="mark good">equal</span>` : html`<span class="mark bad">differs</span>`;
}

function eventSection(evidence: Evidence): Html {
  const log = readOrNothing(() => decodeEventLog(evidence.eventLog));
  const head = html`<h2 id="events">Events that matter</h2>`;
  if (log === undefined)
    return html`<section aria-labelledby="events">${head}<p>The event log cannot be read.</p></section>`;
  const telling = log.entries.filter((entry) => tellingPcrs.has(entry.pcr) || entry.warnings.length > 0);
  const shown = telling.slice(0, maxEvents);
  return html`<section aria-labelledby="events">${head}
<p class="lead">What firmware and stub logged of boot applications, Secure Boot and the image: ${shown.length} of
${log.entries.length} events. The digests are proven by the quote; of the words beside them, those that are marked.</p>
${scrollingTable('Events', ['PCR', 'Type', 'What the log says', 'SHA-256 digest'], shown.map(eventRow))}</section>`;
}

function eventRow(entry: EventLogEntry): Html {
  const { data, warnings } = decodeEventData(entry);
  const summary = eventSummary(data);
  const shown = summary.length > maxSummary ? `${summary.slice(0, maxSummary)}…` : summary;
  const binding = eventBinding(entry);
  const notes = [...entry.warnings, ...warnings].slice(0, 3);
  return html`<tr class="${binding === 'contradicts' ? 'differs' : 'equal'}"><th scope="row">${entry.pcr}</th>
<td class="type">${breakable(entry.typeName)}</td>
<td class="said">${shown} ${binding === 'bound' ? [html`<span class="mark good">proven</span>`] : []}
${binding === 'contradicts' ? [html`<span class="mark bad">not what was measured</span>`] : []}
${notes.map((note) => html`<br><em>${note}</em>`)}</td>
<td class="digests">${digest(hex(entry.digests.get('sha256') ?? new Uint8Array(0)) || 'none')}</td></tr>`;
}

function checkSection(checks: readonly JudgeCheck[]): Html {
  return html`<section aria-labelledby="checks"><h2 id="checks">All checks</h2>
<p class="lead">Each is one claim, judged by itself. The names are those of <code>ashlarctl measure verify --json</code>.</p>
${scrollingTable(
  'Checks',
  ['Result', 'Claim', 'Found, and expected if it differs'],
  checks.map(
    ({ name, title, outcome, detail }) => html`<tr class="${outcome === 'failed' ? 'differs' : 'equal'}">
<td>${mark(outcome)}</td><td class="what">${title}<br><code>${name}</code></td><td class="said">${detail}</td></tr>`,
  ),
)}</section>`;
}

/** Wide tables scroll in themselves, by keyboard too; the page never does. */
function scrollingTable(label: string, heads: readonly string[], rows: readonly Html[]): Html {
  return html`<div class="scroll" role="region" aria-label="${label}" tabindex="0"><table>
<thead><tr>${heads.map((head) => html`<th scope="col">${head}</th>`)}</tr></thead>
<tbody>${rows}</tbody></table></div>`;
}

function footer(madeAt: Date): Html {
  return html`<footer><p>Made ${madeAt.toISOString()} by <code>ashlarctl</code>. This page is a rendering and proves nothing by
itself: judge the evidence again with <code>ashlarctl measure verify</code>, or with tpm2-tools and openssl as
<code>docs/evidence.md</code> shows.</p>
<p>Not shown by any attestation: what the machine did after the quote, how well its firmware keeps its promises, and
whether someone with the chip in hand reset or bypassed it. <code>docs/threat-model.md</code> says more.</p></footer>`;
}

function mark(outcome: Outcome): Html {
  return html`<span class="mark ${tones[outcome]}">${words[outcome]}</span>`;
}

/** Long names of the specification break at their underscores. */
function breakable(name: string): Html[] {
  return name.split('_').map((part, index) => (index === 0 ? html`${part}` : html`_<wbr>${part}`));
}

function digest(text: string): Html {
  return html`<span class="digest">${text}</span>`;
}

function readOrNothing<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    // The verdict says why.
    return undefined;
  }
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
