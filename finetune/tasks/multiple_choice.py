"""Choose the right one of a question's choices (Devlin et al. 2018, section 4.4).

Each choice is a sequence of its own, the premise and the choice (finetune/choices/files.py), and
gets one logit; a softmax over the choices of a question gives their probabilities, as in Hugging
Face's BertForMultipleChoice. Questions of two and of five choices may share a file, and a batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from bert.attention_entropy import attention_entropy
from bert.config import BertConfig
from bert.finetuning import BertForMultipleChoice
from bert.text import SURROGATE, TextReport
from bert.tokenization import Tokenizer
from bert.training.objective import Objective
from bert.training.throughput import training_operations
from finetune.batches import EVALUATION_TOKENS, ShuffledBatches, TokenRows
from finetune.choices.files import ChoiceColumns, Choices
from finetune.choices.rows import ChoiceBatch, ChoiceRows, encode_choices, read_choice_rows
from finetune.config import Columns, FinetuneConfig
from finetune.evaluation.choices import ChosenTexts
from finetune.predictor import Predictor
from finetune.segments import segment_cross_entropy
from finetune.sequences import DIGITS, at_least_float32, predict_logits
from finetune.tables import Row, records
from finetune.task import Answer, Scores, Task


@dataclass(frozen=True)
class ChoiceScores:
    """What predicted choices are worth."""

    accuracy: float
    chance: float
    """What guessing would give."""
    loss: float
    """Mean cross-entropy, in nats."""
    questions: int
    log_probabilities: tuple[Float[np.ndarray, " choices"], ...] = field(repr=False, compare=False)
    """Of each question's choices; float64."""

    @property
    def text(self) -> str:
        """All of it, to print."""
        return (
            f"accuracy       {self.accuracy:.4f} of {self.questions} questions\n"
            f"by guessing    {self.chance:.4f}\n"
            f"cross-entropy  {self.loss:.4f} nats\n"
        )

    def summary(self) -> dict[str, float]:
        """Return the numbers that a log line holds."""
        return {"accuracy": self.accuracy, "loss": self.loss}

    def as_json(self) -> dict[str, float]:
        """Return all numbers."""
        return {**self.summary(), "chance": self.chance, "questions": self.questions}


