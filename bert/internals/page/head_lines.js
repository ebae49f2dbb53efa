// The chosen head as lines from the tokens that look to those that are looked at.

const lines = byId("lines");
const ROW = 26; // pixels
const ACROSS = 220;
const FAINTEST = 0.03; // a share of attention; of a pointed token all lines from .01 on are drawn
const ASIDE = 0.18; // how strong the others' lines are beside those of a pointed token

for (const side of [".from", ".to"]) {
  const list = lines.querySelector(side);
  const under = (event) => [...list.children].indexOf(event.target.closest("li"));
  list.addEventListener("pointerover", (event) => {
    if (side === ".from" && under(event) >= 0) point(under(event));
  });
  list.addEventListener("pointerleave", () => point(chosenUnit()));
  list.addEventListener("click", (event) => {
    if (under(event) >= 0) change({ token: units()[under(event)].places[0] });
  });
}
lines.addEventListener("keydown", (event) => {
  const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  point(Math.min(Math.max((pointed?.query ?? -1) + step, 0), units().length - 1));
});

function layOutLines() {
  for (const side of [".from", ".to"]) {
    lines.querySelector(side).replaceChildren(
      ...units().map((unit) => make("li", {}, word(unit.text, { className: tokenClass(unit) }))),
    );
  }
}

function drawLines() {
  const count = units().length;
  const sheet = lines.querySelector("canvas");
  const scale = Math.min(window.devicePixelRatio || 1, 2);
  sheet.width = ACROSS * scale;
  sheet.height = ROW * count * scale;
  sheet.style.width = `${ACROSS}px`;
  sheet.style.height = `${ROW * count}px`;
  const pen = sheet.getContext("2d");
  pen.scale(scale, scale);
  pen.strokeStyle = getComputedStyle(lines).color;
  const values = square(state.layer, state.head);
  const from = pointed?.query ?? -1;
  for (let query = 0; query < count; query++) {
    const strength = from < 0 || query === from ? 1 : ASIDE;
    for (let key = 0; key < count; key++) {
      const share = values[query * count + key] / 255;
      if (share >= (query === from ? 0.01 : FAINTEST)) drawLine(pen, query, key, share, strength);
    }
  }
  for (const [side, place] of [[".from", from], [".to", -1]]) {
    [...lines.querySelector(side).children].forEach((item, i) => item.classList.toggle("pointed", i === place));
  }
}

function drawLine(pen, query, key, share, strength) {
  const [start, end] = [query, key].map((place) => ROW * (place + 0.5));
  pen.globalAlpha = strength * Math.min(0.12 + 0.88 * share, 1);
  pen.lineWidth = 0.75 + 3.5 * share;
  pen.beginPath();
  pen.moveTo(0, start);
  pen.bezierCurveTo(ACROSS / 2, start, ACROSS / 2, end, ACROSS, end);
  pen.stroke();
}

watchers.push((changed) => {
  lines.hidden = state.view !== "lines";
  if (lines.hidden) return;
  if (changed.includes("unit") || changed.includes("view")) layOutLines();
  if (["layer", "head", "unit", "view", "theme"].some((name) => changed.includes(name))) drawLines();
});
