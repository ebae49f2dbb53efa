// What the page shows, what is looked at now, and the colours.

const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("payload").textContent);
const decode = ({ base64 }) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
const attention = decode(page.attention);
const rollout = decode(page.rollout);
const [LAYERS, HEADS, TOKENS] = page.attention.shape;
const TYPES = Object.keys(page.types);

// Pieces, and the words that they make; `places` are the pieces.
const pieces = page.tokens.map((token, place) => ({ ...token, places: [place] }));
const words = [];
for (const piece of pieces) {
  const word = words[piece.word];
  if (word === undefined) words.push({ ...piece });
  else {
    word.text += piece.text.replace(/^##/, "");
    word.places = [...word.places, ...piece.places];
  }
}

// --- What is looked at now; the address says the same -------------------------------------------

const firstMask = pieces.findIndex((piece) => piece.text === "[MASK]");
const state = {
  layer: 0,
  head: "0", // or "rollout"
  token: firstMask < 0 ? Math.min(1, TOKENS - 1) : firstMask, // -1: none
  view: "map",
  unit: "pieces",
  colour: "",
  row: LAYERS, // of the stream: 0 is the embeddings
};
const ALLOWED = {
  layer: (text) => whole(text, LAYERS),
  head: (text) => (text === "rollout" ? text : String(whole(text, HEADS))),
  token: (text) => whole(text, TOKENS, -1, START.token),
  view: (text) => oneOf(text, ["map", "lines"]),
  unit: (text) => oneOf(text, ["pieces", "words"]),
  colour: (text) => oneOf(text, COLOURS),
  row: (text) => whole(text, LAYERS + 1, 0, LAYERS),
};
const COLOURS = page.lens ? ["rank", "divergence", "norm"] : ["norm"];
state.colour = COLOURS[0];
const START = { ...state };
const watchers = [];

function whole(text, end, start = 0, otherwise = start) {
  return /^-?\d+$/.test(text) && text >= start && text < end ? Number(text) : otherwise;
}

function oneOf(text, values) {
  return values.includes(text) ? text : values[0];
}

function change(part) {
  Object.assign(state, part);
  const said = Object.entries(state).filter(
    ([name, value]) => name === "layer" || name === "head" || value !== START[name],
  );
  history.replaceState(null, "", `#${new URLSearchParams(said)}`);
  for (const watcher of watchers) watcher(Object.keys(part));
}

function readAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(ALLOWED)) {
    state[name] = said.has(name) ? ALLOWED[name](said.get(name)) : START[name];
  }
}

// --- A head's attention: [rows, columns] in 255ths, by pieces or by words -----------------------

const merged = new Map();

function square(layer, head, unit = state.unit) {
  const size = TOKENS * TOKENS;
  const start = head === "rollout" ? layer * size : (layer * HEADS + Number(head)) * size;
  const values = (head === "rollout" ? rollout : attention).subarray(start, start + size);
  if (unit === "pieces") return values;
  const name = `${layer} ${head}`;
  if (!merged.has(name)) merged.set(name, byWords(values));
  return merged.get(name);
}

// The sum over a word's pieces as keys, the mean over its pieces as queries.
function byWords(values) {
  const sums = new Float32Array(words.length * words.length);
  for (let query = 0; query < TOKENS; query++) {
    const row = pieces[query].word * words.length;
    const share = 1 / words[pieces[query].word].places.length;
    for (let key = 0; key < TOKENS; key++) {
      sums[row + pieces[key].word] += share * values[query * TOKENS + key];
    }
  }
  return sums;
}

const units = () => (state.unit === "words" ? words : pieces);
const chosenUnit = () =>
  state.token >= 0 && state.unit === "words" ? pieces[state.token].word : state.token;

// --- Colours: by the root of a value, so that small ones show -----------------------------------

const LIGHT = ["#fdfcf9", "#fbdcae", "#f08a62", "#b8386b", "#571d6d", "#190b34"];
const DARK = ["#191b20", "#40246b", "#96306f", "#e2625c", "#fab87a", "#fff6d8"];
const isDark = matchMedia("(prefers-color-scheme: dark)");
let ramp = [];
let pixels = new Uint32Array(256);

function mixColours() {
  const stops = (isDark.matches ? DARK : LIGHT).map((text) =>
    [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)),
  );
  ramp = Array.from({ length: 256 }, (_, index) => {
    const at = Math.sqrt(index / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return stops[low].map((from, i) => Math.round(from + (stops[low + 1][i] - from) * (at - low)));
  });
  pixels = Uint32Array.from(ramp, ([r, g, b]) => (0xff000000 | (b << 16) | (g << 8) | r) >>> 0);
}

// The colour of a share from 0 to 1 and the ink that is read on it.
function tint(share) {
  const [r, g, b] = ramp[Math.round(255 * Math.min(Math.max(share, 0), 1) ** 2)];
  const ink = 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#1b1c20" : "#fbfaf6";
  return { background: `rgb(${r} ${g} ${b})`, ink };
}

function paint(canvas, values, rows) {
  const columns = values.length / rows;
  canvas.width = columns;
  canvas.height = rows;
  const image = new ImageData(columns, rows);
  const target = new Uint32Array(image.data.buffer);
  for (let i = 0; i < values.length; i++) target[i] = pixels[Math.min(Math.round(values[i]), 255)];
  canvas.getContext("2d").putImageData(image, 0, 0);
}

// --- Elements and texts --------------------------------------------------------------------------

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// What can't be seen, or turns the words around it, is named.
const HIDDEN = /[\p{Cc}\p{Zl}\p{Zp}\u202a-\u202e\u2066-\u2069]/gu;
const shown = (text) =>
  text.replace(HIDDEN, (c) => `⟨U+${c.codePointAt().toString(16).toUpperCase().padStart(4, "0")}⟩`);
const word = (text, properties = {}) => make("bdi", { textContent: shown(text), ...properties });
const percent = (share) => (share >= 0.9995 ? "100%" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`);
const number = (value, digits = 3) => {
  if (value === null) return "not finite";
  const isTiny = value !== 0 && Math.abs(value) < 1e-3;
  const said = isTiny ? value.toExponential(digits - 1) : String(+value.toPrecision(digits));
  return said.replaceAll("-", "−");
};
const tokenClass = (unit) =>
  unit.special ? "token special" : unit.segment ? "token second" : "token";

// Arrow keys go from one of a list's elements to another; `across` is the number in a row.
function roam(list, choose, across) {
  list.addEventListener("keydown", (event) => {
    const all = [...list.querySelectorAll("[role=option]")];
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across };
    const at = all.indexOf(document.activeElement);
    const ends = { Home: -at, End: all.length - 1 - at };
    const next = at + (steps[event.key] ?? ends[event.key] ?? NaN);
    if (at < 0 || !(next in all)) return;
    event.preventDefault();
    choose(next);
    all[next].focus();
  });
}
