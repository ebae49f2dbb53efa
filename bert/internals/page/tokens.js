// The text as a row of tokens; the chosen one is shown by all that stands below.

const strip = byId("tokens");
pieces.forEach((piece, place) => {
  const goesOn = place > 0 && pieces[place - 1].word === piece.word;
  const name = `${shown(piece.text)}, token ${place}`;
  strip.append(
    make(
      "button",
      { type: "button", role: "option", className: tokenClass(piece), title: name, "aria-label": name },
      word(goesOn ? piece.text.replace(/^##/, "") : piece.text),
    ),
  );
  strip.lastChild.classList.toggle("goes-on", goesOn);
});
strip.addEventListener("click", (event) => {
  const place = [...strip.children].indexOf(event.target.closest("button"));
  if (place >= 0) change({ token: place === state.token ? -1 : place });
});
roam(strip, (place) => change({ token: place }), TOKENS);

watchers.push((changed) => {
  if (!changed.includes("token")) return;
  [...strip.children].forEach((button, place) => {
    button.setAttribute("aria-selected", place === state.token);
    button.tabIndex = place === Math.max(state.token, 0) ? 0 : -1;
  });
});
