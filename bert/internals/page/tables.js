// What does not change: the answer, where the numbers come from, the model.

byId("name").append(word(page.name));
document.title = `${shown(page.name)} · bert inspect`;
byId("summary").textContent = `${LAYERS} layers of ${HEADS} heads, ${TOKENS} tokens, computed by ${page.backend}.`;

if (page.answer) {
  const { title, labels, rows, kind } = page.answer;
  const section = byId("answer");
  section.hidden = false;
  byId("answer-title").textContent = title;
  section.lastElementChild.append(
    kind === "tokens" ? answerTable(labels, rows)
      : kind === "number" ? make("p", { textContent: number(rows[0][0]) })
        : bars(labels.map((name, i) => ({ name, share: rows[0][i] ?? 0 })).sort((a, b) => b.share - a.share)),
  );
}

function answerTable(labels, rows) {
  const head = make("tr", {}, make("th", { scope: "col", textContent: "Token" }),
    ...labels.map((name) => make("th", { scope: "col", className: "number" }, word(name))));
  const lines = rows.map((row, place) => make("tr", {},
    make("th", { scope: "row" }, word(pieces[place].text, { className: tokenClass(pieces[place]) })),
    ...row.map((share) => make("td", { className: "number", textContent: percent(share ?? 0) }))));
  const whole = make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines));
  return make("div", { className: "scroll" }, whole);
}

byId("origin-help").textContent = `The model ran on ${page.backend}. A tensor that a fused kernel never makes was computed beside, by REFERENCE's formula from what the kernel was given. How far each stands from a run of REFERENCE in float64:`;
for (const origin of page.origins) {
  byId("origins").tBodies[0].append(
    make("tr", {},
      make("th", { scope: "row" }, make("code", { textContent: origin.name })),
      make("td", { textContent: origin.meaning }),
      make("td", { textContent: origin.made_by }),
      make("td", { className: "number", textContent: number(origin.difference, 2) }),
      make("td", { className: "number", textContent: number(origin.largest, 2) })),
  );
}
for (const [name, value] of Object.entries(page.facts)) {
  byId("facts").append(
    make("div", {}, make("dt", { textContent: name }), make("dd", {}, word(value))),
  );
}
byId("card").hidden = !page.card;
byId("card").lastElementChild.textContent = page.card;
