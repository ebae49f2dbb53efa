"""Tell the class of a text, or of a pair of texts (Devlin et al. 2018, section 4.1).

With the option `window` a text that is too long for the model is read in several windows, and its
answer is pooled from theirs; finetune/long_texts.py says how.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Float

from bert.config import BertConfig
from bert.finetuning import BertForSequenceClassification
from bert.tokenization import Tokenizer
from finetune.batches import EVALUATION_TOKENS, ShuffledBatches, TokenRows
from finetune.config import Columns, FinetuneConfig
from finetune.data import LabelledRows, read_rows
from finetune.evaluation.predictions import Predictions
from finetune.long_texts import Pooling, WindowedRows, cut_windows, pool, windowed
from finetune.losses import BALANCED, CrossEntropy, class_weights
from finetune.metrics import ClassificationScores, score
from finetune.predictor import Predictor
from finetune.sequences import (
    DIGITS,
    Pair,
    SequenceObjective,
    SequenceTask,
    check_kind,
    hold_against,
    predict_logits,
    refuse_one_segment,
)
from finetune.tables import Row
from finetune.task import Scores

NO_PAIRS = "long ones are read in windows"


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
    window: int | None = None
    """Tokens of a window, as max_length; a longer text is read in several. None: it is cut."""
    stride: int | None = None
    """Tokens that consecutive windows of a text share; None: a third of a window."""
    pooling: Pooling = "mean"
    """What a text's windows answer together: the mean of their probabilities, or the max."""

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
        self._require("window", "8 tokens or more", self.window is None or self.window >= 8)
        self._require("pooling", "mean or max", self.pooling in get_args(Pooling))
        if self.window is None:
            self._require("stride", "none without window", self.stride is None)
            self._require("pooling", "mean without window", self.pooling == "mean")
        else:
            self._require("resample", "false with window", not self.resample)
        if self.window is not None and self.stride is not None:
            most = self.window - 3
            self._require(
                "stride",
                f"0 to {most}, for windows of {self.window} tokens",
                0 <= self.stride <= most,
            )

    # --- to train ------------------------------------------------------------------------

    def read(
        self,
        path: Path,
        config: FinetuneConfig,
        tokenizer: Tokenizer,
        train: LabelledRows | None,
    ) -> LabelledRows:
        """Read a file of labelled rows; the train file gives the classes."""
        if self.window not in (None, config.max_length):
            raise ValueError(
                f"options: window: expected {config.max_length}, as max_length, got {self.window}"
            )
        names = config.class_names if train is None else train.class_names
        limit = config.train_rows if train is None else None
        rows = self._read(path, config.columns, tokenizer, config.max_length, names, limit)
        hold_against(train, path, rows)
        return rows

    def _read(
        self,
        path: Path,
        columns: Columns,
        tokenizer: Tokenizer,
        max_length: int,
        class_names: Sequence[str] | None,
        limit: int | None = None,
        change: Callable[[Row], Row] | None = None,
    ) -> LabelledRows:
        """Read a file as `finetune.data.read_rows` does; with `window` long texts in windows.

        Raises:
            ValueError: as it does; or there are windows, and the rows are pairs.
        """
        if self.window is None:
            return read_rows(path, columns, tokenizer, max_length, class_names, limit, change)
        window = self._window(max_length)
        rows = read_rows(path, columns, tokenizer, None, class_names, limit, change)
        if rows.table.is_pair:
            raise ValueError(f"{path}: expected single texts, since {NO_PAIRS}, got pairs")
        return windowed(rows, *window)

    def head(self, encoder: BertConfig, train: LabelledRows) -> BertConfig:
        """Name the classes in the configuration."""
        refuse_one_segment(encoder, train)
        class_weights(self.class_weights, train.class_counts)
        return encoder.with_labels(list(train.class_names), "single_label_classification")

    def purpose(self, model: BertConfig) -> str:
        """Name the classes."""
        return f"to tell: {', '.join(model.id2label.values())}"

    def when_long(self, max_length: int) -> str:
        """Say that a text is cut, or how its windows answer."""
        if self.window is None:
            return super().when_long(max_length)
        window, stride = self._window(max_length)
        pooled = {"mean": "mean", "max": "greatest"}[self.pooling]
        return (
            f"A text of more than {window} tokens is read in windows that share {stride}, and the "
            f"{pooled} of their probabilities answers; transformers' pipeline does not do that."
        )

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
        if isinstance(rows, WindowedRows):
            logits = pool(logits, rows.edges, self.pooling)
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
        rows = self._read(path, columns, tokenizer, predictor.max_length, names, change=change)
        check_kind(config, rows)
        return rows

    def evidence(self, rows: LabelledRows, scores: Scores) -> Predictions:
        """Return the predictions."""
        assert isinstance(scores, ClassificationScores)
        return Predictions(rows.class_names, rows.labels, scores.logits)

    # --- to predict ----------------------------------------------------------------------

    def check_model(self, model: BertConfig) -> None:
        """Refuse a model of another problem, or of one class."""
        if model.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"model: expected a classifier, got problem_type {model.problem_type}"
            )
        if model.num_labels < 2:
            raise ValueError("model: expected two classes or more, got one")

    def why_no_pairs(self, model: BertConfig) -> str | None:
        """Say why pairs can't be answered; None where they can."""
        return super().why_no_pairs(model) if self.window is None else NO_PAIRS

    def logits(
        self, predictor: Predictor, rows: Sequence[Pair], is_pair: bool
    ) -> Float[np.ndarray, "rows labels"]:
        """Compute the logits of rows that are all of one kind, those of windows pooled."""
        if self.window is None:
            return super().logits(predictor, rows, is_pair)
        window = self._window(predictor.max_length)
        encodings = predictor.tokenizer.encode_batch([text for text, _ in rows])
        tokens, edges = cut_windows(TokenRows.from_encodings(encodings), *window)
        with predictor.hardware.autocast():
            logits = predict_logits(predictor.model, tokens, predictor.batch_tokens)
        return pool(logits, edges, self.pooling).astype(np.float64)

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

    def _window(self, max_length: int) -> tuple[int, int]:
        """Return the tokens of a window, and those that two share.

        Raises:
            ValueError: the window is longer than `max_length`.
        """
        assert self.window is not None
        if self.window > max_length:
            raise ValueError(
                f"max_length: expected at least {self.window}, the window that the model was "
                f"trained with, got {max_length}"
            )
        return self.window, self.window // 3 if self.stride is None else self.stride
