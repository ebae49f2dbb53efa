"""Rate a text, or a pair of texts, with a number, as STS-B does (Cer et al. 2017)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from bert.config import BertConfig
from bert.finetuning import BertForSequenceClassification
from bert.tokenization import Tokenizer
from finetune.batches import EVALUATION_TOKENS
from finetune.config import Columns, FinetuneConfig
from finetune.data import LabelledRows, read_texts
from finetune.evaluation.numbers import Numbers
from finetune.labels import read_number
from finetune.metrics import require_scikit_learn
from finetune.predictor import Predictor
from finetune.sequences import (
    DIGITS,
    SequenceObjective,
    SequenceTask,
    check_kind,
    predict_logits,
    refuse_one_segment,
    refuse_other_kind,
)
from finetune.tables import USUAL_NAMES, Row
from finetune.task import Scores

LABEL_NAMES = (*USUAL_NAMES["label"], "score")
"""STS-B's file calls it score."""


@dataclass(frozen=True)
class Regression(SequenceTask):
    """One number for each text, learned by the square of the error."""

    metrics = ("pearson", "spearman")

    def read(
        self,
        path: Path,
        config: FinetuneConfig,
        tokenizer: Tokenizer,
        train: LabelledRows | None,
    ) -> LabelledRows:
        """Read a file whose labels are numbers, which are learned as they are."""
        if config.class_names is not None:
            raise ValueError(f"class_names: expected none in regression, got {config.class_names}")
        limit = config.train_rows if train is None else None
        table, tokens, labels = read_texts(
            path, config.columns, tokenizer, config.max_length, read_number, limit, None,
            LABEL_NAMES,
        )  # fmt: skip
        rows = LabelledRows(table, tokens, np.array(labels, np.float32), (), config.max_length)
        if train is not None:
            refuse_other_kind(path, rows, train)
        elif (rows.labels == rows.labels[0]).all():
            raise ValueError(f"{path}: expected labels that differ, got only {labels[0]:g}")
        return rows

    def head(self, encoder: BertConfig, train: LabelledRows) -> BertConfig:
        """Ask for one output."""
        refuse_one_segment(encoder, train)
        return encoder.with_labels(["score"], "regression")

    def purpose(self, model: BertConfig) -> str:
        """Say that it rates."""
        return "to rate texts with a number"

    def objective(
        self, model: BertForSequenceClassification, train: LabelledRows
    ) -> SequenceObjective:
        """Return the model with the squared error, a term for each row."""
        return SequenceObjective(model, "squared_error", squared_error)

    def evaluate(
        self,
        model: BertForSequenceClassification,
        rows: LabelledRows,
        batch_tokens: int = EVALUATION_TOKENS,
    ) -> "RegressionScores":
        """Hold the predictions against the labels."""
        return score_numbers(predict_logits(model, rows.tokens, batch_tokens)[:, 0], rows.labels)

    def read_again(
        self,
        path: Path,
        columns: Columns,
        predictor: Predictor,
        change: Callable[[Row], Row] | None = None,
    ) -> LabelledRows:
        """Read a file whose labels are numbers."""
        length = predictor.max_length
        table, tokens, labels = read_texts(
            path, columns, predictor.tokenizer, length, read_number, None, change, LABEL_NAMES
        )
        rows = LabelledRows(table, tokens, np.array(labels, np.float32), (), length)
        check_kind(predictor.model.config, rows)
        return rows

    def evidence(self, rows: LabelledRows, scores: Scores) -> Numbers:
        """Return the numbers."""
        assert isinstance(scores, RegressionScores)
        return Numbers(rows.labels.astype(np.float64), scores.predicted)

    def check_model(self, model: BertConfig) -> None:
        """Refuse a model of another problem, or of several outputs."""
        if model.problem_type not in (None, "regression"):
            raise ValueError(f"model: expected regression, got problem_type {model.problem_type}")
        if model.num_labels != 1:
            raise ValueError(f"model: expected one output, got {model.num_labels}")

    def answers(
        self, logits: Float[np.ndarray, "rows labels"], model: BertConfig
    ) -> list[dict[str, Any]]:
        """Give the number."""
        return [{"score": round(float(value), DIGITS)} for value in logits[:, 0]]


def squared_error(
    logits: Float[Tensor, "seqs 1"], labels: Float[Tensor, " seqs"]
) -> Float[Tensor, ""]:
    """Return the sum over the rows; in the logits' dtype."""
    return F.mse_loss(logits.squeeze(1), labels.to(logits.dtype), reduction="sum")


@dataclass(frozen=True)
class RegressionScores:
    """What predicted numbers are worth."""

    pearson: float
    """Pearson's correlation with the labels; 0 where either are all the same."""
    spearman: float
    """Spearman's, that of the ranks; likewise."""
    mse: float
    """Mean squared error."""
    mean_error: float
    """Mean absolute error, in the labels' unit."""
    predicted: Float[np.ndarray, " rows"] = field(repr=False, compare=False)
    """What was scored; float64."""

    @property
    def text(self) -> str:
        """All of it, to print."""
        return (
            f"Pearson correlation   {self.pearson:.4f}\n"
            f"Spearman correlation  {self.spearman:.4f}\n"
            f"mean squared error    {self.mse:.4f}\n"
            f"mean absolute error   {self.mean_error:.4f}\n"
        )

    def summary(self) -> dict[str, float]:
        """Return the numbers that a log line holds."""
        return {
            "pearson": self.pearson,
            "spearman": self.spearman,
            "mse": self.mse,
            "mean_error": self.mean_error,
        }

    def as_json(self) -> dict[str, float]:
        """Return all numbers."""
        return self.summary()


def score_numbers(
    predicted: Float[np.ndarray, " rows"], labels: Float[np.ndarray, " rows"]
) -> RegressionScores:
    """Score predicted numbers, in float64; scipy, which scikit-learn brings, has the correlations.

    Raises:
        ModuleNotFoundError: scikit-learn is missing.
    """
    require_scikit_learn()
    stats: Any = import_module("scipy.stats")
    found, wanted = predicted.astype(np.float64), labels.astype(np.float64)
    varies = bool((found != found[0]).any() and (wanted != wanted[0]).any())
    return RegressionScores(
        pearson=float(stats.pearsonr(found, wanted).statistic) if varies else 0.0,
        spearman=float(stats.spearmanr(found, wanted).statistic) if varies else 0.0,
        mse=float(((found - wanted) ** 2).mean()),
        mean_error=float(np.abs(found - wanted).mean()),
        predicted=found,
    )
