"""A classifier's predictions on labelled rows, in memory and as predictions.jsonl.

    {"row": 1, "line": 2, "text_a": "…", "gold": "bad", "predicted": "good", "loss": 1.7,
     "probabilities": {"bad": 0.18, "good": 0.82}, "logits": {"bad": -0.6, "good": 0.9}}

`loss` is in nats; a pair has a `text_b` too. The logits are exact, and all else follows from them.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from finetune.evaluation.calibration import Calibration, calibrate
from finetune.evaluation.evidence import Cell, Details, Evidence, divide
from finetune.evaluation.markup import bar, escaped, texts_of
from finetune.evaluation.pictures import draw_calibration, draw_confusion
from finetune.evaluation.records import lines

PROBABILITY_DIGITS = 6


@dataclass(frozen=True)
class Predictions(Evidence):
    """What a classifier said of each row of a file.

    Raises:
        ValueError: a logit is not finite; the message names the row.
    """

    class_names: tuple[str, ...]
    labels: Int64[np.ndarray, " rows"]
    """The true classes."""
    logits: Float[np.ndarray, "rows labels"]

    titles = {
        "accuracy": "accuracy",
        "macro_f1": "macro F1",
        "mcc": "Matthews correlation",
        "loss": "cross-entropy",
    }
    share = "accuracy"
    sorted_by = "loss, the negative logarithm of the true class's probability, in nats"
    columns = (
        Cell("text", "Text"),
        Cell("gold", "True"),
        Cell("said", "Predicted"),
        Cell("number", "Confidence"),
        Cell("number", "Loss"),
    )

    def __post_init__(self) -> None:
        """Refuse what no number can be computed from."""
        bad = np.flatnonzero(~np.isfinite(self.logits).all(-1))
        if len(bad):
            raise ValueError(
                f"row {bad[0] + 1}: expected finite logits from the model, got NaN or infinity"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def gold(self) -> list[str]:
        """The names of the true classes."""
        return [self.class_names[label] for label in self.labels]

    @property
    def classes(self) -> tuple[str, ...]:
        """All of them."""
        return self.class_names

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

    @cached_property
    def losses(self) -> Float[np.ndarray, " rows"]:
        """The cross-entropy of each row's true class, in nats; float64."""
        return -self.log_probabilities[np.arange(len(self)), self.labels]

    @property
    def confidences(self) -> Float[np.ndarray, " rows"]:
        """The probability of each row's predicted class; float64."""
        return np.exp(self.log_probabilities.max(-1))

    @property
    def badness(self) -> Float[np.ndarray, " rows"]:
        """The loss."""
        return self.losses

    @property
    def width(self) -> int:
        """A confusion matrix, or the rows."""
        return max(len(self), len(self.class_names) ** 2)

    def scores(
        self, counts: Float[np.ndarray, "draws rows"]
    ) -> dict[str, Float[np.ndarray, " draws"]]:
        """Score each draw's confusion matrix, and its losses."""
        classes = len(self.class_names)
        cells, inverse = np.unique(self.labels * classes + self.predicted, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        begins = np.searchsorted(inverse[order], np.arange(len(cells)))
        confusions = np.zeros((len(counts), classes**2))
        confusions[:, cells] = np.add.reduceat(counts[:, order], begins, axis=1)
        found = score_confusions(confusions.reshape(-1, classes, classes))
        return found | {"loss": counts @ self.losses / counts.sum(1)}

    def record(self, row: int) -> dict[str, Any]:
        """Return the classes, the loss, and what the model said of every class."""
        names = self.class_names
        probabilities = np.exp(self.log_probabilities[row]).round(PROBABILITY_DIGITS)
        return {
            "gold": names[self.labels[row]],
            "predicted": names[self.predicted[row]],
            "loss": float(self.losses[row]),
            "probabilities": dict(zip(names, probabilities.tolist(), strict=True)),
            "logits": dict(zip(names, self.logits[row].tolist(), strict=True)),
        }

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Read a file; logits are float64, equal to those that were written."""
        return read_predictions(path)

    @cached_property
    def calibration(self) -> Calibration:
        """What the confidences are worth."""
        return calibrate(self)

    def details(self) -> Details:
        """Tell the calibration."""
        accuracy = float(self.correct.mean())
        return Details(
            f"Micro F1 is the accuracy: a row has one class.\n\n{self.calibration.text}",
            {"micro_f1": accuracy, "calibration": self.calibration.as_json()},
        )

    def draw(self, directory: Path) -> None:
        """Draw which classes are taken for which, and the calibration."""
        classes = len(self.class_names)
        confusion = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(confusion, (self.labels, self.predicted), 1)
        draw_confusion(confusion, self.class_names, directory / "confusion.png")
        draw_calibration(self.calibration, classes, directory / "calibration.png")

    def cells(self, row: int, record: Mapping[str, Any]) -> list[str]:
        """Lay out the texts, the classes, and how sure the model was."""
        confidence = float(np.exp(self.log_probabilities[row].max()))
        return [
            texts_of(record, ("text_a", "text_b")),
            f"<bdi>{escaped(record['gold'])}</bdi>",
            f"<bdi>{escaped(record['predicted'])}</bdi>",
            f"{confidence:.1%}{bar(confidence)}",
            f"{record['loss']:.2f}",
        ]

    def outcome(self, row: int) -> tuple[int, int]:
        """Return both classes."""
        return int(self.labels[row]), int(self.predicted[row])


def score_confusions(
    confusions: Float[np.ndarray, "draws true predicted"],
) -> dict[str, Float[np.ndarray, " draws"]]:
    """Score confusion matrices as scikit-learn does: what isn't defined is 0."""
    total = confusions.sum((1, 2))
    right = np.einsum("dcc->dc", confusions)
    true, predicted = confusions.sum(2), confusions.sum(1)
    spread = (total**2 - (true**2).sum(1)) * (total**2 - (predicted**2).sum(1))
    covariance = right.sum(1) * total - (true * predicted).sum(1)
    return {
        "accuracy": right.sum(1) / total,
        "macro_f1": divide(2 * right, true + predicted).mean(1),
        "mcc": divide(covariance, np.sqrt(spread)),
    }


def read_predictions(path: Path) -> Predictions:
    """Read the lines of a classifier; the texts are not kept.

    Returns:
        float64 logits, equal to those that were written.

    Raises:
        ValueError: a line isn't one of such a file; the message names it.
        OSError: the file can't be read.
    """
    names: tuple[str, ...] = ()
    labels, logits = array("q"), array("d")
    for place, record in lines(path):
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
