// Of the prediction at a [MASK]: the parts that its logit is the sum of, and what another text
// changes when its vectors are put into this one's run.

const SHOWN_PARTS = 20;
const SHOWN_PATCHES = 12;
const COMPONENT_NAMES = { layer: "Layer outputs", attention: "Attention outputs", feed_forward: "Feed-forward outputs" };
const signed = (value) => (value === null ? "not finite" : `${value > 0 ? "+" : "−"}${number(Math.abs(value), 3)}`);

// Bars that go to the right of the middle, or to its left.
function signedBars(rows) {
  const most = Math.max(...rows.map((row) => Math.abs(row.value ?? 0)), 1e-30);
  const list = make("ol", { className: "bars signed" });
  for (const { name, value } of rows) {
    const bar = make("span", { className: "track" }, make("i", { className: value < 0 ? "negative" : "" }));
    bar.firstChild.style.setProperty("--share", Math.abs(value ?? 0) / most / 2);
    list.append(make("li", {}, name, bar, make("span", { className: "number", textContent: signed(value) })));
  }
  return list;
}

if (page.attributed) {
  const { name, place, scores } = page.attributed;
  const section = byId("attributed");
  section.hidden = false;
  section.querySelector("p").append(
    "What each token's word vector, in the place of [MASK]'s, adds to the logit of “", word(name),
    place === null ? "”, " : `” at token ${place}, `, "as far as the gradient at this text tells (gradient × input).",
  );
  const most = Math.max(...finite([scores]).map(Math.abs), 1e-30);
  scores.forEach((value, at) => {
    const token = word(pieces[at].text, { className: value < 0 ? "token negative" : "token" });
    token.style.setProperty("--share", Math.abs(value ?? 0) / most);
    const said = make("small", { className: "soft", textContent: value === 0 ? "0" : signed(value && +value.toPrecision(2)) });
    section.lastElementChild.append(make("span", { className: "scored" }, token, said));
  });
}

if (page.parts) {
  const { place, token, logit, names, shares, remainder } = page.parts;
  const section = byId("parts");
  section.hidden = false;
  section.querySelector("p").append(
    `The logit of “`, word(token), `” at token ${place} is ${number(logit, 4)}. With each LayerNorm's divisor and the head's GELU held as they are in this run, it is the sum of what each part wrote at that token; what the shares leave is ${number(remainder, 2)}.`,
  );
  const rows = names.map((name, i) => ({ name: make("code", { textContent: name }), value: shares[i] }));
  const rest = rows.slice(SHOWN_PARTS);
  const sum = rest.reduce((total, row) => total + (row.value ?? 0), 0);
  section.lastElementChild.append(signedBars(rows.slice(0, SHOWN_PARTS)));
  if (rest.length) {
    const text = `The other ${rest.length} parts together: ${signed(sum)}.`;
    section.lastElementChild.append(make("p", { className: "soft", textContent: text }));
  }
}

if (page.patched) showPatched(page.patched);

function showPatched({ tokens, place, first, second, here, there, changes, heads }) {
  const section = byId("patched");
  section.hidden = false;
  section.querySelector("p").append(
    `The other text's vector is put into this one's run at one place, and the logit of “`, word(first),
    `” less that of “`, word(second), `” is read at token ${place}: ${number(here)} here, ${number(there)} there. The change says what that place carries.`,
  );
  byId("other-tokens").append(
    make("span", { className: "soft", textContent: "the other text" }),
    ...tokens.map((text, i) => {
      const isOther = text !== pieces[i].text;
      return word(text, { className: `token${isOther ? " differs" : pieces[i].special ? " special" : ""}` });
    }),
  );
  const ranked = Object.entries(changes).flatMap(([component, rows]) =>
    rows.flatMap((row, layer) => row.map((value, at) => ({ component, layer, at, value }))),
  ).sort((a, b) => Math.abs(b.value ?? 0) - Math.abs(a.value ?? 0));
  const target = section.querySelector(".patched");
  target.append(
    make("h3", { textContent: "The places that carry most" }),
    signedBars(ranked.slice(0, SHOWN_PATCHES).map(({ component, layer, at, value }) => ({
      name: make("span", {}, make("code", { textContent: `layers.${layer}.${component === "layer" ? "output" : `${component}.output`}` }), " ", word(pieces[at].text, { className: tokenClass(pieces[at]) }), make("span", { className: "soft", textContent: ` ${at}` })),
      value,
    }))),
  );
  for (const [component, rows] of Object.entries(changes)) {
    const names = pieces.map((piece) => word(piece.text, { className: tokenClass(piece) }));
    target.append(make("h3", { textContent: COMPONENT_NAMES[component] }), changeTable(rows, names));
  }
  target.append(
    make("h3", { textContent: "Heads, at all tokens at once" }),
    changeTable(heads, heads[0].map((_, head) => `head ${head}`)),
  );
}

// Changes by layer, the last one on top; the tint goes with a change's size within the table.
function changeTable(rows, names) {
  const most = Math.max(...finite(rows).map(Math.abs), 1e-30);
  const digits = Math.max(0, Math.min(2 - Math.floor(Math.log10(most)), 12));
  const text = (value) => (Number(value?.toFixed(digits)) === 0 ? "·" : signed(value && +value.toFixed(digits)));
  const body = make("tbody");
  rows.forEach((row, layer) => {
    const line = make("tr", {}, make("th", { scope: "row", textContent: layerName(layer + 1) }));
    for (const value of row) {
      const cell = make("td", { textContent: text(value), className: value < 0 ? "negative" : "" });
      cell.style.setProperty("--share", Math.abs(value ?? 0) / most);
      line.append(cell);
    }
    body.prepend(line);
  });
  const head = make("tr", {}, make("td"), ...names.map((name) => make("th", { scope: "col" }, name)));
  return make("div", { className: "changes", tabIndex: 0 }, make("table", {}, make("thead", {}, head), body));
}
