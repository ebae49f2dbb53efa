"""Tell the class of a text, or of a pair of texts (Devlin et al. 2018, section 4.1)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from bert.config import BertConfig
from bert.finetuning import BertForSequenceClassification
from bert.tokenization import Tokenizer
from finetune.batches import EVALUATION_TOKENS, ShuffledBatches
from finetune.config import Columns, FinetuneConfig
from finetune.data import LabelledRows, read_rows
from finetune.evaluation.predictions import Predictions
from finetune.losses import BALANCED, CrossEntropy, class_weights
from finetune.metrics import ClassificationScores, score
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
class Classification(SequenceTask):
    """One class for each text: `finetune.task.Task` says what each part is for."""

    class_weights: str | None = None
    """What a row counts in training, by its class: balanced, or numbers such as bad:1,good:2.5;
    None: each the same."""
    label_smoothing: float = 0.0
    """Share of the target that all classes have alike (Szegedy et al. 2016, section 7)."""
    resample: bool = False
    """Whether an epoch has as many rows of each class: those of rare ones come more often."""

    metrics = ("accuracy", "macro_f1", "mcc")

    def __post_init__(self) -> None:
        """Check the options."""
        is_share = 0 <= self.label_smoothing < 1
        self._require("label_smoothing", "a share in [0, 1)", is_share)
        self._require(
            "class_weights",
            "other weights than balanced with resample, which balances the classes already",
            not self.resample or self.class_weights != BALANCED,
        )

    def read(
        self,
        path: Path,
        config: FinetuneConfig,
        tokenizer: Tokenizer,
        train: LabelledRows | None,
    ) -> LabelledRows:
        """Read a file of labelled rows; the train file gives the classes."""
        names = config.class_names if train is None else train.class_names
        limit = config.train_rows if train is None else None
        rows = read_rows(path, config.columns, tokenizer, config.max_length, names, limit)
        hold_against(train, path, rows)
        return rows

    def head(self, encoder: BertConfig, train: LabelledRows) -> BertConfig:
        """Name the classes in the configuration."""
        refuse_one_segment(encoder, train)
        class_weights(self.class_weights, train.class_counts)
        return encoder.with_labels(list(train.class_names), "single_label_classification")

    def purpose(self, model: BertConfig) -> str:
        """Name the classes."""
        return f"to tell: {', '.join(model.id2label.values())}"

    def objective(
        self, model: BertForSequenceClassification, train: LabelledRows
    ) -> SequenceObjective:
        """Return the model with the cross-entropy of the true class, a term for each row."""
        weights = class_weights(self.class_weights, train.class_counts)
        loss = CrossEntropy(weights, self.label_smoothing)
        return SequenceObjective(model, "cross_entropy", loss, loss.terms)

    def batches(self, train: LabelledRows, config: FinetuneConfig) -> ShuffledBatches:
        """Return micro-batches of `batch_size` rows, of each class as many if asked for."""
        classes = train.labels if self.resample else None
        return ShuffledBatches(train, config.batch_size, config.seed, classes)

    def evaluate(
        self,
        model: BertForSequenceClassification,
        rows: LabelledRows,
        batch_tokens: int = EVALUATION_TOKENS,
    ) -> ClassificationScores:
        """Score the model's predictions."""
        logits = predict_logits(model, rows.tokens, batch_tokens)
        return score(logits, rows.labels, rows.class_names)

    def read_again(
        self,
        path: Path,
        columns: Columns,
        predictor: Predictor,
        change: Callable[[Row], Row] | None = None,
    ) -> LabelledRows:
        """Read a file whose classes are the model's."""
        config, tokenizer = predictor.model.config, predictor.tokenizer
        names = tuple(config.id2label.values())
        rows = read_rows(path, columns, tokenizer, predictor.max_length, names, change=change)
        check_kind(config, rows)
        return rows

    def evidence(self, rows: LabelledRows, scores: Scores) -> Predictions:
        """Return the predictions."""
        assert isinstance(scores, ClassificationScores)
        return Predictions(rows.class_names, rows.labels, scores.logits)

    def check_model(self, model: BertConfig) -> None:
        """Refuse a model of another problem, or of one class."""
        if model.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"model: expected a classifier, got problem_type {model.problem_type}"
            )
        if model.num_labels < 2:
            raise ValueError("model: expected two classes or more, got one")

    def answers(
        self, logits: Float[np.ndarray, "rows labels"], model: BertConfig
    ) -> list[dict[str, Any]]:
        """Give the likeliest class, and the probabilities of all."""
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = exponentials / exponentials.sum(-1, keepdims=True)
        names = list(model.id2label.values())
        return [
            {
                "label": names[int(row.argmax())],
                "probabilities": {
                    name: round(float(p), DIGITS) for name, p in zip(names, row, strict=True)
                },
            }
            for row in probabilities
        ]
