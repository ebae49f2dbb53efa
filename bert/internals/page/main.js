// Start: draw what the address names, then follow clicks, keys, the address and the theme.

const everything = [...Object.keys(state), "theme", "size"];

function drawAll() {
  mixColours();
  paint(document.querySelector("#scale canvas"), Float32Array.from({ length: 256 }, (_, i) => (i / 255) ** 2 * 255), 1);
  for (const watcher of watchers) watcher(everything);
}

const switches = [...document.querySelectorAll("button[data-set]")];
for (const button of switches) {
  button.addEventListener("click", () => change({ [button.dataset.set]: button.dataset.to }));
}
watchers.push(() => {
  for (const button of switches) {
    button.setAttribute("aria-pressed", state[button.dataset.set] === button.dataset.to);
  }
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "m") change({ view: state.view === "map" ? "lines" : "map" });
  if (event.key === "w") change({ unit: state.unit === "words" ? "pieces" : "words" });
  const step = { "[": -1, "]": 1 }[event.key] ?? 0;
  if (step && chosenPlace() + step in buttons) choose(chosenPlace() + step);
});

window.addEventListener("hashchange", () => {
  readAddress();
  for (const watcher of watchers) watcher(everything);
});
isDark.addEventListener("change", drawAll);
let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === width) return;
  width = window.innerWidth;
  for (const watcher of watchers) watcher(["size"]);
});

readAddress();
drawAll();
document.documentElement.dataset.ready = "true";
