// The chosen head as a large map, token by token, and what is read off it.

const map = byId("map");
const canvas = map.querySelector("canvas");
const readout = byId("readout");
const LEAST_LABEL = 13; // pixels that a label needs
const REACH = 6; // keys that the readout lists
let cell = 1;
let pointed = null; // { query, key }; a key of -1 stands for the whole row

function drawMap() {
  const all = units();
  paint(canvas, square(state.layer, state.head), all.length);
  const longest = Math.max(...all.map((unit) => shown(unit.text).length));
  const margin = Math.min(16 + 7 * longest, 130);
  const frame = getComputedStyle(byId("head"));
  const inside = byId("head").clientWidth - parseFloat(frame.paddingLeft) - parseFloat(frame.paddingRight);
  const room = Math.min(inside, 720) - margin;
  cell = Math.max(2, Math.min(40, Math.floor((10 * room) / all.length) / 10));
  map.style.setProperty("--margin", `${margin}px`);
  map.style.setProperty("--cell", `${cell}px`);
  map.style.setProperty("--side", `${cell * all.length}px`);
  for (const axis of [".keys", ".queries"]) label(map.querySelector(axis), all);
}

// Where cells are too small for all labels, only every other one, or third, is written.
function label(axis, all) {
  const step = Math.ceil(LEAST_LABEL / cell);
  axis.replaceChildren(
    ...all.map((unit, place) => {
      const one = word(unit.text, { className: tokenClass(unit), hidden: place % step !== 0 });
      one.style.setProperty("--place", place);
      return one;
    }),
  );
}

// Show a cell or a row, without drawing the map again.
function point(query, key = -1) {
  pointed = query < 0 ? null : { query, key };
  const row = map.querySelector(".row");
  const column = map.querySelector(".column");
  row.hidden = query < 0;
  column.hidden = key < 0;
  row.style.setProperty("--place", query);
  column.style.setProperty("--place", key);
  for (const [axis, place] of [[".queries", query], [".keys", key]]) {
    const parent = map.querySelector(axis);
    parent.querySelector(".pointed")?.classList.remove("pointed");
    parent.children[place]?.classList.add("pointed");
  }
  read(query, key);
  if (state.view === "lines") drawLines();
}

function read(query, key) {
  const all = units();
  const values = square(state.layer, state.head);
  if (query < 0) {
    readout.replaceChildren(make("span", { className: "soft", textContent: "Point at a cell, or choose a token." }));
    return;
  }
  const row = [...values.subarray(query * all.length, (query + 1) * all.length)];
  const said = make("p", {}, word(all[query].text, { className: tokenClass(all[query]) }));
  if (key >= 0) {
    const share = percent(row[key] / 255);
    said.append(" → ", word(all[key].text, { className: tokenClass(all[key]) }), " ", make("b", { textContent: share }));
  } else said.append(state.head === "rollout" ? " comes from" : " looks at");
  const best = row.map((_, place) => place).sort((a, b) => row[b] - row[a]).slice(0, REACH);
  readout.replaceChildren(said, bars(best.map((place) => ({ name: all[place].text, share: row[place] / 255, place }))));
}

// Names with bars; `share` is the bar's length, from 0 to 1.
function bars(rows) {
  const list = make("ol", { className: "bars" });
  for (const { name, share, said = percent(share), mark } of rows) {
    const bar = make("span", { className: "track" }, make("i"));
    bar.firstChild.style.setProperty("--share", share);
    if (mark !== undefined) {
      bar.append(make("u"));
      bar.lastChild.style.setProperty("--share", mark);
    }
    list.append(make("li", {}, word(name), bar, make("span", { className: "number", textContent: said })));
  }
  return list;
}

function describeHead() {
  byId("head-name").textContent = headName(state.layer, state.head);
  const facts = byId("head-facts");
  const scores = byId("scores");
  scores.hidden = state.head === "rollout";
  if (scores.hidden) {
    facts.textContent = "Where a token's vector at this layer has come from: the heads' mean and the residual, half and half, followed down through the layers (Abnar and Zuidema 2020).";
    return;
  }
  const head = page.heads[state.layer][state.head];
  const most = Math.log(TOKENS);
  facts.textContent = `Entropy ${number(head.entropy)} of at most ${number(most)} nats; looks ${number(head.distance)} tokens away in the mean. `;
  if (head.kind) {
    const type = TYPES.indexOf(head.kind);
    facts.append(make("span", { className: "kind" }, make("i", { className: `type-${type}` }), `${typeName(head.kind)} ${percent(head.scores[type])}`));
  }
  scores.lastElementChild.replaceChildren(
    make("p", { className: "soft", textContent: "How much of its attention falls on these; the tick is a head that looks at all tokens alike." }),
    bars(
      TYPES.flatMap((type, i) =>
        head.scores[i] === null ? [] : [{ name: typeName(type), share: head.scores[i], mark: page.types[type] }],
      ),
    ),
  );
}

function cellUnder(event) {
  const box = canvas.getBoundingClientRect();
  const count = units().length;
  const at = (place, start, size) => Math.floor(((place - start) / size) * count);
  const query = at(event.clientY, box.top, box.height);
  const key = at(event.clientX, box.left, box.width);
  return query >= 0 && key >= 0 && query < count && key < count ? [query, key] : null;
}

canvas.addEventListener("pointermove", (event) => {
  const under = cellUnder(event);
  if (under && (under[0] !== pointed?.query || under[1] !== pointed?.key)) point(...under);
});
canvas.addEventListener("pointerleave", () => point(chosenUnit()));
canvas.addEventListener("click", (event) => {
  const under = cellUnder(event);
  if (under) change({ token: units()[under[0]].places[0] });
});
map.addEventListener("keydown", (event) => {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const last = units().length - 1;
  const [down, right] = steps[event.key];
  const clamp = (value) => Math.min(Math.max(value, 0), last);
  const { query, key } = pointed ?? { query: 0, key: -1 };
  point(clamp(query + down), clamp(key + right));
});

watchers.push((changed) => {
  const redraws = ["layer", "head", "unit", "view", "theme", "size"];
  if (changed.some((name) => redraws.includes(name))) {
    map.hidden = state.view !== "map";
    if (!map.hidden) drawMap();
    describeHead();
    point(chosenUnit());
  } else if (changed.includes("token")) point(chosenUnit());
});
