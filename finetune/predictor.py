"""A fine-tuned classifier in use: texts in, classes and probabilities out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bert.checkpoint import load_with_report, model_directory
from bert.finetuning import BertForSequenceClassification
from bert.tokenization import Tokenizer
from bert.training.config import TrainingConfig
from bert.training.hardware import Hardware, choose_hardware
from finetune.classification import EVALUATION_TOKENS, predict_logits
from finetune.data import TokenRows

PROBABILITY_DIGITS = 6

Pair = tuple[str, str | None]
"""A text and None, or a pair of texts."""
Answer = dict[str, Any] | str
"""A label and the probabilities of all; or, in words, why there are none."""


class Predictor:
    """A classifier with its tokenizer. `full` counts the rows that were as long as rows can be.

    Args:
        model: moved to the device, and put in evaluation mode.
        tokenizer: its report counts the odd things met in texts.
        hardware: where to compute, and in which precision.
        max_length: tokens of a row; what is longer is cut. None: as many as the model can take.
        batch_tokens: tokens that are classified at once.

    Raises:
        ValueError: the model isn't a classifier, or has no room for `max_length` tokens.
    """

    def __init__(
        self,
        model: BertForSequenceClassification,
        tokenizer: Tokenizer,
        hardware: Hardware | None = None,
        max_length: int | None = None,
        batch_tokens: int = EVALUATION_TOKENS,
    ) -> None:
        config, room = model.config, model.config.max_position_embeddings
        if config.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"model: expected a classifier, got problem_type {config.problem_type}"
            )
        if config.num_labels < 2:
            raise ValueError("model: expected two classes or more, got one")
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"tokenizer: expected at most the model's {config.vocab_size} tokens "
                f"(vocab_size), got {tokenizer.vocab_size}"
            )
        if max_length is not None and max_length > room:
            raise ValueError(
                f"max_length: expected at most {room} (max_position_embeddings), got {max_length}"
            )
        self.hardware = hardware or choose_hardware(TrainingConfig())
        self.model = model.to(self.hardware.device).eval()
        self.tokenizer = tokenizer
        self.max_length = room if max_length is None else max_length
        self.batch_tokens = batch_tokens
        self.class_names = [config.id2label[i] for i in range(config.num_labels)]
        self.full = 0

    @staticmethod
    def load(
        path: Path | str,
        *,
        max_length: int | None = None,
        batch_tokens: int = EVALUATION_TOKENS,
        device: str = "auto",
        threads: int | None = None,
    ) -> "Predictor":
        """Read a directory that `bert finetune` or transformers saved.

        Raises:
            ValueError: it isn't one, or its model has no trained classifier.
        """
        hardware = choose_hardware(TrainingConfig(device=device, threads=threads))
        if threads is not None:
            torch.set_num_threads(threads)
        directory = model_directory(Path(path))
        model, report = load_with_report(
            directory, BertForSequenceClassification, kernels=hardware.kernels
        )
        drawn = [*report.missing, *report.mismatched]
        if drawn:
            raise ValueError(
                f"{directory}: expected a trained classifier, got no {drawn[0]} for one"
            )
        return Predictor(model, Tokenizer.load(directory), hardware, max_length, batch_tokens)

    def classify(self, rows: Sequence[Pair]) -> list[Answer]:
        """Classify texts and pairs of texts, and answer in their order."""
        answers: list[Answer] = [""] * len(rows)
        for is_pair in (False, True):
            chosen = [i for i, (_, text_b) in enumerate(rows) if (text_b is not None) == is_pair]
            if is_pair and chosen and self.model.config.type_vocab_size < 2:
                for i in chosen:
                    answers[i] = "expected a single text: the model has one segment type"
            elif chosen:
                for i, values in zip(
                    chosen, self._probabilities([rows[i] for i in chosen], is_pair), strict=True
                ):
                    answers[i] = self._answer(values)
        return answers

    def _probabilities(self, rows: Sequence[Pair], is_pair: bool) -> np.ndarray:
        """Compute the probabilities of rows that are all of one kind."""
        encodings = self.tokenizer.encode_batch(
            [text_a for text_a, _ in rows],
            [text_b or "" for _, text_b in rows] if is_pair else None,
            max_length=self.max_length,
        )
        tokens = TokenRows.from_encodings(encodings)
        self.full += int((tokens.lengths == self.max_length).sum())
        with self.hardware.autocast():
            logits = predict_logits(self.model, tokens, self.batch_tokens).astype(np.float64)
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        return exponentials / exponentials.sum(-1, keepdims=True)

    def _answer(self, probabilities: np.ndarray) -> Answer:
        if not np.isfinite(probabilities).all():
            return "expected finite numbers from the model, got NaN or infinity"
        rounded = [round(float(p), PROBABILITY_DIGITS) for p in probabilities]
        return {
            "label": self.class_names[int(probabilities.argmax())],
            "probabilities": dict(zip(self.class_names, rounded, strict=True)),
        }
