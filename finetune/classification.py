"""Classify a text, or a pair of texts (Devlin et al. 2018, section 4.1)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from bert.attention_entropy import attention_entropy
from bert.config import BertConfig
from bert.finetuning import BertForSequenceClassification
from bert.tokenization import Tokenizer
from bert.training.objective import Objective
from bert.training.throughput import training_operations
from finetune.config import FinetuneConfig
from finetune.data import (
    LabelledBatch,
    LabelledBatches,
    LabelledRows,
    TokenRows,
    check_trainable,
    read_rows,
)
from finetune.metrics import ClassificationScores, score

EVALUATION_TOKENS = 2048
"""Tokens of a batch that is only looked at. On a CPU more are no faster, and take more memory."""


class Classification:
    """The task: `finetune.task.Task` says what each part is for."""

    model_class = BertForSequenceClassification
    heads = ("classifier",)

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
        if train is None:
            check_trainable(rows)
        elif rows.table.is_pair != train.table.is_pair:
            kinds = ("single texts", "pairs of texts")
            raise ValueError(
                f"{path}: expected {kinds[train.table.is_pair]}, like {train.table.path}, "
                f"got {kinds[rows.table.is_pair]}"
            )
        return rows

    def head(self, encoder: BertConfig, train: LabelledRows) -> BertConfig:
        """Name the classes in the configuration."""
        if train.table.is_pair and encoder.type_vocab_size < 2:
            raise ValueError(
                "model: expected two segment types, for pairs of texts, "
                f"got type_vocab_size {encoder.type_vocab_size}"
            )
        return encoder.with_labels(list(train.class_names), "single_label_classification")

    def objective(self, model: BertForSequenceClassification) -> "ClassificationObjective":
        """Return the model with its loss."""
        return ClassificationObjective(model)

    def batches(self, train: LabelledRows, config: FinetuneConfig) -> LabelledBatches:
        """Return micro-batches of `batch_size` rows."""
        return LabelledBatches(train, config.batch_size, config.seed)

    def evaluate(
        self, model: BertForSequenceClassification, rows: LabelledRows
    ) -> ClassificationScores:
        """Score the model's predictions."""
        return score(predict_logits(model, rows.tokens), rows.labels, rows.class_names)


class ClassificationObjective(Objective[LabelledBatch]):
    """Cross-entropy of the true class, one term for each row."""

    def __init__(self, model: BertForSequenceClassification) -> None:
        super().__init__()
        self.model = model

    def counts(self, batch: LabelledBatch) -> dict[str, int]:
        """Return the number of rows."""
        return {"cross_entropy": len(batch.labels)}

    def forward(
        self, batch: LabelledBatch, dropout_seed: Int64[Tensor, ""]
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the sum over the rows; float32 at least."""
        logits = _at_least_float32(self.model.logits(batch.packed, dropout_seed))
        return {"cross_entropy": F.cross_entropy(logits, batch.labels, reduction="sum")}

    def operations(self, batch: LabelledBatch) -> int:
        """Count the matrix products."""
        lengths, classes = batch.packed.sequences.lengths, self.model.config.num_labels
        return training_operations(self.model.config, lengths, classes=classes)

    def study(self, batch: LabelledBatch) -> Mapping[str, Any]:
        """Measure how widely the heads look."""
        return attention_entropy(self.model.bert, batch.packed)


@torch.inference_mode()
def predict_logits(
    model: BertForSequenceClassification,
    rows: TokenRows,
    token_budget: int = EVALUATION_TOKENS,
) -> Float[np.ndarray, "rows labels"]:
    """Return each row's logits, in the rows' order, whatever order they are computed in.

    Rows of similar length share a batch, and a batch has at most `token_budget` tokens, so that
    memory doesn't grow with the rows. The model must be in evaluation mode.

    Returns:
        float32, or float64 from a float64 model.
    """
    assert not model.training
    device = model.classifier.weight.device
    dtype = np.float64 if model.classifier.weight.dtype == torch.float64 else np.float32
    logits = np.empty((len(rows), model.config.num_labels), dtype)
    for chosen in rows.by_length(token_budget):
        batch = rows.batch(chosen).to(device)
        logits[chosen] = _at_least_float32(model.logits(batch)).cpu().numpy()
    return logits


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
