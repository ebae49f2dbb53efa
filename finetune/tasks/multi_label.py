"""Tell all the classes of a text, or of a pair of texts: none, one or several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from bert.config import BertConfig
from bert.finetuning import BertForSequenceClassification
from bert.tokenization import Tokenizer
from finetune.batches import EVALUATION_TOKENS
from finetune.config import Columns, FinetuneConfig
from finetune.data import LabelledRows, read_texts
from finetune.evaluation.class_sets import ClassSets
from finetune.labels import class_of, name_classes, read_several
from finetune.losses import BinaryCrossEntropy, yes_weights
from finetune.metrics import require_scikit_learn
from finetune.predictor import Predictor
from finetune.sequences import (
    DIGITS,
    SequenceObjective,
    SequenceTask,
    check_kind,
    hold_against,
    predict_logits,
    refuse_one_segment,
)
from finetune.tables import Row
from finetune.task import Scores


@dataclass(frozen=True)
class MultiLabel(SequenceTask):
    """Several classes for each text, each learned as a yes or a no."""

    threshold: float = 0.5
    """Probability from which on a class is predicted."""
    separator: str = ","
    """What stands between the classes of a row; a .jsonl may have lists instead."""
    class_weights: str | None = None
    """What a yes counts in training, by its class, where a no counts 1: balanced, or numbers
    such as food:2,price:3.5; None: each yes 1."""

    metrics = ("micro_f1", "macro_f1", "subset_accuracy")

    def __post_init__(self) -> None:
        """Check the options."""
        self._require("threshold", "a probability in (0, 1)", 0 < self.threshold < 1)
        is_text = bool(self.separator.strip())
        self._require("separator", "a text of something else than spaces", is_text)

    def read(
        self,
        path: Path,
        config: FinetuneConfig,
        tokenizer: Tokenizer,
        train: LabelledRows | None,
    ) -> LabelledRows:
        """Read a file whose rows have lists of classes; the train file gives the classes."""
        names = config.class_names if train is None else train.class_names
        limit = config.train_rows if train is None else None
        rows = self._read(path, config.columns, tokenizer, config.max_length, names, limit)
        hold_against(train, path, rows)
        return rows

    def read_again(
        self,
        path: Path,
        columns: Columns,
        predictor: Predictor,
        change: Callable[[Row], Row] | None = None,
    ) -> LabelledRows:
        """Read a file whose classes are the model's."""
        config = predictor.model.config
        names, length = tuple(config.id2label.values()), predictor.max_length
        rows = self._read(path, columns, predictor.tokenizer, length, names, None, change)
        check_kind(config, rows)
        return rows

    def _read(
        self,
        path: Path,
        columns: Columns,
        tokenizer: Tokenizer,
        max_length: int,
        names: Sequence[str] | None,
        limit: int | None,
        change: Callable[[Row], Row] | None = None,
    ) -> LabelledRows:
        """Read a file; where no names are given, it gives them."""
        places: dict[str, str] = {}

        def read_labels(value: Any, place: str) -> list[str]:
            labels = read_several(value, place, self.separator)
            for label in labels:
                places.setdefault(label, place)
            return labels

        table, tokens, lists = read_texts(
            path, columns, tokenizer, max_length, read_labels, limit, change
        )
        names = names or (name_classes(places) if places else ())
        classes = {label: class_of(label, names, place) for label, place in places.items()}
        sets = np.zeros((len(lists), len(names)), np.float32)
        for row, labels in enumerate(lists):
            sets[row, [classes[label] for label in labels]] = 1
        return LabelledRows(table, tokens, sets, tuple(names), max_length)

    def head(self, encoder: BertConfig, train: LabelledRows) -> BertConfig:
        """Name the classes in the configuration."""
        refuse_one_segment(encoder, train)
        yes_weights(self.class_weights, train.class_counts, len(train))
        return encoder.with_labels(list(train.class_names), "multi_label_classification")

    def purpose(self, model: BertConfig) -> str:
        """Name the classes and the threshold."""
        return (
            f"to tell which of these a text is, any number of them: "
            f"{', '.join(model.id2label.values())}; predicted is what has a probability of "
            f"{self.threshold:g} or more"
        )

    def objective(
        self, model: BertForSequenceClassification, train: LabelledRows
    ) -> SequenceObjective:
        """Return the model with the binary cross-entropy, a term for each class of each row."""
        weights = yes_weights(self.class_weights, train.class_counts, len(train))
        return SequenceObjective(model, "binary_cross_entropy", BinaryCrossEntropy(weights))

    def evaluate(
        self,
        model: BertForSequenceClassification,
        rows: LabelledRows,
        batch_tokens: int = EVALUATION_TOKENS,
    ) -> "MultiLabelScores":
        """Score the predictions from the threshold on."""
        logits = predict_logits(model, rows.tokens, batch_tokens)
        return score_sets(logits, rows.labels, rows.class_names, self.threshold)

    def evidence(self, rows: LabelledRows, scores: Scores) -> ClassSets:
        """Return the sets of classes."""
        assert isinstance(scores, MultiLabelScores)
        logits = scores.logits.astype(np.float64)
        probabilities = sigmoid(logits)
        return ClassSets(
            rows.class_names,
            rows.labels > 0,
            probabilities >= self.threshold,
            probabilities,
            (np.logaddexp(0, logits) - logits * rows.labels).mean(1),
        )

    def check_model(self, model: BertConfig) -> None:
        """Refuse a model of another problem."""
        if model.problem_type != "multi_label_classification":
            raise ValueError(
                "model: expected problem_type multi_label_classification, "
                f"got {model.problem_type}"
            )

    def answers(
        self, logits: Float[np.ndarray, "rows labels"], model: BertConfig
    ) -> list[dict[str, Any]]:
        """Give the classes from the threshold on, and the probabilities of all."""
        names = list(model.id2label.values())
        return [
            {
                "labels": [n for n, p in zip(names, row, strict=True) if p >= self.threshold],
                "probabilities": {
                    n: round(float(p), DIGITS) for n, p in zip(names, row, strict=True)
                },
            }
            for row in sigmoid(logits)
        ]


