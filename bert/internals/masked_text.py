"""Text with some words masked, to measure a model's loss on: the same words each time."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from bert.packing import PackedBatch
from bert.tokenization import Tokenizer

SHARE = 0.15
"""The part of a text's tokens that is masked, as in pretraining (Devlin et al. 2018)."""


@dataclass(frozen=True)
class MaskedBatch:
    """Some texts, packed, whose masked tokens all show [MASK]."""

    packed: PackedBatch
    positions: Int64[Tensor, " masked"]
    """Rows of the packed batch."""
    labels: Int64[Tensor, " masked"]
    """The tokens that stood there."""


def mask_texts(
    texts: Iterable[str],
    tokenizer: Tokenizer,
    max_length: int = 512,
    seed: int = 0,
    tokens: int = 2048,
    device: torch.device | str = "cpu",
) -> list[MaskedBatch]:
    """Mask 15 % of each text's tokens, one at least, and pack the texts into batches.

    Args:
        texts: such as the lines of a file (`bert.text.read_lines`); one without a token is left
            out, and what is longer than `max_length` is cut.
        tokenizer: the model's.
        max_length: tokens of a text, with [CLS] and [SEP].
        seed: chooses the tokens.
        tokens: of a batch, unless one text has more.
        device: where the batches go.

    Raises:
        ValueError: no text has a token.
    """
    draw = random.Random(seed)
    batches, rows, size = [], [], 0
    for ids, labels in _masked(texts, tokenizer, max_length, draw):
        if rows and size + len(ids) > tokens:
            batches.append(_pack(rows, device))
            rows, size = [], 0
        rows.append((ids, labels))
        size += len(ids)
    if not rows:
        raise ValueError("texts: expected at least one with a token, got none")
    return [*batches, _pack(rows, device)]


def _masked(
    texts: Iterable[str], tokenizer: Tokenizer, max_length: int, draw: random.Random
) -> Iterator[tuple[list[int], dict[int, int]]]:
    """Yield each text's ids, and what stood under its masks."""
    for text in texts:
        ids = list(tokenizer.encode(text, max_length=max_length).ids)
        inside = range(1, len(ids) - 1)
        if not inside:
            continue
        chosen = draw.sample(inside, max(1, round(SHARE * len(inside))))
        labels = {place: ids[place] for place in sorted(chosen)}
        for place in labels:
            ids[place] = tokenizer.mask_id
        yield ids, labels


def _pack(rows: list[tuple[list[int], dict[int, int]]], device: torch.device | str) -> MaskedBatch:
    positions, labels, start = [], [], 0
    for ids, hidden in rows:
        positions += [start + place for place in hidden]
        labels += hidden.values()
        start += len(ids)
    return MaskedBatch(
        PackedBatch.from_lists([ids for ids, _ in rows], device=device),
        torch.tensor(positions, device=device),
        torch.tensor(labels, device=device),
    )
