"""The frame of mistakes.html: its style, its script, and the page that they stand in."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2026; --soft: #626a75; --paper: #fcfcfa;
  --line: #e2e4e8; --bar: #c0392b; --gold: #24704a; --said: #a93226; --card: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa3ae; --paper: #16181c;
  --line: #2e333b; --bar: #e0705f; --gold: #74c69d; --said: #f0907f; --card: #1d2026; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; color: var(--ink);
  background: var(--paper); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 .35rem; overflow-wrap: anywhere; }
.soft, caption { color: var(--soft); }
#filter { display: flex; flex-wrap: wrap; gap: .6rem 1.25rem; align-items: center;
  position: sticky; top: 0; z-index: 1; background: var(--paper); padding: .75rem 0;
  border-bottom: 1px solid var(--line); }
#filter[hidden], tr[hidden] { display: none; }
.pairs { display: flex; flex-wrap: wrap; gap: .4rem; flex-basis: 100%; }
select, button { font: inherit; color: inherit; background: var(--card); padding: .2rem .6rem;
  border: 1px solid var(--line); border-radius: .4rem; max-width: 18rem; }
button { cursor: pointer; font-size: .88rem; }
button:hover { border-color: var(--soft); }
:focus-visible { outline: 2px solid #4c8bf5; outline-offset: 2px; }
output { margin-left: auto; color: var(--soft); font-variant-numeric: tabular-nums; }
table { width: 100%; border-collapse: collapse; }
caption { text-align: left; padding: .9rem 0 .2rem; font-size: .88rem; }
th { text-align: left; font-size: .8rem; font-weight: 600; color: var(--soft);
  padding: .5rem 1rem .35rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td { vertical-align: top; padding: .8rem 1rem .8rem 0; border-bottom: 1px solid var(--line); }
.number { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.gold, td.said { font-weight: 600; overflow-wrap: break-word; max-width: 12rem; }
.gold { color: var(--gold); } .said { color: var(--said); }
.text { width: 60%; }
.text div { white-space: pre-wrap; overflow-wrap: anywhere; }
.text div + div { margin-top: .5rem; padding-top: .5rem; border-top: 1px dashed var(--line); }
.text .empty { color: var(--soft); font-style: italic; }
mark { padding: 0 .15em; background: none; border-bottom: 2px solid; font-weight: 600; }
mark.both { color: inherit; border-bottom: 4px double; }
mark small { font-size: .68rem; letter-spacing: .03em; }
summary { cursor: pointer; color: var(--soft); font-size: .88rem; }
svg { display: block; margin-top: .3rem; }
svg .all { fill: var(--line); } svg .part { fill: var(--bar); }
@media (max-width: 44rem) {
  thead { display: none; } table, tbody, caption { display: block; }
  #filter { position: static; }
  tbody tr { display: grid; grid-template-columns: 1fr 1fr; gap: .35rem 1rem; padding: .9rem 0;
    border-bottom: 1px solid var(--line); }
  td { padding: 0; border: 0; } .text { grid-column: 1 / -1; width: auto; order: -1; }
  td::before { content: attr(data-title); display: block; font-size: .75rem; font-weight: 400;
    color: var(--soft); } .text::before { content: none; } }
"""

SCRIPT = """
const [gold, predicted] = document.querySelectorAll("select");
const rows = document.querySelectorAll("tbody tr");
const differs = (select, value) => select.value !== "" && select.value !== value;
function filter() {
  let shown = 0;
  for (const row of rows) {
    row.hidden = differs(gold, row.dataset.gold) || differs(predicted, row.dataset.predicted);
    shown += !row.hidden;
  }
  document.querySelector("output").textContent = shown + " shown";
}
function choose(first, second) { gold.value = first; predicted.value = second; filter(); }
gold.addEventListener("change", filter);
predicted.addEventListener("change", filter);
for (const button of document.querySelectorAll("button"))
  button.addEventListener("click", () => choose(button.dataset.gold, button.dataset.predicted));
document.getElementById("filter").hidden = false;
filter();
"""

FILTER = """<div id="filter" role="search" hidden>
<label>true <select><option value="">any</option>{options}</select></label>
<label>predicted <select><option value="">any</option>{options}</select></label>
<output role="status">{shown} shown</output>
<div class="pairs">{pairs}<button type="button" data-gold="" data-predicted="">all</button></div>
</div>"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src '{style_hash}'; \
script-src '{script_hash}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Mistakes: {name}</title>
<style>{style}</style>
</head>
<body>
<h1>Mistakes: <bdi>{name}</bdi></h1>
<p class="soft">{summary}</p>
{filter}
<table>
<caption>Sorted by {sorted_by}.</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
{script}
</body>
</html>
"""
