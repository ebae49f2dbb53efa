"""predictions.jsonl: a line for each row, with its texts, what is right, and what the model said.

    {"row": 1, "line": 2, "text_a": "…", "gold": "bad", "predicted": "good", "loss": 1.7, …}

`row` counts from 1, `line` is where the row starts in the file. The names of the texts are the
task's, and what comes after them is its kind of evidence (evidence.py).
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bert.text import SURROGATE
from finetune.evaluation.evidence import Evidence
from finetune.tables import read_object
from finetune.whole_file import whole_file

PREDICTIONS, EVALUATION = "predictions.jsonl", "evaluation.json"
"""The names in an evaluation's directory (report.py)."""

T = TypeVar("T")


def write_predictions(path: Path, evidence: Evidence, texts: Iterable[Mapping[str, Any]]) -> None:
    """Write a line for each row, whole or not at all.

    Args:
        path: the file; what is there is replaced.
        evidence: of each of the rows.
        texts: of each row its place in the file and its texts, by name. They pass through, and
            are not kept.

    Raises:
        ValueError: there are not as many texts as rows.
        OSError: the file can't be written; what was there is whole.
    """
    count = 0
    with whole_file(path) as file:
        for row, text in enumerate(texts):
            count = row + 1
            if count > len(evidence):
                break
            record = {"row": count, **text, **evidence.record(row)}
            # A lone surrogate can't be written; the model read it as U+FFFD too (bert/text.py).
            print(SURROGATE.sub("\ufffd", json.dumps(record, ensure_ascii=False)), file=file)
        if count != len(evidence):
            raise ValueError(
                f"rows: expected {len(evidence)}, one for each prediction, "
                f"got {'more' if count > len(evidence) else count}; was the file changed?"
            )


def read_records(path: Path, rows: Collection[int]) -> dict[int, dict[str, Any]]:
    """Read the whole records of a few rows, numbered from 0; no others are kept."""
    return {i: record for i, (_, record) in enumerate(lines(path)) if i in rows}


def read_each(path: Path, read: Callable[[dict[str, Any]], T], expected: str) -> list[T]:
    """Take something from each line.

    Args:
        path: the file.
        read: takes it; what isn't there, or is of the wrong kind, may raise as Python does.
        expected: says what a line should be, for an error.

    Raises:
        ValueError: a line isn't as it should be, or there is none; the message names it.
        OSError: the file can't be read.
    """
    found: list[T] = []
    for place, record in lines(path):
        try:
            found.append(read(record))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            raise ValueError(f"{place}: expected {expected}") from None
    if not found:
        raise ValueError(f"{path}: expected predictions, got an empty file")
    return found


def lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line's place and object.

    Raises:
        ValueError: a line has none; the message names it.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            try:
                record = read_object(line)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
            yield place, record
