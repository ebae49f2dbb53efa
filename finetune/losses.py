"""Losses of classes that may count unequally, and what their sums are divided by.

Each is what torch's module computes of a whole step in one batch: numerator and denominator are
summed over the step's micro-batches and processes before one is divided by the other. (The mean
of micro-batches' weighted means is another number, as soon as one has more rare rows.)
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from finetune.labels import class_of

BALANCED = "balanced"
_ENTRY = re.compile(r"(.+?):([0-9.eE+-]+)(?:,|$)")


@dataclass(frozen=True)
class CrossEntropy:
    """What torch.nn.CrossEntropyLoss computes: Σ wᵧ · loss / Σ wᵧ over rows of class y.

    With smoothing ε (Szegedy et al. 2016, section 7) the target is 1 − ε at the true class, and
    ε / classes at each one, the true one too. Each class's part of it counts by its own weight.
    """

    weights: tuple[float, ...] | None = None
    """What a row of each class counts; None: each 1."""
    label_smoothing: float = 0.0

    def terms(
        self, labels: Int64[Tensor, " rows"], row_weights: Float[Tensor, " rows"] | None = None
    ) -> int | float:
        """Return what the sum is divided by: how many labels there are, or their weights."""
        if self.weights is None:
            return labels.numel() if row_weights is None else float(row_weights.double().sum())
        weights = torch.tensor(self.weights, dtype=torch.float64)[labels]
        return float(weights.sum() if row_weights is None else weights @ row_weights.double())

    def __call__(
        self,
        logits: Float[Tensor, "rows classes"],
        labels: Int64[Tensor, " rows"],
        row_weights: Float[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the sum over the rows, in the logits' dtype.

        Args:
            logits: of each row.
            labels: the true classes.
            row_weights: what each row counts besides; None: each 1.
        """
        weight = None if self.weights is None else logits.new_tensor(self.weights)
        how = {"weight": weight, "label_smoothing": self.label_smoothing}
        if row_weights is None:
            return F.cross_entropy(logits, labels, **how, reduction="sum")
        losses = F.cross_entropy(logits, labels, **how, reduction="none")
        return losses @ row_weights.to(losses.dtype)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """What torch.nn.BCEWithLogitsLoss computes: the mean over all decisions, yes or no."""

    weights: tuple[float, ...] | None = None
    """What a yes of each class counts (`pos_weight`); a no counts 1. None: each yes 1."""

    def __call__(
        self, logits: Float[Tensor, "rows classes"], labels: Float[Tensor, "rows classes"]
    ) -> Float[Tensor, ""]:
        """Return the sum over rows and classes, in the logits' dtype."""
        weight = None if self.weights is None else logits.new_tensor(self.weights)
        labels = labels.to(logits.dtype)
        return F.binary_cross_entropy_with_logits(
            logits, labels, reduction="sum", pos_weight=weight
        )


def class_weights(text: str | None, counts: Mapping[str, int]) -> tuple[float, ...] | None:
    """Return the weights that an option asks for, in the order of the classes.

    Args:
        text: balanced, which gives all classes the same sum of weights, and a row 1 on average
            (scikit-learn's "balanced"; King and Zeng 2001); or NAME:NUMBER,NAME:NUMBER, where
            the classes that aren't named have 1; or None.
        counts: the rows of each class, one at least.

    Raises:
        ValueError: the text is neither.
    """
    if text == BALANCED:
        return tuple(sum(counts.values()) / (len(counts) * rows) for rows in counts.values())
    return None if text is None else _by_name(text, tuple(counts))


def yes_weights(
    text: str | None, counts: Mapping[str, int], rows: int
) -> tuple[float, ...] | None:
    """Return what a yes of each class counts, where a row has any number of classes.

    Args:
        text: balanced, with which all yeses of a class count as much as all of its noes; else
            as `class_weights` takes it.
        counts: the rows of each class, one at least.
        rows: of the file.

    Raises:
        ValueError: the text is neither; or all rows have a class, so that it can't be balanced.
    """
    if text != BALANCED:
        return class_weights(text, counts)
    everywhere = [name for name, count in counts.items() if count == rows]
    if everywhere:
        raise ValueError(
            f"options: class_weights: expected rows without class {everywhere[0]!r} to balance "
            "it, got none"
        )
    return tuple((rows - count) / count for count in counts.values())


def _by_name(text: str, names: Sequence[str]) -> tuple[float, ...]:
    entries = list(_ENTRY.finditer(text))
    numbers = [class_of(entry[1], names, "options: class_weights") for entry in entries]
    weights = [_number(entry[2]) for entry in entries]
    is_all_read = entries and sum(len(entry[0]) for entry in entries) == len(text)
    is_valid = all(0 < weight < math.inf for weight in weights)
    if not is_all_read or not is_valid or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"options: class_weights: expected {BALANCED}, or positive numbers by the classes' "
            f"names, each once, such as {names[0]}:1,{names[-1]}:2.5, got {text!r}"
        )
    given = dict(zip(numbers, weights, strict=True))
    return tuple(given.get(number, 1.0) for number in range(len(names)))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
