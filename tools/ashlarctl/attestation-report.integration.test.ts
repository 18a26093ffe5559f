/** The report on evidence of a real TPM (swtpm), read as text and laid out by a real browser. */
import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { decodeAllowedImage } from '../../src/measure/allowed-image.ts';
import { decodeEvidence, type Evidence, encodeEvidence } from '../../src/measure/evidence.ts';
import { type JudgePolicy, judge } from '../../src/measure/judge.ts';
import {
  authorityOf,
  bootTpm,
  encodeLog,
  type LoggedEvent,
  takeTestEvidence,
  testMachine,
} from '../../src/tpm/evidence-fixture.ts';
import { evidenceSample } from '../../src/tpm/evidence-transcript-fixture.ts';
import { type SoftwareTpm, startSoftwareTpm } from '../../src/tpm/swtpm-fixture.ts';
import { attestationReport } from './attestation-report.ts';
import { type Browser, type PageView, skipWithoutChromium, startChromium } from './chromium-for-tests.ts';

const madeAt = new Date('2026-01-02T03:05:00.000Z');
const board = testMachine({ content: 'ashlar 1.0.0' });
let directory: string;
let tpm: SoftwareTpm;
let evidence: Evidence;
let policy: JudgePolicy;

before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'ashlar-report-'));
  tpm = await startSoftwareTpm({ manufactured: true });
  const log = encodeLog(board.events);
  await bootTpm(tpm, log);
  evidence = takeTestEvidence(tpm, log);
  policy = { images: [board.image], time: madeAt, nonce: evidence.nonce, ekAuthorities: [authorityOf(tpm)] };
});
after(async () => {
  await tpm[Symbol.asyncDispose]();
  await rm(directory, { recursive: true });
});

function reportOf(judged: Evidence | string, change: Partial<JudgePolicy> = {}): string {
  const source = typeof judged === 'string' ? judged : encodeEvidence(judged);
  // A certificate that swtpm_setup has just made is valid from now on.
  const verdict = judge(source, { ...policy, time: new Date(), ...change });
  return attestationReport({ source, verdict, madeAt });
}

/** What a hostile node may say, wherever it may say something. */
const hostile = `<script>alert(1)</script><img src=x onerror="alert(2)">'"&\u202egnp.exe`;

function hostileEvidence(): Evidence {
  const events: LoggedEvent[] = [
    ...board.events,
    { pcr: 4, type: 0x8000_0007, data: Buffer.from(hostile) },
    { pcr: 11, type: 0xd, data: Buffer.from(hostile, 'utf16le') },
    { pcr: 7, type: 0xdddd_dddd, data: Buffer.from('x'.repeat(5000)) },
  ];
  const sealing = {
    policyRef: hostile,
    policyKeyFingerprint: 'f',
    pcr7: '00'.repeat(32),
    generation: 1,
    anchor: hostile,
  };
  const node = { id: hostile.replace('\u202e', ''), version: 'v'.repeat(200), bootId: hostile };
  return { ...evidence, node, sealing, eventLog: encodeLog(events) };
}

