"""A classifier's predictions on labelled rows, in memory and as predictions.jsonl.

    {"row": 1, "line": 2, "text_a": "…", "gold": "bad", "predicted": "good", "loss": 1.7,
     "probabilities": {"bad": 0.18, "good": 0.82}, "logits": {"bad": -0.6, "good": 0.9}}

`row` counts from 1, `line` is where the row starts in the file, `loss` is in nats; a pair has a
`text_b` too. The logits are exact, and all else follows from them.
"""

import json
from array import array
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from bert.text import SURROGATE
from finetune.tables import Row
from finetune.whole_file import whole_file

PREDICTIONS, EVALUATION = "predictions.jsonl", "evaluation.json"
"""The names in an evaluation's directory (report.py)."""
PROBABILITY_DIGITS = 6


@dataclass(frozen=True)
class Predictions:
    """What a classifier said of each row of a file.

    Raises:
        ValueError: a logit is not finite; the message names the row.
    """

    class_names: tuple[str, ...]
    labels: Int64[np.ndarray, " rows"]
    """The true classes."""
    logits: Float[np.ndarray, "rows labels"]

    def __post_init__(self) -> None:
        """Refuse what no number can be computed from."""
        bad = np.flatnonzero(~np.isfinite(self.logits).all(-1))
        if len(bad):
            raise ValueError(
                f"row {bad[0] + 1}: expected finite logits from the model, got NaN or infinity"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def predicted(self) -> Int64[np.ndarray, " rows"]:
        """The class of the greatest logit, the first of equals."""
        return self.logits.argmax(-1)

    @property
    def correct(self) -> Bool[np.ndarray, " rows"]:
        """Whether each row's prediction is its true class."""
        return self.predicted == self.labels

    @cached_property
    def log_probabilities(self) -> Float[np.ndarray, "rows labels"]:
        """The logarithm of the softmax of the logits; float64."""
        shifted = self.logits.astype(np.float64) - self.logits.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    @property
    def losses(self) -> Float[np.ndarray, " rows"]:
        """The cross-entropy of each row's true class, in nats; float64."""
        return -self.log_probabilities[np.arange(len(self)), self.labels]

    @property
    def confidences(self) -> Float[np.ndarray, " rows"]:
        """The probability of each row's predicted class; float64."""
        return np.exp(self.log_probabilities.max(-1))


def write_predictions(path: Path, predictions: Predictions, rows: Iterable[Row]) -> None:
    """Write a line for each row, whole or not at all.

    Args:
        path: the file; what is there is replaced.
        predictions: one for each of `rows`.
        rows: the texts, in the same order. They pass through, and are not kept.

    Raises:
        ValueError: there are not as many rows as predictions.
        OSError: the file can't be written; what was there is whole.
    """
    with whole_file(path) as file:
        for record in _records(predictions, rows):
            print(json.dumps(record, ensure_ascii=False), file=file)


def _records(predictions: Predictions, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    names, losses = predictions.class_names, predictions.losses
    probabilities = np.exp(predictions.log_probabilities).round(PROBABILITY_DIGITS)
    count = 0
    for i, row in enumerate(rows):
        count += 1
        if count > len(predictions):
            break
        # A lone surrogate can't be written; the model read it as U+FFFD too (bert/text.py).
        texts = {"text_a": SURROGATE.sub("\ufffd", row.text_a)}
        if row.text_b is not None:
            texts["text_b"] = SURROGATE.sub("\ufffd", row.text_b)
        yield {
            "row": count,
            "line": row.line,
            **texts,
            "gold": names[predictions.labels[i]],
            "predicted": names[predictions.predicted[i]],
            "loss": float(losses[i]),
            "probabilities": dict(zip(names, probabilities[i].tolist(), strict=True)),
            "logits": dict(zip(names, predictions.logits[i].tolist(), strict=True)),
        }
    if count != len(predictions):
        raise ValueError(
            f"rows: expected {len(predictions)}, one for each prediction, "
            f"got {'more' if count > len(predictions) else count}; was the file changed?"
        )


def read_predictions(path: Path) -> Predictions:
    """Read what `write_predictions` wrote; the texts are not kept.

    Returns:
        float64 logits, equal to those that were written.

    Raises:
        ValueError: a line isn't one of such a file; the message names it.
        OSError: the file can't be read.
    """
    names: tuple[str, ...] = ()
    labels, logits = array("q"), array("d")
    for place, record in _lines(path):
        try:
            values = record["logits"]
            names = names or tuple(values)
            labels.append(names.index(record["gold"]))
            logits.extend(values[name] for name in names)
            is_whole = len(values) == len(names) >= 2
        except (KeyError, TypeError, ValueError):
            is_whole = False
        if not is_whole:
            raise ValueError(
                f"{place}: expected gold, one of the classes, and logits, a number for each class "
                "of the first line"
            )
    if not names:
        raise ValueError(f"{path}: expected predictions, got an empty file")
    shaped = np.frombuffer(logits, dtype=np.float64).reshape(-1, len(names))
    try:
        return Predictions(names, np.frombuffer(labels, dtype=np.int64), shaped)
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None


def read_records(path: Path, rows: Collection[int]) -> dict[int, dict[str, Any]]:
    """Read the whole records of a few rows, numbered from 0; no others are kept."""
    return {i: record for i, (_, record) in enumerate(_lines(path)) if i in rows}


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each line's place and object."""
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{place}: expected JSON: {error}") from None
            if not isinstance(record, dict):
                raise ValueError(f"{place}: expected an object, got {type(record).__name__}")
            yield place, record
