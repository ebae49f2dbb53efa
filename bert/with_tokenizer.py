"""Load a model and its tokenizer to look at texts, and check that they belong together."""

from pathlib import Path
from typing import Any

from bert.architectures import Model
from bert.checkpoint import load_pretrained, model_directory
from bert.tokenization import Tokenizer
from bert.training.config import TrainingConfig
from bert.training.hardware import choose_hardware


def load_with_tokenizer(
    directory: Path, model_class: type[Model] | None, hardware: TrainingConfig
) -> tuple[Any, Tokenizer]:
    """Load both.

    Args:
        directory: the model's, or a run's with the model in it.
        model_class: see `load_pretrained`.
        hardware: its `device` and `kernels` count.

    Returns:
        The model, on its device, in evaluation mode; and the tokenizer.

    Raises:
        ValueError: there is none, it lacks the head, or the two don't fit together.
    """
    directory = model_directory(directory)
    chosen = choose_hardware(hardware)
    model = load_pretrained(directory, model_class, kernels=chosen.kernels).to(chosen.device)
    tokenizer = Tokenizer.load(directory)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{directory}: expected a tokenizer of at most the model's {model.config.vocab_size} "
            f"tokens (vocab_size), got {tokenizer.vocab_size}"
        )
    return model, tokenizer
