"""The worst mistakes as one static page: what one reads to learn why.

The page asks for nothing: its policy (CSP) allows no request, and of styles and scripts only its
own, by their hashes. So a text with markup in it is text twice over: it is escaped, and if it were
not, its script would not run. Without its script the page is whole, but can't be filtered.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from finetune.evaluation.evidence import Cell, Evidence
from finetune.evaluation.markup import escaped
from finetune.evaluation.mistakes_page import FILTER, PAGE, SCRIPT, STYLE
from finetune.evaluation.records import read_records
from finetune.whole_file import whole_file

SHOWN = 200
"""Mistakes on a page."""
PAIRS = 12
"""Of classes that are taken for each other, offered as filters: the commonest."""


def write_mistakes(path: Path, source: Path, evidence: Evidence, name: str) -> None:
    """Write the page.

    Args:
        path: the page; what is there is replaced.
        source: the predictions.jsonl, which has the texts.
        evidence: the same, in memory.
        name: what the page is about, for its title.
    """
    worst = worst_mistakes(evidence)
    records = read_records(source, set(worst.tolist()))
    with whole_file(path) as file:
        file.write(page(evidence, worst, [records[i] for i in worst.tolist()], name))


def worst_mistakes(evidence: Evidence) -> Int64[np.ndarray, " mistakes"]:
    """Return the rows of the SHOWN worst mistakes, from the worst on."""
    wrong = np.flatnonzero(~evidence.correct)
    return wrong[np.argsort(-evidence.badness[wrong], kind="stable")][:SHOWN]


def page(
    evidence: Evidence,
    worst: Int64[np.ndarray, " mistakes"],
    records: Sequence[Mapping[str, Any]],
    name: str,
) -> str:
    """Put the page together.

    Args:
        evidence: of all rows.
        worst: the rows that are shown, from 0.
        records: their lines of predictions.jsonl.
        name: what the page is about.
    """
    pairs = list(zip(worst.tolist(), records, strict=True))
    columns = [*evidence.columns, Cell("number", "Row")]
    return PAGE.format(
        name=escaped(name),
        summary=_summary(evidence, len(worst)),
        filter=_filter(evidence, worst.tolist()) if evidence.classes else "",
        sorted_by=evidence.sorted_by,
        head="".join(f'<th scope="col">{column.title}</th>' for column in columns),
        rows="\n".join(_row(evidence, columns, row, record) for row, record in pairs),
        style=STYLE,
        script=f"<script>{SCRIPT}</script>" if evidence.classes else "",
        style_hash=_hash(STYLE),
        script_hash=_hash(SCRIPT),
    )


def _summary(evidence: Evidence, shown: int) -> str:
    mistakes = int((~evidence.correct).sum())
    if shown == mistakes:
        return evidence.tally
    return f"{evidence.tally} Shown are the {shown:,} worst."


def _filter(evidence: Evidence, worst: Sequence[int]) -> str:
    """Make the filters by class: two lists, and buttons of the commonest confusions."""
    names = [escaped(each) for each in evidence.classes]
    counts = Counter(outcome for row in worst if (outcome := evidence.outcome(row)) is not None)
    return FILTER.format(
        options="".join(f'<option value="{i}">{each}</option>' for i, each in enumerate(names)),
        shown=len(worst),
        pairs="".join(
            f'<button type="button" data-gold="{gold}" data-predicted="{predicted}">'
            f"<bdi>{names[gold]}</bdi> → <bdi>{names[predicted]}</bdi> · {count}</button>"
            for (gold, predicted), count in counts.most_common(PAIRS)
        ),
    )


def _row(evidence: Evidence, columns: Sequence[Cell], row: int, record: Mapping[str, Any]) -> str:
    """Lay out one mistake."""
    place = f'<br><span class="soft">line {record["line"]:,}</span>' if "line" in record else ""
    cells = [*evidence.cells(row, record), f"{record['row']:,}{place}"]
    joined = "".join(
        f'<td class="{column.style}" data-title="{column.title}">{cell}</td>'
        for column, cell in zip(columns, cells, strict=True)
    )
    outcome = evidence.outcome(row)
    known = "" if outcome is None else f' data-gold="{outcome[0]}" data-predicted="{outcome[1]}"'
    return f"<tr{known}>{joined}</tr>"


def _hash(content: str) -> str:
    """Return what the page's policy knows its own style and script by."""
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
