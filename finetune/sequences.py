"""What the tasks on whole texts, or pairs of texts, have in common (Devlin et al. 2018, 4.1).

Each has a linear map on the pooled vector, and differs from the others in what a label is, in
the loss, and in what it says of the logits.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bert.attention_entropy import attention_entropy
from bert.config import BertConfig
from bert.finetuning import BertForMultipleChoice, BertForSequenceClassification
from bert.text import TextReport
from bert.training.objective import Objective
from bert.training.throughput import training_operations
from finetune.batches import EVALUATION_TOKENS, ShuffledBatches, TokenRows
from finetune.config import FinetuneConfig
from finetune.data import LabelledBatch, LabelledRows, check_trainable
from finetune.predictor import Predictor
from finetune.tables import USUAL_NAMES
from finetune.task import Answer, Task

DIGITS = 6
"""Of a number that is printed of a row."""

_OF_OTHER_KIND = (
    "expected a pair of texts, as the model learned from, got one; a TAB parts them, and in JSON "
    "they are text_a and text_b",
    "expected a single text, as the model learned from, got a pair",
)
"""What is said of a single text, and of a pair."""

Pair = tuple[str, str | None]
"""A text and None, or a pair of texts."""


@dataclass(frozen=True)
class SequenceTask(Task[LabelledRows, Pair]):
    """A task on texts or pairs of texts; a subclass says what labels and logits mean."""

    model_class = BertForSequenceClassification
    pipeline = "text-classification"
    takes_noise = True

    @abstractmethod
    def answers(
        self, logits: Float[np.ndarray, "rows labels"], model: BertConfig
    ) -> list[dict[str, Any]]:
        """Say of each row what its logits, finite and in float64, mean."""

    def batches(self, train: LabelledRows, config: FinetuneConfig) -> ShuffledBatches:
        """Return micro-batches of `batch_size` rows."""
        return ShuffledBatches(train, config.batch_size, config.seed)

    def facts(self, train: LabelledRows) -> dict[str, Any]:
        """Keep whether the rows are pairs."""
        return {"is_pair": train.table.is_pair}

    def texts(self, rows: LabelledRows) -> Iterator[dict[str, Any]]:
        """Yield each row's line and its texts."""
        for row in rows.table.rows(TextReport(), lambda value, place: value):
            yield {
                "line": row.line,
                "text_a": row.text_a,
                **({} if row.text_b is None else {"text_b": row.text_b}),
            }

    def parse(self, line: str | dict[str, Any]) -> Pair:
        """Read a text, or a pair: with a TAB between them, or by the usual names of columns."""
        return _from_text(line) if isinstance(line, str) else _from_record(line)

    def answer(self, predictor: Predictor, examples: Sequence[Pair]) -> list[Answer]:
        """Answer texts and pairs, each kind together."""
        answers: list[Answer] = [""] * len(examples)
        config = predictor.model.config
        for is_pair in (False, True):
            chosen = [i for i, (_, b) in enumerate(examples) if (b is not None) == is_pair]
            refusal = self.why_no_pairs(config) if is_pair else None
            if refusal is not None:
                for i in chosen:
                    answers[i] = f"expected a single text: {refusal}"
            elif chosen and learned_pairs(config) is (not is_pair):
                for i in chosen:
                    answers[i] = _OF_OTHER_KIND[is_pair]
            elif chosen:
                logits = self.logits(predictor, [examples[i] for i in chosen], is_pair)
                said = self.answers(np.nan_to_num(logits, posinf=0, neginf=0), config)
                for i, row, answer in zip(chosen, logits, said, strict=True):
                    answers[i] = answer if np.isfinite(row).all() else predictor.NOT_FINITE
        return answers

    def why_no_pairs(self, model: BertConfig) -> str | None:
        """Say why pairs can't be answered; None where they can."""
        return "the model has one segment type" if model.type_vocab_size < 2 else None

    def logits(
        self, predictor: Predictor, rows: Sequence[Pair], is_pair: bool
    ) -> Float[np.ndarray, "rows labels"]:
        """Compute the logits of rows that are all of one kind; float64."""
        encodings = predictor.tokenizer.encode_batch(
            [text_a for text_a, _ in rows],
            [text_b or "" for _, text_b in rows] if is_pair else None,
            max_length=predictor.max_length,
        )
        tokens = TokenRows.from_encodings(encodings)
        predictor.full += int((tokens.lengths == predictor.max_length).sum())
        with predictor.hardware.autocast():
            logits = predict_logits(predictor.model, tokens, predictor.batch_tokens)
        return logits.astype(np.float64)