def sigmoid(logits: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Turn logits into probabilities without overflow."""
    return np.exp(-np.logaddexp(0, -logits))


@dataclass(frozen=True)
class MultiLabelScores:
    """What predicted sets of classes are worth."""

    micro_f1: float
    """F1 over all decisions, a yes or no for each class of each row."""
    macro_f1: float
    """The mean of the classes' F1: each class counts the same, however rare."""
    subset_accuracy: float
    """Share of the rows whose set is right as a whole."""
    loss: float
    """Mean binary cross-entropy, in nats."""
    threshold: float
    per_class: dict[str, dict[str, float]]
    """scikit-learn's classification_report: precision, recall, f1-score and support."""
    text: str
    """All of it, to print."""
    logits: Float[np.ndarray, "rows labels"] = field(repr=False, compare=False)
    """What was scored."""

    def summary(self) -> dict[str, float]:
        """Return the numbers that a log line holds."""
        return {
            "micro_f1": self.micro_f1,
            "macro_f1": self.macro_f1,
            "subset_accuracy": self.subset_accuracy,
            "loss": self.loss,
        }

    def as_json(self) -> dict[str, Any]:
        """Return all numbers."""
        return {**self.summary(), "threshold": self.threshold, "per_class": self.per_class}


def score_sets(
    logits: Float[np.ndarray, "rows labels"],
    sets: Float[np.ndarray, "rows labels"],
    class_names: tuple[str, ...],
    threshold: float,
) -> MultiLabelScores:
    """Score logits against sets of classes; what is never met has a score of 0, not NaN.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
    """
    metrics = require_scikit_learn()
    wide = logits.astype(np.float64)
    true, predicted = sets.astype(np.int64), (sigmoid(wide) >= threshold).astype(np.int64)
    how: dict[str, Any] = {"target_names": list(class_names), "zero_division": 0}
    report = metrics.classification_report(true, predicted, digits=4, **how)
    numbers = metrics.classification_report(true, predicted, output_dict=True, **how)
    accuracy = float(metrics.accuracy_score(true, predicted))
    loss = float((np.logaddexp(0, wide) - wide * sets).mean())
    return MultiLabelScores(
        micro_f1=float(numbers["micro avg"]["f1-score"]),
        macro_f1=float(numbers["macro avg"]["f1-score"]),
        subset_accuracy=accuracy,
        loss=loss,
        threshold=threshold,
        per_class={name: {k: float(v) for k, v in numbers[name].items()} for name in class_names},
        text=(
            f"{report}\nA class is predicted from a probability of {threshold:g} on. Whole sets "
            f"right: {accuracy:.4f}; binary cross-entropy {loss:.4f} nats\n"
        ),
        logits=logits,
    )
