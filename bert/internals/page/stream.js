// Layer by layer and token by token: what the masked-word head would say there, and the norms.

const stream = byId("stream");
const table = stream.querySelector("table");
const { lens, norms } = page;
const COLOUR_NAMES = { rank: "rank", divergence: "distance to the end", norm: "norm" };
const finite = (rows) => rows.flat().filter((value) => value !== null);
const mostNorm = Math.max(...finite(norms), 1e-30);
const mostDivergence = lens ? Math.max(...finite(lens.divergence), 1e-30) : 1;
const SHARES = {
  rank: (layer, place) => 1 - Math.log(lens.rank[layer][place]) / Math.log(Math.max(lens.vocabulary, 2)),
  divergence: (layer, place) => 1 - (lens.divergence[layer][place] ?? mostDivergence) / mostDivergence,
  norm: (layer, place) => (norms[layer][place] ?? 0) / mostNorm,
};
const HELP = {
  rank: "The stronger the colour, the higher the right token ranks.",
  divergence: "The stronger the colour, the closer to the last layer's distribution (KL divergence).",
  norm: "The stronger the colour, the longer the vector.",
};
const layerName = (layer) => (layer ? `layer ${layer - 1}` : "embeddings");

byId("stream-title").textContent = lens ? "Layer by layer: the lens" : "Layer by layer: the residual stream";
for (const colour of COLOURS) {
  byId("stream-colour").append(
    make("button", { type: "button", textContent: COLOUR_NAMES[colour], "data-set": "colour", "data-to": colour }),
  );
}
byId("stream-colour").hidden = COLOURS.length < 2;

table.append(
  make("thead", {}, make("tr", {}, make("td"), ...pieces.map((piece) =>
    make("th", { scope: "col" }, word(piece.text, { className: tokenClass(piece) })),
  ))),
);
const body = make("tbody");
for (let layer = LAYERS; layer >= 0; layer--) {
  const row = make("tr", {}, make("th", { scope: "row", textContent: layerName(layer) }));
  for (let place = 0; place < TOKENS; place++) {
    const text = lens ? lens.words[lens.guesses[layer][place][0]] : number(norms[layer][place]);
    row.append(make("td", {}, word(text)));
  }
  body.append(row);
}
table.append(body);
const cellAt = (layer, place) => body.rows[LAYERS - layer].cells[place + 1];

function colourStream() {
  const share = SHARES[state.colour];
  for (let layer = 0; layer <= LAYERS; layer++) {
    for (let place = 0; place < TOKENS; place++) {
      const { background, ink } = tint(0.85 * share(layer, place));
      Object.assign(cellAt(layer, place).style, { background, color: ink });
    }
  }
  const text = lens
    ? "Each layer's vectors, read by the whole masked-word head as if they were the last layer's. "
    : "How long each token's vector is at each layer; this model has no masked-word head to read it by. ";
  byId("stream-help").textContent = text + HELP[state.colour];
}

let looked = null;
function look(layer, place) {
  looked?.classList.remove("pointed");
  looked = cellAt(layer, place);
  looked.classList.add("pointed");
  const said = make("p", {}, make("b", { textContent: layerName(layer) }), " at ",
    word(pieces[place].text, { className: tokenClass(pieces[place]) }), ` (token ${place})`);
  const facts = [`norm ${number(norms[layer][place])}`];
  const detail = byId("cell");
  if (lens) {
    facts.unshift(`${number(lens.divergence[layer][place])} nats from the end`);
    said.append(": ", word(lens.truth[place], { className: "token" }),
      ` has rank ${lens.rank[layer][place].toLocaleString("en")} of ${lens.vocabulary.toLocaleString("en")}, `);
  } else said.append(": ");
  said.append(facts.join(", "));
  detail.replaceChildren(said);
  if (!lens) return;
  detail.append(bars(lens.guesses[layer][place].map((guess, i) => ({
    name: lens.words[guess], share: lens.probabilities[layer][place][i] ?? 0,
  }))));
}

function placeUnder(event) {
  const found = event.target.closest("tbody td");
  return found && { row: LAYERS - found.parentNode.sectionRowIndex, token: found.cellIndex - 1 };
}

stream.addEventListener("pointerover", (event) => {
  const under = placeUnder(event);
  if (under) look(under.row, under.token);
});
stream.addEventListener("pointerleave", () => look(state.row, Math.max(state.token, 0)));
stream.addEventListener("click", (event) => {
  const under = placeUnder(event);
  if (under) change(under);
});
stream.addEventListener("keydown", (event) => {
  const steps = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const [up, right] = steps[event.key];
  const row = Math.min(Math.max(state.row + up, 0), LAYERS);
  change({ row, token: Math.min(Math.max(Math.max(state.token, 0) + right, 0), TOKENS - 1) });
});

watchers.push((changed) => {
  if (changed.includes("colour") || changed.includes("theme")) colourStream();
  if (changed.includes("row") || changed.includes("token")) {
    look(state.row, Math.max(state.token, 0));
    const head = stream.querySelector("tbody th").offsetWidth;
    const edge = looked.offsetLeft - head;
    if (edge < stream.scrollLeft || looked.offsetLeft + looked.offsetWidth > stream.scrollLeft + stream.clientWidth) {
      stream.scrollLeft = edge - (stream.clientWidth - head) / 2;
    }
  }
});
