/** How the attestation report looks: on a phone, a screen and paper. System fonts only, nothing is fetched. */
export const reportStyle = `
:root {
  color-scheme: light;
  --ink: #1d2327; --quiet: #565f66; --line: #d9d5cc; --paper: #fbfaf7; --card: #ffffff;
  --good: #1c5f3c; --good-ground: #eaf3ec; --bad: #9b1c1c; --bad-ground: #fbecea; --open: #6f4e00; --open-ground: #faf2dc;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, Charter, Georgia, "DejaVu Serif", serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans); }
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem clamp(1rem, 4vw, 3rem) 4rem; }
h1, h2, h3 { font-family: var(--serif); font-weight: 600; line-height: 1.2; margin: 0; text-wrap: balance; }
h1 { font-size: clamp(1.6rem, 4.5vw, 2.3rem); letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 3rem 0 0.4rem; padding-top: 1.1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; }
p { margin: 0.4rem 0; max-width: 68ch; }
.lead { color: var(--quiet); }
.lead code { white-space: nowrap; }
.kicker { margin: 0 0 0.4rem; color: var(--quiet); font-size: 0.8rem; letter-spacing: 0.09em; text-transform: uppercase; }
code, .digest { font-family: var(--mono); font-size: 0.8125rem; overflow-wrap: anywhere; }
.verdict { margin: 1.6rem 0 0; padding: 1.1rem 1.3rem; border-left: 5px solid; border-radius: 3px; }
.verdict strong { display: block; font: 600 1.35rem/1.3 var(--serif); }
.verdict p, .verdict li { color: var(--ink); overflow-wrap: anywhere; }
.verdict ul { margin: 0.5rem 0 0; padding-left: 1.2rem; }
.good { color: var(--good); background: var(--good-ground); border-color: var(--good); }
.bad { color: var(--bad); background: var(--bad-ground); border-color: var(--bad); }
.open { color: var(--open); background: var(--open-ground); border-color: var(--open); }
.mark { display: inline-block; padding: 0.05rem 0.5rem; border-radius: 1rem; font-size: 0.78rem; font-weight: 600; white-space: nowrap; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1rem 2rem; margin: 1.6rem 0 0; }
.facts dt { color: var(--quiet); font-size: 0.8rem; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.chain { list-style: none; margin: 1.4rem 0 0; padding: 0; }
.chain li { position: relative; padding: 0 0 1.5rem 2.6rem; }
.chain li::before { content: ""; position: absolute; left: 0.72rem; top: 1.7rem; bottom: -0.1rem; border-left: 2px solid var(--line); }
.chain li:last-child::before { display: none; }
.chain .node { position: absolute; left: 0; top: 0; width: 1.55rem; height: 1.55rem; border: 1.5px solid; border-radius: 50%; font: 600 0.9rem/1.4rem var(--sans); text-align: center; }
.chain header { display: flex; flex-wrap: wrap; gap: 0.2rem 0.8rem; align-items: baseline; }
.chain p { margin: 0.2rem 0 0; }
.chain .unproven { color: var(--quiet); }
.chain .why { margin-top: 0.4rem; padding: 0.4rem 0.7rem; border-radius: 3px; max-width: none; overflow-wrap: anywhere; font-size: 0.92rem; }
.scroll { overflow-x: auto; margin: 1.1rem 0 0; border: 1px solid var(--line); border-radius: 4px; background: var(--card); }
.scroll:focus-visible { outline: 3px solid #2f6f9f; outline-offset: 2px; }
table { width: 100%; border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.6rem 0.9rem; text-align: left; vertical-align: top; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--quiet); font-size: 0.78rem; font-weight: 600; white-space: nowrap; background: #f4f2ec; }
tbody th { font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.differs td, tr.differs th { background: var(--bad-ground); }
tr.differs .mark.bad { background: var(--card); }
.values { min-width: 35.5rem; }
.values .digest, .digests .digest { overflow-wrap: normal; font-size: 0.75rem; }
.values div { display: flex; gap: 0.7rem; }
.values .label { flex: none; width: 3.9rem; color: var(--quiet); font-size: 0.78rem; }
.type { min-width: 11rem; overflow-wrap: anywhere; }
.digests { min-width: 31rem; }
.differs .actual { color: var(--bad); font-weight: 600; }
.what { min-width: 11rem; }
.said { min-width: 22rem; overflow-wrap: anywhere; }
footer { margin-top: 3rem; padding-top: 1.1rem; border-top: 1px solid var(--line); color: var(--quiet); font-size: 0.9rem; }
@media (max-width: 40rem) {
  body { font-size: 15px; }
  main { padding-top: 1.5rem; }
  th, td { padding: 0.5rem 0.65rem; }
}
@media print {
  @page { size: A4; margin: 14mm 13mm 16mm; }
  :root { --paper: #ffffff; }
  html { font-size: 11.5px; }
  body { font-size: 9pt; line-height: 1.4; }
  p { max-width: none; }
  main { max-width: none; padding: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2 { margin-top: 1.6rem; break-after: avoid; }
  h3 { break-after: avoid; }
  .chain li, .verdict, tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; }
  th, td { padding: 0.28rem 0.45rem; }
  thead { display: table-header-group; }
  code, .digest { font-size: 6.8pt; }
  .values, .what, .said, .type { min-width: 0; }
  .digests { min-width: 0; width: 17.5rem; }
  .values .digest, .digests .digest { font-size: 6.5pt; overflow-wrap: anywhere; }
  .values div { gap: 0.4rem; }
  .values .label { width: 3.6rem; }
}
`;
