// Every head of every layer as a small map; the last column is the rollout to that layer.

const TYPE_NAMES = {
  next: "next token", previous: "previous token", self: "itself", separator: "[SEP]",
  classifier: "[CLS]", same_word: "same word", repeated: "repeated token",
};
const THUMBNAIL = 64; // pixels a side, at most
const typeName = (type) => TYPE_NAMES[type] ?? type.replaceAll("_", " ");
const COLUMNS = [...Array(HEADS).keys()].map(String).concat("rollout");
const thumbnails = byId("thumbnails");
thumbnails.style.setProperty("--columns", COLUMNS.length);
thumbnails.style.setProperty("--most", `${COLUMNS.length * 7}rem`);

thumbnails.append(make("span"));
for (const column of COLUMNS) {
  const className = column === "rollout" ? "label long" : "label";
  thumbnails.append(make("span", { className, textContent: column, "aria-hidden": "true" }));
}
for (let layer = 0; layer < LAYERS; layer++) {
  thumbnails.append(make("span", { className: "label", textContent: layer, "aria-hidden": "true" }));
  for (const head of COLUMNS) {
    const kind = head === "rollout" ? "" : page.heads[layer][head].kind;
    const name = headName(layer, head) + (kind && `, ${typeName(kind)}`);
    thumbnails.append(
      make(
        "button",
        { type: "button", role: "option", className: "thumbnail", title: name, "aria-label": name },
        make("canvas"),
      ),
    );
    if (kind) thumbnails.lastChild.append(make("i", { className: `type-${TYPES.indexOf(kind)}` }));
  }
}
const buttons = [...thumbnails.querySelectorAll("button")];

function headName(layer, head) {
  return head === "rollout" ? `Rollout to layer ${layer}` : `Layer ${layer}, head ${head}`;
}

function choose(place) {
  const row = Math.floor(place / COLUMNS.length);
  change({ layer: row, head: COLUMNS[place % COLUMNS.length] });
}

function chosenPlace() {
  return state.layer * COLUMNS.length + COLUMNS.indexOf(state.head);
}

thumbnails.addEventListener("click", (event) => {
  const place = buttons.indexOf(event.target.closest("button"));
  if (place >= 0) choose(place);
});
roam(thumbnails, choose, COLUMNS.length);

function drawThumbnails() {
  buttons.forEach((button, place) => {
    const layer = Math.floor(place / COLUMNS.length);
    const values = square(layer, COLUMNS[place % COLUMNS.length]);
    paint(button.firstChild, ...shrunk(values, units().length));
  });
}

// The largest of each block, so that a thin line of a long text still shows.
function shrunk(values, count) {
  const block = Math.ceil(count / THUMBNAIL);
  const side = Math.ceil(count / block);
  if (block === 1) return [values, count];
  const small = new Float32Array(side * side);
  for (let query = 0; query < count; query++) {
    const row = Math.floor(query / block) * side;
    for (let key = 0; key < count; key++) {
      const place = row + Math.floor(key / block);
      small[place] = Math.max(small[place], values[query * count + key]);
    }
  }
  return [small, side];
}

const found = new Set(page.heads.flat().map((head) => head.kind));
for (const type of TYPES.filter((type) => found.has(type))) {
  byId("legend").append(
    make("li", {}, make("i", { className: `type-${TYPES.indexOf(type)}` }), typeName(type)),
  );
}

watchers.push((changed) => {
  if (changed.includes("unit") || changed.includes("theme")) drawThumbnails();
  if (!changed.includes("layer") && !changed.includes("head")) return;
  buttons.forEach((button, place) => {
    button.setAttribute("aria-selected", place === chosenPlace());
    button.tabIndex = place === chosenPlace() ? 0 : -1;
  });
});
