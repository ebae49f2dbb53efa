"""How widely each attention head looks: the entropy of its probabilities."""

import math
from typing import Any

import torch
from torch import Tensor

from bert.encoder import Layer
from bert.model import Bert
from bert.packing import PackedBatch
from kernels import PackedSequences

SEQUENCES = 8
"""How many of a batch's sequences are looked at; probabilities take memory by length squared."""


@torch.no_grad()
def attention_entropy(model: Bert, batch: PackedBatch) -> dict[str, Any]:
    """Measure the entropy of each head's attention on the first sequences of a batch.

    The entropy of a token's probabilities over its sequence, −Σ p ln p, averaged over the tokens:
    0 nats where each token looks at one token, and `log_length` where each looks at all alike.

    Args:
        model: in evaluation mode.
        batch: on its device, with at least one token in the first eight sequences.

    Returns:
        `attention_entropy`, in nats, a list of heads for each layer; and `log_length`, the
        average over the same tokens of the logarithm of their sequence's length.
    """
    assert not model.training
    first = _first(batch, SEQUENCES)
    lengths = [length for length in first.sequences.lengths if length]
    states = model.encode(first).hidden_states[:-1]
    entropies = []
    for layer, hidden in zip(model.encoder.layers, states, strict=True):
        assert isinstance(layer, Layer)
        sums = hidden.new_zeros(model.config.num_attention_heads, dtype=torch.float64)
        for rows in hidden.split(lengths):
            one = PackedSequences.from_lengths([len(rows)], rows.device)
            sums += _entropy_sums(layer.attention.probabilities(rows, one))
        entropies.append((sums / sum(lengths)).tolist())
    spread = sum(length * math.log(length) for length in lengths) / sum(lengths)
    return {"attention_entropy": entropies, "log_length": spread}


def _entropy_sums(probabilities: Tensor) -> Tensor:
    """Add up a sequence's entropies, head by head: [1, heads, length, length] → [heads]."""
    return torch.special.entr(probabilities.double()).sum((0, 2, 3))


def _first(batch: PackedBatch, count: int) -> PackedBatch:
    """Take the first sequences of a batch."""
    lengths = batch.sequences.lengths[:count]
    tokens = sum(lengths)
    return PackedBatch(
        batch.input_ids[:tokens],
        batch.token_type_ids[:tokens],
        batch.position_ids[:tokens],
        PackedSequences.from_lengths(lengths, batch.input_ids.device),
    )
