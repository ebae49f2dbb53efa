"""Predicted numbers beside the true ones, of regression.

    {"row": 1, "line": 2, "text_a": "…", "text_b": "…", "gold": 4.2, "predicted": 3.1,
     "error": -1.1}

Pearson's correlation of a draw follows from its sums. Spearman's is that of the ranks in the
draw, where equal numbers have the mean of their ranks; both are 0 where nothing varies.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from finetune.evaluation.evidence import Cell, Evidence, divide
from finetune.evaluation.markup import texts_of
from finetune.evaluation.pictures import draw_scatter
from finetune.evaluation.records import read_each

Draws = Float[np.ndarray, "draws rows"]


@dataclass(frozen=True)
class Numbers(Evidence):
    """What a model that rates texts said of each row of a file."""

    labels: Float[np.ndarray, " rows"]
    """The true numbers; float64."""
    predicted: Float[np.ndarray, " rows"]
    """float64."""

    titles = {
        "pearson": "Pearson correlation",
        "spearman": "Spearman correlation",
        "mse": "mean squared error",
        "mean_error": "mean absolute error",
    }
    compared = "the absolute error"
    sorted_by = "the absolute error"
    columns = (
        Cell("text", "Text"),
        Cell("number", "True"),
        Cell("number", "Predicted"),
        Cell("number", "Error"),
    )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def gold(self) -> list[float]:
        """The true numbers."""
        return self.labels.tolist()

    @property
    def correct(self) -> Bool[np.ndarray, " rows"]:
        """Whether a prediction is the very number."""
        return self.badness == 0

    @property
    def badness(self) -> Float[np.ndarray, " rows"]:
        """The absolute error."""
        return np.abs(self.predicted - self.labels)

    @property
    def row_scores(self) -> Float[np.ndarray, " rows"]:
        """The absolute error, with a minus."""
        return -self.badness

    @property
    def tally(self) -> str:
        """Say how far off the rows are."""
        return f"{len(self):,} rows, off by {self.badness.mean():.4g} on average."

    def scores(
        self, counts: Float[np.ndarray, "draws rows"]
    ) -> dict[str, Float[np.ndarray, " draws"]]:
        """Score each draw."""
        rows = counts.sum(1)
        return {
            "pearson": _pearson(counts, self.labels, self.predicted),
            "spearman": _spearman(counts, self.labels, self.predicted),
            "mse": counts @ self.badness**2 / rows,
            "mean_error": counts @ self.badness / rows,
        }

    def record(self, row: int) -> dict[str, Any]:
        """Return both numbers and by how much the prediction is too great."""
        gold, predicted = float(self.labels[row]), float(self.predicted[row])
        return {"gold": gold, "predicted": predicted, "error": predicted - gold}

    @classmethod
    def read(cls, path: Path) -> "Numbers":
        """Read a file."""
        found = read_each(
            path,
            lambda record: (float(record["gold"]), float(record["predicted"])),
            "gold and predicted, two numbers",
        )
        return cls(*np.array(found, dtype=np.float64).T)

    def draw(self, directory: Path) -> None:
        """Draw the predicted numbers over the true ones."""
        draw_scatter(self.labels, self.predicted, directory / "scatter.png")

    def cells(self, row: int, record: Mapping[str, Any]) -> list[str]:
        """Lay out the texts and the numbers."""
        return [
            texts_of(record, ("text_a", "text_b")),
            f"{record['gold']:.4g}",
            f"{record['predicted']:.4g}",
            f"{record['error']:+.4g}",
        ]


def _pearson(
    counts: Draws, x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."]
) -> Float[np.ndarray, " draws"]:
    """Correlate two numbers of each row, which may differ from draw to draw, as ranks do."""
    x, y = _centred(counts, x), _centred(counts, y)
    spread = (counts * x**2).sum(1) * (counts * y**2).sum(1)
    return divide((counts * x * y).sum(1), np.sqrt(spread))


def _centred(counts: Draws, x: Float[np.ndarray, "..."]) -> Draws:
    """Take each draw's mean from the numbers of its rows; those that don't vary become 0."""
    x = x - x[..., :1]
    x = x - ((counts * x).sum(1) / counts.sum(1))[:, None]
    # What rounding leaves of nothing is nothing.
    return np.where(np.abs(x) > 1e-12 * np.abs(x).max(1, keepdims=True), x, 0.0)


def _spearman(
    counts: Draws, x: Float[np.ndarray, " rows"], y: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " draws"]:
    """Correlate the ranks of two numbers of each row."""
    return _pearson(counts, _ranks(counts, x), _ranks(counts, y))


def _ranks(counts: Draws, x: Float[np.ndarray, " rows"]) -> Draws:
    """Rank each row in each draw; rows of equal numbers have the mean of their ranks."""
    values, inverse = np.unique(x, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    begins = np.searchsorted(inverse[order], np.arange(len(values)))
    equal = np.add.reduceat(counts[:, order], begins, axis=1)
    # Of n equal ones after m smaller, the ranks are m + 1 to m + n.
    ranks = equal.cumsum(1) - (equal - 1) / 2
    return ranks[:, inverse]