@dataclass(frozen=True)
class MultipleChoice(Task[ChoiceRows, Choices]):
    """The right one of the choices that each question has."""

    choices: str | None = None
    """The column that holds lists of choices, or those that hold one each, with commas between;
    None: choices, options or endings, or choice1, choice2, …"""
    label_smoothing: float = 0.0
    """Share of the target that all choices of a question have alike."""

    model_class = BertForMultipleChoice
    metrics = ("accuracy",)
    pipeline = "multiple-choice"

    def __post_init__(self) -> None:
        """Check the options."""
        is_share = 0 <= self.label_smoothing < 1
        self._require("label_smoothing", "a share in [0, 1)", is_share)

    # --- to train ------------------------------------------------------------------------

    def read(
        self, path: Path, config: FinetuneConfig, tokenizer: Tokenizer, train: ChoiceRows | None
    ) -> ChoiceRows:
        """Read a file of questions with their choices."""
        if config.class_names is not None:
            raise ValueError(
                f"class_names: expected none in multiple choice, got {config.class_names}"
            )
        limit = config.train_rows if train is None else None
        return read_choice_rows(
            path, config.columns, self.choices, tokenizer, config.max_length, limit
        )

    def head(self, encoder: BertConfig, train: ChoiceRows) -> BertConfig:
        """Ask for one logit a choice."""
        self.check_model(encoder)
        return encoder.with_labels(["score"])

    def purpose(self, model: BertConfig) -> str:
        """Say that it chooses."""
        return "to choose the right one of several texts"

    def objective(self, model: BertForMultipleChoice, train: ChoiceRows) -> "ChoiceObjective":
        """Return the model with the cross-entropy of the right choice."""
        return ChoiceObjective(model, self.label_smoothing)

    def batches(self, train: ChoiceRows, config: FinetuneConfig) -> ShuffledBatches:
        """Return micro-batches of `batch_size` questions, each with all its choices."""
        return ShuffledBatches(train, config.batch_size, config.seed)

    def evaluate(
        self,
        model: BertForMultipleChoice,
        rows: ChoiceRows,
        batch_tokens: int = EVALUATION_TOKENS,
    ) -> ChoiceScores:
        """Score the likeliest choices."""
        logits = predict_logits(model, rows.tokens, batch_tokens)[:, 0]
        found = tuple(_log_softmax(logits[first:end]) for first, end in pairwise(rows.edges))
        right = [values[label] for values, label in zip(found, rows.labels, strict=True)]
        hits = [v.argmax() == label for v, label in zip(found, rows.labels, strict=True)]
        return ChoiceScores(
            accuracy=float(np.mean(hits)),
            chance=float(np.mean(1 / rows.sizes)),
            loss=float(-np.mean(right)),
            questions=len(rows),
            log_probabilities=found,
        )

    def read_again(
        self,
        path: Path,
        columns: Columns,
        predictor: Predictor,
        change: Callable[[Row], Row] | None = None,
    ) -> ChoiceRows:
        """Read a file of questions with their choices."""
        assert change is None
        length = predictor.max_length
        return read_choice_rows(path, columns, self.choices, predictor.tokenizer, length)

    def evidence(self, rows: ChoiceRows, scores: Scores) -> ChosenTexts:
        """Return what was chosen."""
        assert isinstance(scores, ChoiceScores)
        found = scores.log_probabilities
        return ChosenTexts(
            rows.labels,
            tuple(np.exp(values) for values in found),
            np.array([-values[i] for values, i in zip(found, rows.labels, strict=True)]),
        )

    def texts(self, rows: ChoiceRows) -> Iterator[dict[str, Any]]:
        """Yield each row's line, its premise, and its choices as the model reads them."""
        for line, record in records(rows.path, TextReport()):
            row = rows.columns.read(record, f"{rows.path}, line {line}")
            yield {"line": line, "premise": row.premise, "choices": list(row.seconds)}

    # --- to predict ----------------------------------------------------------------------

    def check_model(self, model: BertConfig) -> None:
        """Refuse a model that can't tell a choice from its premise."""
        if model.type_vocab_size < 2:
            raise ValueError(
                "model: expected two segment types, for a premise and a choice, "
                f"got type_vocab_size {model.type_vocab_size}"
            )

    def parse(self, line: str | dict[str, Any]) -> Choices:
        """Read a premise and its choices: with TABs between them, or by the columns' names."""
        if isinstance(line, str):
            premise, *choices = line.split("\t")
            if len(choices) < 2 or not all(choice.strip() for choice in choices):
                raise ValueError("expected a premise and two choices or more, with TABs between")
            return Choices.of(premise, None, choices)
        keys = tuple(line)
        columns = ChoiceColumns.find("keys", keys, Columns(), self.choices, has_label=False)
        return columns.read(line, "row")

    def answer(self, predictor: Predictor, examples: Sequence[Choices]) -> list[Answer]:
        """Give each row's likeliest choice, and the probabilities of all."""
        tokens = TokenRows.from_encodings(
            encode_choices(examples, predictor.tokenizer, predictor.max_length)
        )
        is_full = tokens.lengths == predictor.max_length
        with predictor.hardware.autocast():
            logits = predict_logits(predictor.model, tokens, predictor.batch_tokens)[:, 0]
        answers: list[Answer] = []
        edges = np.cumsum([0, *(len(example.choices) for example in examples)])
        for example, (first, end) in zip(examples, pairwise(edges), strict=True):
            predictor.full += bool(is_full[first:end].any())
            if np.isfinite(logits[first:end]).all():
                answers.append(_answer(example, _log_softmax(logits[first:end])))
            else:
                answers.append(predictor.NOT_FINITE)
        return answers


class ChoiceObjective(Objective[ChoiceBatch]):
    """Cross-entropy of the right choice, one term for each question."""

    def __init__(self, model: BertForMultipleChoice, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model, self.label_smoothing = model, label_smoothing

    def counts(self, batch: ChoiceBatch) -> dict[str, int]:
        """Return the number of questions."""
        return {"cross_entropy": len(batch.sizes)}

    def forward(
        self, batch: ChoiceBatch, dropout_seed: Int64[Tensor, ""]
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the sum over the questions; float32 at least."""
        logits = at_least_float32(self.model.logits(batch.packed, dropout_seed))[:, 0]
        loss = segment_cross_entropy(logits, batch.sizes, batch.labels, self.label_smoothing)
        return {"cross_entropy": loss}

    def operations(self, batch: ChoiceBatch) -> int:
        """Count the matrix products."""
        frozen, lengths = self.model.bert.frozen_layers, batch.packed.sequences.lengths
        return training_operations(self.model.config, lengths, classes=1, frozen_layers=frozen)

    def study(self, batch: ChoiceBatch) -> Mapping[str, Any]:
        """Measure how widely the heads look."""
        return attention_entropy(self.model.bert, batch.packed)


def _log_softmax(logits: Float[np.ndarray, " choices"]) -> Float[np.ndarray, " choices"]:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def _answer(example: Choices, log_probabilities: np.ndarray) -> dict[str, Any]:
    chosen = int(log_probabilities.argmax())
    return {
        "choice": chosen,
        "text": SURROGATE.sub("\ufffd", example.choices[chosen]),
        "probabilities": [round(float(p), DIGITS) for p in np.exp(log_probabilities)],
    }
