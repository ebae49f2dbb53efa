"""How good predicted entities are: seqeval's numbers, as values and as a text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from finetune.entities.iob import repair
from finetune.metrics import require_seqeval


@dataclass(frozen=True)
class EntityScores:
    """What predicted entities are worth; one is right if its words and its type are."""

    f1: float
    """Over all entities: the harmonic mean of precision and recall."""
    precision: float
    recall: float
    macro_f1: float
    """The mean of the types' F1."""
    accuracy: float
    """Share of the words whose tag is right; most are O."""
    loss: float
    """Mean cross-entropy of a word's tag, in nats."""
    per_type: dict[str, dict[str, float]]
    """seqeval's classification_report: precision, recall, f1-score and support."""
    text: str
    """All of it, to print."""
    tags: Sequence[Sequence[str]] = field(repr=False, compare=False)
    """The predicted tags of each sentence, repaired."""
    losses: Float[np.ndarray, " rows"] | None = field(default=None, repr=False, compare=False)
    """The sum of the words' cross-entropies in each sentence, where it is known."""

    def summary(self) -> dict[str, float]:
        """Return the numbers that a log line holds."""
        names = ("f1", "precision", "recall", "macro_f1", "accuracy", "loss")
        return {name: getattr(self, name) for name in names}

    def as_json(self) -> dict[str, Any]:
        """Return all numbers."""
        return {**self.summary(), "per_type": self.per_type}


def score_tags(found: list[list[str]], gold: list[list[str]], loss: float) -> EntityScores:
    """Score sentences' tags against the true ones, which are IOB2; the predicted are repaired.

    Raises:
        ModuleNotFoundError: seqeval is missing.
    """
    metrics = require_seqeval()
    mended = [repair(tags) for tags in found]
    predicted = [tags for tags, _ in mended]
    numbers = metrics.classification_report(gold, predicted, output_dict=True, zero_division=0)
    report = metrics.classification_report(gold, predicted, digits=4, zero_division=0)
    accuracy = float(metrics.accuracy_score(gold, predicted))
    repaired = sum(count for _, count in mended)
    averages = {"micro avg", "macro avg", "weighted avg"}
    return EntityScores(
        f1=float(numbers["micro avg"]["f1-score"]),
        precision=float(numbers["micro avg"]["precision"]),
        recall=float(numbers["micro avg"]["recall"]),
        macro_f1=float(numbers["macro avg"]["f1-score"]),
        accuracy=accuracy,
        loss=loss,
        per_type={
            kind: {k: float(v) for k, v in row.items()}
            for kind, row in numbers.items()
            if kind not in averages
        },
        text=(
            f"{report}\nWords with the right tag {accuracy:.4f}, cross-entropy {loss:.4f} nats; "
            f"{repaired:,} predicted tags were not IOB2, and were repaired\n"
        ),
        tags=predicted,
    )
