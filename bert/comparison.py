"""What `bert parity` compares: a directory or a preset, loaded here and in transformers."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bert.architectures import ARCHITECTURES, Model
from bert.checkpoint import load_pretrained, model_directory, save_pretrained
from bert.config import PRESETS, BertConfig
from bert.model import Bert
from bert.parity_table import Row
from bert.pretraining import BertForPreTraining
from bert.side_by_side import PaddedBatch, compare_models
from kernels import KernelSet


def random_batch(config: BertConfig, lengths: list[int], seed: int = 0) -> PaddedBatch:
    """Draw sequences of these lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))

    def draw(high: int, *size: int) -> Tensor:
        return torch.randint(high, size, generator=generator)

    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    ids = torch.where(mask == 1, draw(config.vocab_size, *shape), config.pad_token_id or 0)
    is_label = (torch.rand(shape, generator=generator) < 0.2) & (mask == 1)
    is_label[:, 0] = True
    return PaddedBatch(
        ids,
        mask,
        draw(config.type_vocab_size, *shape) * mask,
        torch.where(is_label, draw(config.vocab_size, *shape), -100),
        draw(2, len(lengths)),
    )


def compare_source(
    source: str,
    dtype: torch.dtype | None,
    kernels: KernelSet | None,
    gradients: bool,
    length: int,
    seed: int,
) -> list[Row]:
    """See `bert.parity.compare`."""
    kind = dtype or torch.float32
    with _directory(source, seed) as directory:
        ours = cast(Model, load_pretrained(directory, kernels=kernels, dtype=kind))
        theirs = load_theirs(directory, ours, kind)
    longest = min(length, ours.config.max_position_embeddings)
    lengths = [longest, max(1, longest // 2), 1, max(1, longest - 1)]
    return compare_models(ours, theirs, random_batch(ours.config, lengths, seed), gradients)


@contextmanager
def _directory(source: str, seed: int) -> Iterator[Path]:
    """Find the directory, or make one of a preset's random weights."""
    if Path(source).is_dir():
        yield Path(source)
        return
    if source not in PRESETS:
        raise ValueError(
            f"model: expected a directory or one of {', '.join(PRESETS)}, got {source!r}"
        )
    with tempfile.TemporaryDirectory() as made, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForPreTraining(PRESETS[source])
        jolt(model)
        save_pretrained(model, made)
        yield Path(made)


@torch.no_grad()
def jolt(model: nn.Module) -> None:
    """Move biases and LayerNorms off 0 and 1, where a mistake about them doesn't show."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.05)


def load_theirs(directory: Path, ours: Model, dtype: torch.dtype) -> Any:
    """Load Hugging Face's class that ours corresponds to, with attention that can be looked at.

    Raises:
        ModuleNotFoundError: transformers isn't there.
    """
    try:
        transformers = import_module("transformers")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is missing; install the extra parity: pip install -e .[parity]",
            name=error.name,
        ) from None
    theirs = getattr(transformers, ARCHITECTURES[type(ours)])
    pooler = {"add_pooling_layer": ours.pooler is not None} if isinstance(ours, Bert) else {}
    with _quiet(transformers):
        return theirs.from_pretrained(
            model_directory(directory), attn_implementation="eager", dtype=dtype, **pooler
        ).eval()


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Switch its bars and its warnings about unused heads off: the table says what differs."""
    logging = transformers.utils.logging
    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()
