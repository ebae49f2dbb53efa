"""Chosen texts beside the right ones, of multiple choice.

    {"row": 1, "line": 2, "premise": "…", "choices": ["…", "…"], "gold": 1, "predicted": 0,
     "loss": 1.2, "probabilities": [0.7, 0.3]}

A choice is told by its number, from 0; `loss` is in nats.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from finetune.evaluation.calibration import Calibration, calibrate
from finetune.evaluation.evidence import Cell, Details, Evidence
from finetune.evaluation.markup import bar, listed, shown
from finetune.evaluation.pictures import draw_calibration
from finetune.evaluation.records import read_each

PROBABILITY_DIGITS = 6


@dataclass(frozen=True)
class ChosenTexts(Evidence):
    """What a model chose for each question of a file."""

    labels: Int64[np.ndarray, " rows"]
    """The number of the right choice."""
    probabilities: tuple[Float[np.ndarray, " choices"], ...]
    """Of each question's choices; float64."""
    losses: Float[np.ndarray, " rows"]
    """The cross-entropy of each right choice, in nats; float64."""

    titles = {"accuracy": "accuracy", "loss": "cross-entropy"}
    share = "accuracy"
    unit = "questions"
    sorted_by = (
        "loss, the negative logarithm of the right choice's probability, in nats; in green the "
        "right choice, in red what was chosen"
    )
    columns = (
        Cell("text", "Text"),
        Cell("text", "Choices"),
        Cell("number", "Confidence"),
        Cell("number", "Loss"),
    )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def gold(self) -> list[int]:
        """The numbers of the right choices."""
        return self.labels.tolist()

    @cached_property
    def predicted(self) -> Int64[np.ndarray, " rows"]:
        """The likeliest choice, the first of equals."""
        return np.array([row.argmax() for row in self.probabilities], dtype=np.int64)

    @property
    def correct(self) -> Bool[np.ndarray, " rows"]:
        """Whether it is the right one."""
        return self.predicted == self.labels

    @property
    def confidences(self) -> Float[np.ndarray, " rows"]:
        """The probability of each chosen text."""
        return np.array([row.max() for row in self.probabilities], dtype=np.float64)

    @property
    def badness(self) -> Float[np.ndarray, " rows"]:
        """The loss."""
        return self.losses

    def scores(
        self, counts: Float[np.ndarray, "draws rows"]
    ) -> dict[str, Float[np.ndarray, " draws"]]:
        """Score each draw."""
        rows = counts.sum(1)
        return {"accuracy": counts @ self.row_scores / rows, "loss": counts @ self.losses / rows}

    def record(self, row: int) -> dict[str, Any]:
        """Return both choices, the loss and the probabilities."""
        return {
            "gold": int(self.labels[row]),
            "predicted": int(self.predicted[row]),
            "loss": float(self.losses[row]),
            "probabilities": self.probabilities[row].round(PROBABILITY_DIGITS).tolist(),
        }

    @classmethod
    def read(cls, path: Path) -> "ChosenTexts":
        """Read a file; what is chosen follows from the probabilities, as they were rounded."""

        def read(record: dict[str, Any]) -> tuple[int, np.ndarray, float]:
            values = np.array(record["probabilities"], dtype=np.float64)
            gold, predicted = record["gold"], record["predicted"]
            if values.ndim != 1 or not {gold, predicted} <= {*range(len(values))}:
                raise ValueError
            # Of equals after rounding, the one that was chosen is the greatest.
            values[predicted] = np.nextafter(values.max(), 2)
            return gold, values, float(record["loss"])

        expected = "gold and predicted, numbers of choices, their probabilities, and a loss"
        labels, probabilities, losses = zip(*read_each(path, read, expected), strict=True)
        return cls(np.array(labels, dtype=np.int64), probabilities, np.array(losses))

    @cached_property
    def calibration(self) -> Calibration:
        """What the confidences are worth."""
        return calibrate(self)

    def details(self) -> Details:
        """Tell the calibration."""
        numbers = {"calibration": self.calibration.as_json()}
        return Details(f"\n{self.calibration.text}", numbers)

    def draw(self, directory: Path) -> None:
        """Draw the calibration."""
        most = max(map(len, self.probabilities))
        draw_calibration(self.calibration, most, directory / "calibration.png")

    def cells(self, row: int, record: Mapping[str, Any]) -> list[str]:
        """Lay out the premise and the choices."""
        styles = {record["gold"]: "gold", record["predicted"]: "said"}
        choices = [(text, styles.get(i, "")) for i, text in enumerate(record["choices"])]
        confidence = max(record["probabilities"])
        return [
            shown(record["premise"]),
            listed(choices),
            f"{confidence:.1%}{bar(confidence)}",
            f"{record['loss']:.2f}",
        ]
