"""The worst mistakes as one static page: what one reads to learn why.

The page asks for nothing: its policy (CSP) allows no request, and of styles and scripts only its
own, by their hashes. So a text with markup in it is text twice over: it is escaped, and if it were
not, its script would not run. Without its script the page is whole, but can't be filtered.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from finetune.evaluation.mistakes_page import PAGE, SCRIPT, STYLE
from finetune.evaluation.predictions import Predictions, read_records
from finetune.whole_file import whole_file

SHOWN = 200
"""Mistakes on a page."""
PAIRS = 12
"""Of classes that are taken for each other, offered as filters: the commonest."""
AT_ONCE, AT_ALL = 600, 20_000
"""Characters of a text: those shown at once, and those shown at all."""
BAR = 72
"""Pixels of a confidence of 1."""

# What can't be seen, or turns the words around it, is named: controls, directional overrides.
_NAMED = {*range(32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_SIGNS = {code: f"⟨U+{code:04X}⟩" for code in _NAMED - {9, 10, 13}}


def write_mistakes(path: Path, source: Path, predictions: Predictions, name: str) -> None:
    """Write the page.

    Args:
        path: the page; what is there is replaced.
        source: the predictions.jsonl, which has the texts.
        predictions: the same, in memory.
        name: what the page is about, for its title.
    """
    worst = worst_mistakes(predictions)
    records = read_records(source, set(worst.tolist()))
    with whole_file(path) as file:
        file.write(page(predictions, worst, [records[i] for i in worst.tolist()], name))


def worst_mistakes(predictions: Predictions) -> Int64[np.ndarray, " mistakes"]:
    """Return the rows of the SHOWN mistakes with the greatest loss, from the greatest on."""
    wrong = np.flatnonzero(~predictions.correct)
    return wrong[np.argsort(-predictions.losses[wrong], kind="stable")][:SHOWN]


def page(
    predictions: Predictions,
    worst: Int64[np.ndarray, " mistakes"],
    records: Sequence[Mapping[str, Any]],
    name: str,
) -> str:
    """Put the page together.

    Args:
        predictions: of all rows.
        worst: the rows that are shown, from 0.
        records: their lines of predictions.jsonl.
        name: what the page is about.
    """
    names = [_text(each) for each in predictions.class_names]
    outcomes = list(
        zip(predictions.labels[worst].tolist(), predictions.predicted[worst].tolist(), strict=True)
    )
    confidences = predictions.confidences[worst].tolist()
    rows = [
        _row(record, outcome, names, confidence)
        for record, outcome, confidence in zip(records, outcomes, confidences, strict=True)
    ]
    return PAGE.format(
        name=_text(name),
        summary=_summary(predictions, len(worst)),
        options="".join(f'<option value="{i}">{each}</option>' for i, each in enumerate(names)),
        pairs="".join(_pairs(outcomes, names)),
        rows="\n".join(rows),
        shown=len(rows),
        style=STYLE,
        script=SCRIPT,
        style_hash=_hash(STYLE),
        script_hash=_hash(SCRIPT),
    )


def _summary(predictions: Predictions, shown: int) -> str:
    mistakes = int((~predictions.correct).sum())
    text = (
        f"{mistakes:,} of {len(predictions):,} rows are mistaken "
        f"({mistakes / len(predictions):.1%})."
    )
    return text if shown == mistakes else f"{text} Shown are the {shown:,} of the greatest loss."


def _pairs(outcomes: Sequence[tuple[int, int]], names: Sequence[str]) -> list[str]:
    """Make buttons of the commonest pairs of a true class and what it is taken for."""
    return [
        f'<button type="button" data-gold="{gold}" data-predicted="{predicted}">'
        f"<bdi>{names[gold]}</bdi> → <bdi>{names[predicted]}</bdi> · {count}</button>"
        for (gold, predicted), count in Counter(outcomes).most_common(PAIRS)
    ]


def _row(
    record: Mapping[str, Any], outcome: tuple[int, int], names: Sequence[str], confidence: float
) -> str:
    """Lay out one mistake."""
    gold, predicted = outcome
    bar = (
        f'<svg width="{BAR}" height="6" aria-hidden="true"><rect class="all" width="{BAR}" '
        f'height="6"/><rect class="part" width="{BAR * confidence:.0f}" height="6"/></svg>'
    )
    texts = [record["text_a"], *([record["text_b"]] if "text_b" in record else [])]
    cells = (
        ("text", "Text", "".join(map(_shown, texts))),
        ("gold", "True", f"<bdi>{names[gold]}</bdi>"),
        ("said", "Predicted", f"<bdi>{names[predicted]}</bdi>"),
        ("number", "Confidence", f"{confidence:.1%}{bar}"),
        ("number", "Loss", f"{record['loss']:.2f}"),
        (
            "number",
            "Row",
            f'{record["row"]:,}<br><span class="soft">line {record["line"]:,}</span>',
        ),
    )
    joined = "".join(
        f'<td class="{kind}" data-title="{title}">{c}</td>' for kind, title, c in cells
    )
    return f'<tr data-gold="{gold}" data-predicted="{predicted}">{joined}</tr>'


def _shown(text: str) -> str:
    """Show a text: the rest of a long one can be opened, and what is beyond AT_ALL is left out."""
    if not text.strip():
        return '<div class="empty">nothing</div>'
    rest, left_out = _text(text[AT_ONCE:AT_ALL]), len(text) - AT_ALL
    if left_out > 0:
        rest += f" … and {left_out:,} characters that are not on this page"
    more = f"<details><summary>all {len(text):,} characters</summary>{rest}</details>"
    return f'<div dir="auto">{_text(text[:AT_ONCE])}{more if rest else ""}</div>'


def _text(text: str) -> str:
    """Escape a text, and show what can't be seen."""
    return escape(text.translate(_SIGNS))


def _hash(content: str) -> str:
    """Return what the page's policy knows its own style and script by."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
