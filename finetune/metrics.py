"""How good predictions are: scikit-learn's numbers, as values and as a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64

ONE_CLASS = (
    "\nHint: all {rows} predictions are {name!r}: nothing was learned that tells the classes "
    "apart. More steps, another learning rate or more rows may help.\n"
)


@runtime_checkable
class Scores(Protocol):
    """What an evaluation found."""

    @property
    def text(self) -> str:
        """A report to print."""
        ...

    def summary(self) -> dict[str, float]:
        """Return the numbers to log; the task's metrics are among them."""
        ...

    def as_json(self) -> Mapping[str, Any]:
        """Return all numbers."""
        ...


@dataclass(frozen=True)
class ClassificationScores:
    """What predictions on labelled rows are worth."""

    accuracy: float
    macro_f1: float
    """The mean of the classes' F1: each class counts the same, however rare."""
    mcc: float
    """Matthews' correlation coefficient: 0 for a guess, also where classes are uneven."""
    loss: float
    """Mean cross-entropy, in nats."""
    per_class: dict[str, dict[str, float]]
    """scikit-learn's classification_report: precision, recall, f1-score and support."""
    confusion: list[list[int]]
    """Rows by true class, columns by predicted class."""
    text: str
    """All of it, to print."""
    logits: Float[np.ndarray, "rows labels"] = field(repr=False, compare=False)
    """What was scored."""

    def summary(self) -> dict[str, float]:
        """Return the numbers that a log line holds."""
        return {
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "mcc": self.mcc,
            "loss": self.loss,
        }

    def as_json(self) -> dict[str, Any]:
        """Return all numbers."""
        return {**self.summary(), "per_class": self.per_class, "confusion": self.confusion}


def score(
    logits: Float[np.ndarray, "rows labels"],
    labels: Int64[np.ndarray, " rows"],
    class_names: Sequence[str],
) -> ClassificationScores:
    """Score logits against true classes; a class that isn't met has a score of 0, not NaN.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
    """
    metrics = require_scikit_learn()
    predicted = logits.argmax(-1)
    classes = np.arange(len(class_names))
    names = list(class_names)
    # Every class has its line, whether or not the rows hold it.
    how: dict[str, Any] = {"labels": classes, "target_names": names, "zero_division": 0}
    report = metrics.classification_report(labels, predicted, digits=4, **how)
    numbers = metrics.classification_report(labels, predicted, output_dict=True, **how)
    confusion = metrics.confusion_matrix(labels, predicted, labels=classes)
    accuracy = float(metrics.accuracy_score(labels, predicted))
    mcc = float(metrics.matthews_corrcoef(labels, predicted))
    loss = cross_entropy(logits, labels)
    text = (
        f"{report}\nMatthews correlation {mcc:.4f}, cross-entropy {loss:.4f} nats\n\n"
        f"{confusion_table(confusion, names)}\n"
    )
    if len(set(predicted.tolist())) == 1 and len(set(labels.tolist())) > 1:
        text += ONE_CLASS.format(name=names[predicted[0]], rows=len(labels))
    per_class = {name: {k: float(v) for k, v in numbers[name].items()} for name in names}
    macro_f1 = float(numbers["macro avg"]["f1-score"])
    return ClassificationScores(
        accuracy, macro_f1, mcc, loss, per_class, confusion.tolist(), text, logits
    )


def cross_entropy(
    logits: Float[np.ndarray, "rows labels"], labels: Int64[np.ndarray, " rows"]
) -> float:
    """Return the mean of −log softmax(logits)[label], computed in float64."""
    return float(cross_entropies(logits, labels).mean())


def cross_entropies(
    logits: Float[np.ndarray, "rows labels"], labels: Int64[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    """Return −log softmax(logits)[label] of each row, in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(-1))
    return log_total - shifted[np.arange(len(labels)), labels]


def confusion_table(confusion: Int64[np.ndarray, "true predicted"], names: Sequence[str]) -> str:
    """Draw the confusion matrix with its names."""
    cells = [["true \\ predicted", *names]]
    cells += [[n, *map(str, row)] for n, row in zip(names, confusion.tolist(), strict=True)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    )


def require_scikit_learn() -> Any:
    """Import scikit-learn's metrics, or say in one line how to get them.

    Raises:
        ModuleNotFoundError: it isn't installed; the message names the extra.
    """
    return _require("sklearn", "scikit-learn")


def require_seqeval() -> Any:
    """Import seqeval's metrics, or say in one line how to get them.

    Raises:
        ModuleNotFoundError: it isn't installed; the message names the extra.
    """
    return _require("seqeval", "seqeval")


def _require(package: str, name: str) -> Any:
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModuleNotFoundError(
            f"{name} is missing; install the extra report: pip install -e .[report]", name=package
        ) from None
    return import_module(f"{package}.metrics")
