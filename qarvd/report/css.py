"""The look of a report: one column of cards, light or dark as the reader's system is."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f4f5f7; --surface: #fff; --ink: #1b2027; --quiet: #5a6472; --rule: #dde1e7; --accent: #0b6fb8;
  --heat: #4a9ad6; --series-1: #0b6fb8; --series-2: #c9510c; --series-3: #00856a;
  --series-4: #a8488f; --series-5: #8f6b00; --series-6: #5a55c9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1217; --surface: #171c23; --ink: #e6eaf0; --quiet: #9aa5b4; --rule: #2a323d; --accent: #6db8f2;
    --heat: #2a6fb0; --series-1: #5aaef0; --series-2: #f28b4b; --series-3: #35c3a0;
    --series-4: #de86c6; --series-5: #d6ac3a; --series-6: #a19df7;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: clamp(1.25rem, 4vw, 3.5rem) clamp(1rem, 3vw, 2rem); }
header { max-width: 46rem; margin-bottom: 2rem; }
h1 { margin: 0 0 .6rem; font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.15; letter-spacing: -.02em; }
h2, h3 { margin: 0 0 .15rem; font-size: 1.02rem; line-height: 1.35; }
.chapter { margin-top: 3rem; }
.chapter > h2 { margin-bottom: .4rem; font-size: 1.4rem; letter-spacing: -.01em; }
.chapter > p { max-width: 46rem; color: var(--quiet); }
.chapter > .grid { margin-top: 1rem; }
p { margin: 0 0 .6rem; }
header p { font-size: 1.06rem; color: var(--quiet); }
section { margin-top: 1.25rem; }
.grid { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.small { grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); }
.even { grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.even > .whole, .even > figure:has(img) { grid-column: 1 / -1; }
.card, figure {
  margin: 0; min-width: 0; padding: 1.15rem 1.25rem 1.25rem;
  background: var(--surface); border: 1px solid var(--rule); border-radius: 12px;
}
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 4px; border-radius: 4px; }
table { width: 100%; border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums; }
table caption { padding-bottom: .7rem; text-align: left; font-weight: 600; font-size: 1.02rem; }
th, td { padding: .5rem .9rem; text-align: left; border-top: 1px solid var(--rule); }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
td { min-width: 6.5rem; }
td.number { min-width: 0; }
thead th { border-top: 0; color: var(--quiet); font-weight: 500; font-size: .85rem; vertical-align: bottom; }
tbody th { font-weight: 600; white-space: nowrap; }
.number { text-align: right; }
summary { cursor: pointer; font-weight: 600; }
details[open] > summary { margin-bottom: .8rem; }
details caption { display: none; }
figure { display: flex; flex-direction: column; }
figcaption { margin-bottom: .9rem; }
figcaption p { margin: 0; color: var(--quiet); font-size: .92rem; line-height: 1.45; }
figure:has(svg.wide) { grid-column: 1 / -1; }
figure svg { display: block; min-width: 26rem; }
figure svg.wide { min-width: 58rem; }
svg .reach:hover { fill: currentColor !important; fill-opacity: .1; }
figure img, figure video { display: block; max-width: 100%; height: auto; border-radius: 6px; }
figure img { align-self: start; }
figure video { width: 100%; background: #000; }
@media print { body { background: none; } figure, .card { break-inside: avoid; } }
"""
