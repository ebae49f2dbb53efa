"""The page in headless Chromium, offline: what it draws, reads out, and answers to keys."""

import base64
import shutil
import statistics
from dataclasses import replace

import numpy as np
import pytest
import torch

from bert.internals.attention import merge_words, rollout, word_groups
from bert.internals.page.render import render
from tests.bert.internals.page.looked_at import encoded, model, payload
from tests.bert.internals.page.test_page import HOSTILE, hostile

pytestmark = pytest.mark.browser
LIGHT = ["#fdfcf9", "#fbdcae", "#f08a62", "#b8386b", "#571d6d", "#190b34"]
DARK = ["#191b20", "#40246b", "#96306f", "#e2625c", "#fab87a", "#fff6d8"]


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is the extra browser")
    path = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if path is None:
        pytest.skip("needs Chromium: none on the path")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


class Opened:
    """A page, and all that it said or asked for."""

    def __init__(self, browser, path, **options):
        self.context = browser.new_context(
            offline=True, viewport={"width": 1280, "height": 1500}, **options
        )
        self.page, self.path, self.said, self.asked = self.context.new_page(), path, [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.go("")

    def go(self, address):
        self.page.goto("about:blank")
        self.page.goto(f"file://{self.path}{address}")
        self.page.wait_for_selector("html[data-ready]", timeout=60_000)

    def text(self, selector):
        return self.page.locator(selector).inner_text()

    def pixels(self, selector):
        """A canvas as [rows, columns, 3]."""
        size, content = self.page.evaluate(
            """(selector) => {
              const canvas = document.querySelector(selector);
              const { width, height } = canvas;
              const data = canvas.getContext("2d").getImageData(0, 0, width, height).data;
              return [[height, width, 4], btoa(String.fromCharCode(...data))];
            }""",
            selector,
        )
        return np.frombuffer(base64.b64decode(content), np.uint8).reshape(size)[:, :, :3]

    def said_share(self):
        said = self.text("#readout b")
        return float(said.removesuffix("%")) / 100

    def query(self):
        return dict(
            part.split("=") for part in self.page.evaluate("location.hash.slice(1)").split("&")
        )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(render(payload()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def opened(browser, path):
    one = Opened(browser, path)
    yield one
    assert one.said == [] and {url.split("#")[0] for url in one.asked} <= {
        f"file://{path}",
        "about:blank",
    }
    one.context.close()


@pytest.fixture(scope="module")
def maps():
    ids, types = torch.tensor([encoded().ids]), torch.tensor([encoded().token_type_ids])
    with torch.no_grad():
        return torch.cat(
            model().bert(ids, None, types, output_attentions=True).attentions
        ).double()


def colours(values, stops):
    """What a value from 0 to 1 should look like: stops by the square root, told again."""
    table = np.array([[int(stop[at : at + 2], 16) for at in (1, 3, 5)] for stop in stops])
    place = np.sqrt(np.round(values * 255) / 255) * (len(stops) - 1)
    return np.stack([np.interp(place, range(len(stops)), table[:, i]) for i in range(3)], -1)


def test_the_map_draws_the_models_attention(opened, maps):
    for layer, head in ((0, 0), (2, 3)):
        opened.go(f"#layer={layer}&head={head}")
        expected = colours(maps[layer, head].numpy(), LIGHT)
        steep = colours(np.clip(maps[layer, head].numpy() + 1 / 255, 0, 1), LIGHT)
        allowed = 1 + abs(steep - expected)  # a value at the edge of two steps may be the next
        assert (abs(opened.pixels("#map canvas") - expected) <= allowed).all()
    rolled = rollout(maps)[1].numpy()
    opened.go("#layer=1&head=rollout")
    assert abs(opened.pixels("#map canvas") - colours(rolled, LIGHT)).max() <= 12
    assert opened.text("#head-name") == "Rollout to layer 1"


def test_a_hover_reads_the_value_out(opened, maps):
    opened.go("#layer=1&head=2")
    box = opened.page.locator("#map canvas").bounding_box()
    cell = box["width"] / len(encoded())
    for query, key in ((0, 0), (3, 5), (len(encoded()) - 1, 2)):
        opened.page.mouse.move(box["x"] + (key + 0.5) * cell, box["y"] + (query + 0.5) * cell)
        assert opened.said_share() == pytest.approx(
            float(maps[1, 2, query, key]), abs=1 / 255 + 0.005
        )
        tokens = opened.page.locator("#readout p bdi").all_inner_texts()
        assert tokens == [encoded().tokens[query], encoded().tokens[key]]


def test_words_are_merged_from_their_pieces(opened, maps):
    opened.go("#layer=2&head=1&unit=words&token=-1")
    groups = word_groups(encoded().tokens)
    expected = merge_words(maps, groups)[2, 1]
    assert opened.pixels("#map canvas").shape[:2] == expected.shape
    opened.page.locator("#map").focus()
    for query in range(1, 4):
        opened.page.keyboard.press("ArrowDown")
        for key in range(3):
            said = float(expected[query, key])
            assert opened.said_share() == pytest.approx(said, abs=0.005 + 4 / 255)
            opened.page.keyboard.press("ArrowRight")
        for _ in range(3):
            opened.page.keyboard.press("ArrowLeft")


def test_the_stream_reads_the_lens_out(opened):
    lens = payload().lens
    opened.go("#layer=0&head=0&row=1&token=3")
    said = opened.text("#cell")
    assert said.startswith("layer 0 at ") and f"has rank {lens.rank[1][3]} of" in said
    guesses = opened.page.locator("#cell .bars bdi").all_inner_texts()
    assert guesses == [lens.words[i] for i in lens.guesses[1][3]]
    shown = opened.page.locator("#stream tbody td bdi").all_inner_texts()
    best = [lens.words[row[0]] for layer in lens.guesses[::-1] for row in layer]
    assert shown == best


def test_keys_move_and_the_address_follows(opened):
    opened.go("")
    opened.page.locator("#thumbnails [tabindex='0']").focus()
    for key, place in (
        ("ArrowRight", ("0", "1")), ("ArrowDown", ("1", "1")), ("]", ("1", "2")),
        ("End", ("2", "rollout")), ("[", ("2", "3")),
    ):  # fmt: skip
        opened.page.keyboard.press(key)
        query = opened.query()
        assert (query["layer"], query["head"]) == place
    assert opened.page.locator("#thumbnails [aria-selected=true]").count() == 1
    opened.page.keyboard.press("m")
    assert opened.query()["view"] == "lines" and opened.page.locator("#lines").is_visible()
    assert opened.page.locator("#map").is_hidden()
    opened.page.keyboard.press("w")
    assert opened.query()["unit"] == "words"
    opened.page.locator("#tokens [tabindex='0']").focus()
    opened.page.keyboard.press("ArrowRight")
    following = encoded().tokens.index("[MASK]") + 1  # the first [MASK] is chosen at the start
    assert opened.query()["token"] == str(following)
    assert opened.text("#tokens [aria-selected=true]") == encoded().tokens[following]
    opened.page.locator("#stream").focus()
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("ArrowRight")
    assert (opened.query()["row"], opened.query()["token"]) == ("2", str(following + 1))


def test_everything_is_reached_by_tab(opened):
    opened.go("")
    reached = set()
    for _ in range(40):
        opened.page.keyboard.press("Tab")
        reached.add(opened.page.evaluate("document.activeElement.closest('[id]')?.id"))
    assert {
        "tokens",
        "thumbnails",
        "map",
        "scores",
        "stream",
        "stream-colour",
        "patched",
        "card",
    } <= reached


def test_an_address_leads_back_and_nonsense_does_no_harm(opened):
    address = "#layer=2&head=3&token=4&view=lines&unit=words&colour=norm&row=1"
    opened.go(address)
    assert opened.text("#head-name") == "Layer 2, head 3"
    assert opened.page.locator("button[aria-pressed=true]").all_inner_texts() == [
        "lines",
        "words",
        "norm",
    ]
    opened.page.evaluate("location.hash = '#layer=1&head=0'")
    opened.page.wait_for_function(
        "document.getElementById('head-name').textContent == 'Layer 1, head 0'"
    )
    opened.go("#layer=99&head=-1&token=x&view=<b>&unit=&colour=__proto__&row=1e3&more=1")
    assert opened.text("#head-name") == "Layer 0, head 0"


@pytest.mark.slow
def test_a_hover_is_answered_within_50_milliseconds(opened):
    """Of the page's own work, laid out at once; the median of many."""
    times = opened.page.evaluate(
        """() => {
          const canvas = document.querySelector("#map canvas");
          const box = canvas.getBoundingClientRect();
          return Array.from({ length: 30 }, (_, i) => {
            const start = performance.now();
            canvas.dispatchEvent(new PointerEvent("pointermove", { bubbles: true,
              clientX: box.left + (box.width * ((i * 7) % 30 + 0.5)) / 30,
              clientY: box.top + (box.height * ((i * 11) % 30 + 0.5)) / 30 }));
            document.body.getBoundingClientRect();
            return performance.now() - start;
          });
        }"""
    )
    assert 0 < statistics.median(times) < 50


def test_dark_mode_is_drawn_anew(opened, maps):
    opened.go("#layer=0&head=1")
    light = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    opened.page.emulate_media(color_scheme="dark")
    # The page hears of it, and draws, with the next frame.
    opened.page.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
    dark = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    drawn = opened.pixels("#map canvas")
    opened.page.emulate_media(color_scheme="light")
    assert (
        sum(map(int, light[4:-1].split(","))) > 700 and sum(map(int, dark[4:-1].split(","))) < 90
    )
    values = maps[0, 1].numpy()
    steep = abs(colours(np.clip(values + 1 / 255, 0, 1), DARK) - colours(values, DARK))
    assert (abs(drawn - colours(values, DARK)) <= 1 + steep).all()


def test_a_narrow_window_needs_no_sideways_scrolling(opened):
    opened.go("")
    opened.page.set_viewport_size({"width": 390, "height": 800})
    wide = opened.page.evaluate("document.documentElement.scrollWidth")
    opened.page.set_viewport_size({"width": 1280, "height": 1500})
    assert wide <= 390


def test_hostile_tokens_harm_nothing(browser, tmp_path):
    path = tmp_path / "hostile.html"
    texts = [HOSTILE[i % len(HOSTILE)] for i in range(len(encoded()))]
    mixed = hostile(HOSTILE[0])
    tokens = [replace(token, text=text) for token, text in zip(mixed.tokens, texts, strict=True)]
    path.write_text(render(replace(mixed, tokens=tokens)), encoding="utf-8")
    one = Opened(browser, path)
    assert one.said == [] and one.page.evaluate("typeof hacked") == "undefined"
    assert one.page.locator("img, b:not(#readout b, #cell b)").count() == 0
    assert one.text("h1") == HOSTILE[0]
    shown = one.page.locator("#tokens bdi").all_inner_texts()
    assert shown[0] == HOSTILE[0] and len(shown) == len(texts)
    assert not any(c in text for text in shown for c in "\u2028\u202e\x00")
    one.context.close()