describe('the report', () => {
  test('shows verdict, chain, registers, events and checks of accepted evidence', () => {
    const report = reportOf(evidence);
    assert.match(report, /✓ Accepted<\/strong>/);
    assert.equal(report.match(/>expected<\/span>/g)?.length, 16);
    assert.equal(report.match(/<li>\s*<span class="node good"/g)?.length, 9);
    for (const value of evidence.pcrs.values()) assert.ok(report.includes(Buffer.from(value).toString('hex')));
    assert.match(report, /SecureBoot: on <span class="mark good">proven/);
    assert.ok(report.includes(board.image.authenticode));
  });

  test('shows what was refused, with both values, and what nobody vouched for', () => {
    const other = testMachine({ content: 'ashlar 2.0.0' }).image;
    const refused = reportOf(evidence, { images: [other] });
    assert.match(refused, /✕ Refused<\/strong>/);
    assert.ok(refused.includes(other.pcr11['leave-initrd']));
    assert.equal(refused.match(/<tr class="differs">\s*<th scope="row">11</g)?.length, 1);
    const { ekAuthorities: _, nonce: __, ...rest } = policy;
    const source = encodeEvidence(evidence);
    const open = attestationReport({ source, verdict: judge(source, rest), madeAt });
    assert.match(open, /Accepted with reservations/);
    assert.match(open, /nobody vouched for the TPM/);
    const strict = attestationReport({ source, verdict: judge(source, { ...rest, isStrict: true }), madeAt });
    assert.match(strict, /✕ Refused<\/strong>\s*<p>No check failed, [^<]*<code>--strict<\/code>[\s\S]*?nobody vouched/);
    assert.doesNotMatch(strict, /Accepted/);
  });

  test('is whole in itself: nothing is fetched and nothing runs', () => {
    for (const report of [reportOf(evidence), reportOf(hostileEvidence())]) {
      assert.match(report, /Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'"/);
      assert.doesNotMatch(report, /<(script|img|link|iframe|object|embed|svg|form|a)\b/i);
      assert.doesNotMatch(report, /\burl\(|@import|\bon\w+="/);
    }
  });

  test('escapes whatever hostile evidence says', () => {
    const report = reportOf(hostileEvidence());
    assert.ok(report.includes('&lt;script&gt;alert(1)&lt;/script&gt;'));
    assert.ok(!report.includes('\u202e'));
    assert.doesNotMatch(report, /v{201}|x{1000}/);
  });

  test('of evidence that cannot be read says so', () => {
    const report = reportOf('{"format":"<b>"}');
    assert.match(report, /✕ Refused/);
    assert.match(report, /Evidence that cannot be read/);
    assert.doesNotMatch(report, /<b>/);
  });
});

describe('in a browser', { skip: skipWithoutChromium() }, () => {
  const views: Record<string, PageView> = {
    phone: { widthPx: 390, heightPx: 1700 },
    laptop: { widthPx: 1280, heightPx: 2600, scale: 0.6 },
    // A4 without its margins, at 96 pixels an inch.
    print: { widthPx: 695, heightPx: 1010, media: 'print' },
  };
  let browser: Browser;
  before(async () => {
    browser = await startChromium();
    // Of a node: a whole event log, and the same page in every run.
    const sample = evidenceSample();
    const { time, nonce, tlsSpki } = decodeEvidence(sample.evidence);
    const images = [decodeAllowedImage(sample.measurements, 'ashlar-0.1.0')];
    const ekAuthorities = [sample.authority];
    const verdict = judge(sample.evidence, { images, time, nonce, tlsSpki, ekAuthorities });
    const report = attestationReport({ source: sample.evidence, verdict, madeAt: new Date(time.getTime() + 1000) });
    await writeFile(join(directory, 'good.html'), report);
    await writeFile(join(directory, 'hostile.html'), reportOf(hostileEvidence()));
  });
  after(() => browser[Symbol.asyncDispose]());

  for (const [name, view] of Object.entries(views)) {
    test(`nothing is wider than the page at ${name} size; tables scroll in themselves, on paper not at all`, async () => {
      for (const page of ['good.html', 'hostile.html']) {
        await browser.open(join(directory, page), view);
        assert.equal(await browser.evaluate('innerWidth'), view.widthPx);
        assert.equal(await browser.evaluate('document.documentElement.scrollWidth'), view.widthPx, page);
        // Also what an ancestor clips: every element outside of a scrolling table is inside the page.
        const outside = `[...document.querySelectorAll('body *')].filter((element) => !element.closest('table') &&
          element.getBoundingClientRect().right > innerWidth + 0.5).map((element) => element.outerHTML.slice(0, 100))`;
        assert.deepEqual(await browser.evaluate(outside), []);
        const widest = `Math.max(...[...document.querySelectorAll('table')].map(({ scrollWidth }) => scrollWidth))`;
        if (view.media === 'print') assert.ok((await browser.evaluate<number>(widest)) <= view.widthPx, page);
      }
      const captures = process.env['ASHLAR_REPORT_CAPTURES'];
      if (captures === undefined) return;
      await browser.open(join(directory, 'good.html'), view);
      await writeFile(join(captures, `attestation-report-${name}.png`), await browser.screenshot());
    });
  }

  test('hostile evidence runs nothing', async () => {
    await browser.open(join(directory, 'hostile.html'), views['laptop'] ?? { widthPx: 1280, heightPx: 800 });
    assert.equal(await browser.evaluate(`document.querySelectorAll('script, img').length`), 0);
  });

  test('text has the contrast of WCAG AA against what is behind it', async () => {
    await browser.open(join(directory, 'hostile.html'), views['laptop'] ?? { widthPx: 1280, heightPx: 800 });
    assert.deepEqual(await browser.evaluate(`(${lowContrast.toString()})()`), []);
  });

  test('it prints as pages', async () => {
    await browser.open(join(directory, 'good.html'), { widthPx: 1280, heightPx: 800 });
    const pdf = Buffer.from(await browser.pdf()).toString('latin1');
    const pages = pdf.match(/\/Type\s*\/Page\b/g)?.length ?? 0;
    assert.ok(pages >= 2 && pages <= 8, `${pages} pages`);
  });
});

/** Runs in the page: text of less than 4.5:1, each kind once. */
function lowContrast(): string[] {
  interface PageElement {
    readonly parentElement: PageElement | null;
    readonly childNodes: Iterable<{ nodeType: number; textContent: string }>;
    readonly className: string;
    readonly tagName: string;
  }
  const page = globalThis as unknown as {
    document: { querySelectorAll(selector: string): Iterable<PageElement> };
    getComputedStyle(element: PageElement): { color: string; backgroundColor: string };
  };
  const parts = (color: string) => (color.match(/[\d.]+/g) ?? []).map(Number);
  const luminance = (color: string) => {
    const [r = 0, g = 0, b = 0] = parts(color).map((value) => {
      const part = value / 255;
      return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element: PageElement | null): string => {
    if (element === null) return 'rgb(255, 255, 255)';
    const { backgroundColor } = page.getComputedStyle(element);
    return parts(backgroundColor)[3] === 0 ? ground(element.parentElement) : backgroundColor;
  };
  const found = new Set<string>();
  for (const element of page.document.querySelectorAll('body *')) {
    const hasText = [...element.childNodes].some(({ nodeType, textContent }) => nodeType === 3 && textContent.trim());
    if (!hasText) continue;
    const [a, b] = [luminance(page.getComputedStyle(element).color), luminance(ground(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) found.add(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
  }
  return [...found];
}
