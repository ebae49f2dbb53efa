"""Predicted sets of classes beside the true ones, of multi-label classification.

    {"row": 1, "line": 2, "text_a": "…", "gold": ["joy"], "predicted": ["joy", "love"],
     "loss": 0.3, "probabilities": {"joy": 0.9, "love": 0.6, "grief": 0.1}}

`loss` is the mean binary cross-entropy of the row's classes, in nats.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from finetune.evaluation.evidence import Cell, Evidence, divide
from finetune.evaluation.markup import listed, texts_of
from finetune.evaluation.records import read_each

PROBABILITY_DIGITS = 6


@dataclass(frozen=True)
class ClassSets(Evidence):
    """Which classes a model gave each row of a file."""

    names: tuple[str, ...]
    sets: Bool[np.ndarray, "rows labels"]
    """The true classes."""
    predicted: Bool[np.ndarray, "rows labels"]
    probabilities: Float[np.ndarray, "rows labels"]
    losses: Float[np.ndarray, " rows"]
    """The mean binary cross-entropy of each row, in nats; float64."""

    titles = {
        "micro_f1": "micro F1",
        "macro_f1": "macro F1",
        "subset_accuracy": "whole sets right",
        "loss": "binary cross-entropy",
    }
    share = "subset_accuracy"
    compared = "classes that are missed or too many"
    sorted_by = (
        "loss, the mean binary cross-entropy of a row's classes, in nats; in green what is true, "
        "in red what is predicted and isn't"
    )
    columns = (
        Cell("text", "Text"),
        Cell("said", "Missed"),
        Cell("said", "Too many"),
        Cell("number", "Right"),
        Cell("number", "Loss"),
    )

    def __len__(self) -> int:
        return len(self.sets)

    @property
    def gold(self) -> list[list[str]]:
        """The names of the true classes."""
        return [self._named(row) for row in self.sets]

    @property
    def correct(self) -> Bool[np.ndarray, " rows"]:
        """Whether a whole set is right."""
        return (self.sets == self.predicted).all(1)

    @property
    def badness(self) -> Float[np.ndarray, " rows"]:
        """The loss."""
        return self.losses

    @property
    def row_scores(self) -> Float[np.ndarray, " rows"]:
        """The number of wrong decisions, with a minus."""
        return -(self.sets != self.predicted).sum(1).astype(np.float64)

    @property
    def width(self) -> int:
        """Three numbers for each class, or the rows."""
        return max(len(self), 3 * len(self.names))

    def scores(
        self, counts: Float[np.ndarray, "draws rows"]
    ) -> dict[str, Float[np.ndarray, " draws"]]:
        """Score each draw from the counts of each class: hits, and true and predicted ones."""
        true, predicted = self.sets.astype(np.float64), self.predicted.astype(np.float64)
        hits, both = counts @ (true * predicted), counts @ (true + predicted)
        rows = counts.sum(1)
        return {
            "micro_f1": divide(2 * hits.sum(1), both.sum(1)),
            "macro_f1": divide(2 * hits, both).mean(1),
            "subset_accuracy": counts @ self.correct.astype(np.float64) / rows,
            "loss": counts @ self.losses / rows,
        }

    def record(self, row: int) -> dict[str, Any]:
        """Return both sets, the loss and the probabilities."""
        probabilities = self.probabilities[row].round(PROBABILITY_DIGITS).tolist()
        return {
            "gold": self._named(self.sets[row]),
            "predicted": self._named(self.predicted[row]),
            "loss": float(self.losses[row]),
            "probabilities": dict(zip(self.names, probabilities, strict=True)),
        }

    @classmethod
    def read(cls, path: Path) -> "ClassSets":
        """Read a file; the probabilities are rounded as they were written."""
        expected = "gold, predicted, loss and probabilities, as of the first line"
        names: tuple[str, ...] = ()

        def read(record: dict[str, Any]) -> tuple[list[bool], list[bool], list[float], float]:
            nonlocal names
            names = names or tuple(record["probabilities"])
            gold, predicted = record["gold"], record["predicted"]
            if not {*gold, *predicted} <= {*names} or len(record["probabilities"]) != len(names):
                raise ValueError
            return (
                [name in gold for name in names],
                [name in predicted for name in names],
                [float(record["probabilities"][name]) for name in names],
                float(record["loss"]),
            )

        gold, predicted, probabilities, losses = zip(*read_each(path, read, expected), strict=True)
        return cls(
            names, np.array(gold), np.array(predicted), np.array(probabilities), np.array(losses)
        )

    def cells(self, row: int, record: Mapping[str, Any]) -> list[str]:
        """Lay out the texts, and where the sets differ and agree."""
        gold, predicted = record["gold"], record["predicted"]
        return [
            texts_of(record, ("text_a", "text_b")),
            listed([(name, "gold") for name in gold if name not in predicted]),
            listed([(name, "said") for name in predicted if name not in gold]),
            listed([(name, "gold") for name in gold if name in predicted]),
            f"{record['loss']:.3f}",
        ]

    def _named(self, chosen: Bool[np.ndarray, " labels"]) -> list[str]:
        return [self.names[i] for i in np.flatnonzero(chosen)]
