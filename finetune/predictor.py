"""A fine-tuned model in use: rows in, the answers of its task out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from bert.checkpoint import load_with_report, model_directory
from bert.config import read_json
from bert.tokenization import Tokenizer
from bert.training.config import TrainingConfig
from bert.training.hardware import Hardware, choose_hardware
from finetune import tasks
from finetune.batches import EVALUATION_TOKENS
from finetune.task import Answer, Task


class Predictor:
    """A model with its task and tokenizer. `full` counts rows that were as long as rows can be.

    Args:
        task: what the model was trained for.
        model: moved to the device, and put in evaluation mode.
        tokenizer: its report counts the odd things met in texts.
        hardware: where to compute, and in which precision.
        max_length: tokens of a row; what is longer is cut. None: as many as the model can take.
        batch_tokens: tokens that are computed at once.

    Raises:
        ValueError: the task can't be done with the model, or it has no room for `max_length`
            tokens.
    """

    NOT_FINITE: ClassVar[str] = "expected finite numbers from the model, got NaN or infinity"

    def __init__(
        self,
        task: Task[Any, Any],
        model: Any,
        tokenizer: Tokenizer,
        hardware: Hardware | None = None,
        max_length: int | None = None,
        batch_tokens: int = EVALUATION_TOKENS,
    ) -> None:
        config, room = model.config, model.config.max_position_embeddings
        task.check_model(config)
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
        self.task = task
        self.model = model.to(self.hardware.device).eval()
        self.tokenizer = tokenizer
        self.max_length = room if max_length is None else max_length
        self.batch_tokens = batch_tokens
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
        """Read a directory that `bert finetune` or transformers saved; it tells the task.

        Raises:
            ValueError: it isn't one, or its model has no trained head.
        """
        hardware = choose_hardware(TrainingConfig(device=device, threads=threads))
        if threads is not None:
            torch.set_num_threads(threads)
        directory = model_directory(Path(path))
        task = tasks.of_model(directory)
        model, report = load_with_report(directory, task.model_class, kernels=hardware.kernels)
        drawn = [*report.missing, *report.mismatched]
        if drawn:
            raise ValueError(f"{directory}: expected a fine-tuned model, got {_named(directory)}")
        tokenizer = Tokenizer.load(directory)
        return Predictor(task, model, tokenizer, hardware, max_length, batch_tokens)

    def answer(self, examples: Sequence[Any]) -> list[Answer]:
        """Answer rows, as the task's `parse` reads them, in their order."""
        return self.task.answer(self, examples)


def _named(directory: Path) -> str:
    """Say what a model without a trained head is, and what takes it."""
    architectures = read_json(directory / "config.json").get("architectures") or ["BertModel"]
    takes = "bert embed takes it as it is"
    if architectures[0] in ("BertForPreTraining", "BertForMaskedLM"):
        takes = "bert fill-mask and bert embed take it as it is"
    return f"a {architectures[0]} without a trained head; bert finetune trains one, and {takes}"
