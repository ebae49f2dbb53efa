"""The page of mistakes: what is on it, and that no text on it is anything but text."""

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

import finetune.evaluation.mistakes as mistakes
from finetune.evaluation.mistakes import worst_mistakes, write_mistakes
from finetune.evaluation.records import write_predictions
from tests.finetune.evaluation.made import certain, drawn

MARKUP = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)>&amp; \"'"
NEEDS_CHROMIUM = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="needs the browser chromium: none here"
)


class Page(HTMLParser):
    """A page as a browser's parser sees it: its tags, and the cells of its table."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.open, self.raw = [], [], [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag == "tr":
            self.rows.append({"about": dict(attrs)})
        if tag == "td":
            self.rows[-1][dict(attrs)["data-title"]] = ""
        if tag in ("meta", "br", "img", "rect"):
            self.open.pop()

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open:
            row = self.rows[-1]
            row[list(row)[-1]] += data
        elif self.open and self.open[-1] in ("script", "style"):
            self.raw[self.open[-1]] = self.raw.get(self.open[-1], "") + data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def written(tmp_path):
    """Write a page; give it as text, and as a browser's parser sees it."""

    def write(predictions, texts, name="some.tsv", pairs=None):
        rows = [
            {"line": i + 2, "text_a": text, **({} if pairs is None else {"text_b": pairs[i]})}
            for i, text in enumerate(texts)
        ]
        write_predictions(tmp_path / "predictions.jsonl", predictions, rows)
        path = tmp_path / "mistakes.html"
        write_mistakes(path, tmp_path / "predictions.jsonl", predictions, name)
        return path, Page(path.read_text(encoding="utf-8"))

    return write


def test_the_worst_come_first_and_only_mistakes(written):
    made = drawn(60, seed=2)
    _, page = written(made, [f"text {i}" for i in range(60)])
    shown = [int(row["Text"].split()[1]) for row in page.rows[1:]]
    assert shown == worst_mistakes(made).tolist()
    assert set(shown) == set(np.flatnonzero(~made.correct).tolist())
    losses = [float(row["Loss"]) for row in page.rows[1:]]
    assert losses == sorted(losses, reverse=True)
    first = worst_mistakes(made)[0]
    row = page.rows[1]
    assert row["True"] == made.class_names[made.labels[first]]
    assert row["Predicted"] == made.class_names[made.predicted[first]]
    assert row["Confidence"] == f"{made.confidences[first]:.1%}"
    assert row["Row"] == f"{first + 1}line {first + 2}"
    assert row["about"] == {
        "data-gold": str(made.labels[first]), "data-predicted": str(made.predicted[first])
    }  # fmt: skip


def test_no_more_than_a_page_holds_and_it_says_so(written, monkeypatch):
    monkeypatch.setattr(mistakes, "SHOWN", 5)
    made = drawn(60, seed=2)
    path, page = written(made, ["a"] * 60)
    wrong = int((~made.correct).sum())
    assert len(page.rows) == 6
    said = f"{wrong} of 60 rows are mistaken ({wrong / 60:.1%}). Shown are the 5 worst."
    assert said in path.read_text()


def test_a_model_without_a_mistake_has_a_page_too(written):
    path, page = written(certain([0, 1], [0, 1]), ["a", "b"])
    assert len(page.rows) == 1 and "0 of 2 rows are mistaken (0.0%)." in path.read_text()


def test_markup_is_text_wherever_it_stands(written):
    names = (MARKUP, "</title></td>", "good")
    path, page = written(certain([0, 1], [1, 0], names), [MARKUP, "a"], MARKUP, [MARKUP, ""])
    assert [row["Text"] for row in page.rows[1:]] == [MARKUP + MARKUP, "anothing"]
    assert [row["True"] for row in page.rows[1:]] == [MARKUP, "</title></td>"]
    assert len(page.of("script")) == 1 and not page.of("img")
    assert not page.open  # every tag is closed
    every = {name for _, attributes in page.tags for name in attributes}
    assert not [name for name in every if name.startswith("on")]


def test_nothing_leaves_the_page(written):
    path, page = written(certain([0, 1], [1, 0]), [MARKUP, "http://example.org"])
    every = {name for _, attributes in page.tags for name in attributes}
    assert not every & {"src", "href", "srcset", "action", "style", "data", "poster"}
    assert not re.search(r"@import|url\(|fetch|XMLHttp|WebSocket", path.read_text())
    policy = next(m["content"] for m in page.of("meta") if "http-equiv" in m)
    allowed = dict(part.split(maxsplit=1) for part in policy.split("; "))
    assert allowed["default-src"] == allowed["base-uri"] == allowed["form-action"] == "'none'"
    for part in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.raw[part].encode()).digest()).decode()
        assert allowed[f"{part}-src"] == f"'sha256-{digest}'"


def test_what_cannot_be_seen_is_named(written):
    _, page = written(certain([0], [1]), ["a\u202eb\x00c\x1b\td\u2066\r\n"])
    assert page.rows[1]["Text"].rstrip() == "a⟨U+202E⟩b⟨U+0000⟩c⟨U+001B⟩\td⟨U+2066⟩"


def test_a_long_text_can_be_opened_and_an_endless_one_is_cut(written):
    text = "".join(chr(ord("a") + i % 26) for i in range(30_000))
    path, page = written(certain([0, 1], [1, 0]), [text, text[:600]])
    long, short = (row["Text"] for row in page.rows[1:])
    assert long.startswith(text[:600] + "all 30,000 characters" + text[600:700])
    assert long.endswith(
        text[19_900:20_000] + " … and 10,000 characters that are not on this page"
    )
    assert short == text[:600] and len(page.of("details")) == 1


def test_the_filters_know_each_class_by_a_number(written):
    made = drawn(60, seed=2)
    _, page = written(made, ["a"] * 60)
    assert [o["value"] for o in page.of("option")] == 2 * ["", "0", "1", "2"]
    *pairs, every = page.of("button")
    assert every == {"type": "button", "data-gold": "", "data-predicted": ""}
    count = {
        (p["data-gold"], p["data-predicted"]): sum(
            row["about"] == {"data-gold": p["data-gold"], "data-predicted": p["data-predicted"]}
            for row in page.rows[1:]
        )
        for p in pairs
    }
    assert sum(count.values()) == len(page.rows) - 1 and min(count.values()) > 0


@NEEDS_CHROMIUM
def test_in_a_browser_its_own_script_runs_and_no_other(written):
    made = drawn(40, seed=2)
    path, page = written(made, [MARKUP] * 40)
    shown = len(page.rows) - 1
    drawn_page = _in_browser(path)
    assert f'<output role="status">{shown} shown</output>' in drawn_page
    assert '<div id="filter" role="search">' in drawn_page  # no longer hidden
    assert "<title>Mistakes: some.tsv</title>" in drawn_page
    # Were a text not escaped, its script would be there, and the policy would not let it run.
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("&lt;", "<").replace("&gt;", ">").replace("&#x27;", "'"))
    drawn_page = _in_browser(path)
    assert "<script>document.title = 'taken'</script>" in drawn_page
    assert "<title>Mistakes: some.tsv</title>" in drawn_page


def _in_browser(path):
    """Return the page as it stands when it is drawn and its scripts have run."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    home = path.parent / "chromium"
    return subprocess.run(
        [*command, f"--user-data-dir={home}", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