class SequenceObjective(Objective[LabelledBatch]):
    """A loss of logits and labels.

    Args:
        model: the encoder with its head.
        name: the loss's, for the log.
        loss: the sum over the labels, of logits in float32 at least; takes the batch's weights
            too, if it has any, and so does `terms`.
        terms: what the sum is divided by: the number of the labels, or their weights.
    """

    def __init__(
        self,
        model: BertForSequenceClassification,
        name: str,
        loss: Callable[..., Tensor],
        terms: Callable[..., int | float] = Tensor.numel,
    ) -> None:
        super().__init__()
        self.model, self.name, self.loss, self.terms = model, name, loss, terms

    def counts(self, batch: LabelledBatch) -> dict[str, int | float]:
        """Return the number of the labels, or their weights."""
        return {self.name: self.terms(batch.labels, *_weights(batch))}

    def forward(
        self, batch: LabelledBatch, dropout_seed: Int64[Tensor, ""]
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the sum over the labels; float32 at least."""
        logits = at_least_float32(self.model.logits(batch.packed, dropout_seed))
        return {self.name: self.loss(logits, batch.labels, *_weights(batch))}

    def operations(self, batch: LabelledBatch) -> int:
        """Count the matrix products."""
        lengths, classes = batch.packed.sequences.lengths, self.model.config.num_labels
        frozen = self.model.bert.frozen_layers
        return training_operations(
            self.model.config, lengths, classes=classes, frozen_layers=frozen
        )

    def study(self, batch: LabelledBatch) -> Mapping[str, Any]:
        """Measure how widely the heads look."""
        return attention_entropy(self.model.bert, batch.packed)


def _weights(batch: LabelledBatch) -> tuple[Tensor, ...]:
    return () if batch.weights is None else (batch.weights,)


def hold_against(train: LabelledRows | None, path: Path, rows: LabelledRows) -> None:
    """Refuse a train file that nothing can be learned from (no `train`), or a file unlike it.

    Raises:
        ValueError: the message names the file.
    """
    if train is None:
        check_trainable(rows)
    else:
        refuse_other_kind(path, rows, train)


def refuse_other_kind(path: Path, rows: LabelledRows, train: LabelledRows) -> None:
    """Refuse pairs of texts where single ones were learned from, and the other way round.

    Raises:
        ValueError: the message names both files.
    """
    if rows.table.is_pair != train.table.is_pair:
        kinds = ("single texts", "pairs of texts")
        raise ValueError(
            f"{path}: expected {kinds[train.table.is_pair]}, like {train.table.path}, "
            f"got {kinds[rows.table.is_pair]}"
        )


def learned_pairs(model: BertConfig) -> bool | None:
    """Return whether a model learned from pairs of texts; None: it doesn't say."""
    stored: Any = (model.task_specific_params or {}).get(model.finetuning_task or "")
    known = stored.get("is_pair") if isinstance(stored, dict) else None
    return known if isinstance(known, bool) else None


def check_kind(model: BertConfig, rows: LabelledRows) -> None:
    """Refuse rows of another kind than a saved model learned from: pairs, or single texts.

    Raises:
        ValueError: the message names the file; or the model has one segment type.
    """
    refuse_one_segment(model, rows)
    if learned_pairs(model) is (not rows.table.is_pair):
        kinds = ("single texts", "pairs of texts")
        raise ValueError(
            f"{rows.table.path}: expected {kinds[not rows.table.is_pair]}, as the model learned "
            f"from, got {kinds[rows.table.is_pair]}"
        )


def refuse_one_segment(encoder: BertConfig, train: LabelledRows) -> None:
    """Refuse pairs of texts where the model can't tell the second from the first.

    Raises:
        ValueError: the model has one segment type.
    """
    if train.table.is_pair and encoder.type_vocab_size < 2:
        raise ValueError(
            "model: expected two segment types, for pairs of texts, "
            f"got type_vocab_size {encoder.type_vocab_size}"
        )


@torch.inference_mode()
def predict_logits(
    model: BertForSequenceClassification | BertForMultipleChoice,
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
    logits = np.empty((len(rows), model.classifier.out_features), dtype)
    for chosen in rows.by_length(token_budget):
        batch = rows.batch(chosen).to(device)
        logits[chosen] = at_least_float32(model.logits(batch)).cpu().numpy()
    return logits


def at_least_float32(logits: Tensor) -> Tensor:
    """Widen 16 bits: a loss is computed in 32 at least."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


# --- the input of `bert predict` -------------------------------------------------------------


def _from_text(line: str) -> Pair:
    texts = line.split("\t")
    if len(texts) > 2:
        raise ValueError(f"expected a text, or two with a TAB between, got {len(texts)}")
    return texts[0], texts[1] if len(texts) == 2 else None


def _from_record(record: dict[str, Any]) -> Pair:
    text_a, text_b = (_text_in(record, field) for field in ("text_a", "text_b"))
    if text_a is None:
        raise ValueError(f"expected a key {', '.join(USUAL_NAMES['text_a'])}")
    return text_a, text_b


def _text_in(record: dict[str, Any], field: str) -> str | None:
    """Return the text under one of the usual names of a column; None where there is none."""
    found = [name for name in USUAL_NAMES[field] if name in record]
    if len(found) > 1:
        raise ValueError(f"expected one text, got {' and '.join(found)}")
    if not found:
        return None
    if not isinstance(record[found[0]], str):
        raise ValueError(f"{found[0]}: expected a text, got {type(record[found[0]]).__name__}")
    return record[found[0]]
