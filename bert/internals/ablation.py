"""What each part of the encoder is worth: the masked-word loss without it, less the loss with it.

| what goes   | how                                                                      |
| ----------- | ------------------------------------------------------------------------ |
| a head      | its context is zero (Michel et al. 2019)                                 |
| attention   | a layer's first half adds nothing; its LayerNorm stays                   |
| feed-forward| a layer's second half adds nothing; its LayerNorm stays                  |
| a layer     | its output is its input                                                  |

A zeroed part is not what the later layers were trained for: the change in loss says how much the
model as it is leans on the part, not whether it could learn to do without.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bert.internals.capture import capture, edit, resume, without_heads
from bert.internals.masked_text import MaskedBatch
from bert.internals.watching import Edit
from bert.pretraining import BertForMaskedLM


@dataclass(frozen=True)
class Ablation:
    """The loss, and its change where one part is taken out, in nats a masked token."""

    loss: float
    masked: int
    """Masked tokens that were judged."""
    heads: Float[Tensor, "layers heads"]
    attention: Float[Tensor, " layers"]
    feed_forward: Float[Tensor, " layers"]
    layers: Float[Tensor, " layers"]

    def ranked_heads(self) -> list[tuple[int, int, float]]:
        """List (layer, head, change), the head that is missed most first."""
        heads = [
            (layer, head, change)
            for layer, row in enumerate(self.heads.tolist())
            for head, change in enumerate(row)
        ]
        return sorted(heads, key=lambda head: -head[2])


def ablate(model: BertForMaskedLM, batches: Sequence[MaskedBatch]) -> Ablation:
    """Measure what each head, half and layer is worth on masked text.

    Takes layers × (heads + 3) passes, each through the layers from its own on.

    Args:
        model: in evaluation mode.
        batches: on its device; see `masked_text.mask_texts`.
    """
    count, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    base = torch.zeros((), dtype=torch.float64)
    sums = torch.zeros(count, heads + 3, dtype=torch.float64)
    for batch in batches:
        loss, changed = _losses(model, batch)
        base += loss
        sums += changed
    masked = sum(len(batch.labels) for batch in batches)
    change = (sums - base) / masked
    halves = change[:, heads:].unbind(1)
    return Ablation(float(base) / masked, masked, change[:, :heads], *halves)


@torch.no_grad()
def _losses(model: BertForMaskedLM, batch: MaskedBatch) -> tuple[float, Tensor]:
    """Sum a batch's losses with all parts, and [layers, heads + 3] without each."""
    sequences = batch.packed.sequences
    heads = range(model.config.num_attention_heads)
    with capture(model, ["layers.*.input"]) as cache:
        last = model.bert.encode(batch.packed).last_hidden_state
    inputs = list(cache.values())
    table = []
    for layer, hidden in enumerate(inputs):
        name = f"layers.{layer}"
        edits: list[Mapping[str, Edit]] = [
            *({f"{name}.attention.context": without_heads([head])} for head in heads),
            {f"{name}.attention.output": torch.zeros_like},
            {f"{name}.feed_forward.output": torch.zeros_like},
        ]
        row = []
        for edits_of_one in edits:
            with edit(model, edits_of_one):
                row.append(_loss(model, resume(model, hidden, sequences, layer), batch))
        row.append(_loss(model, resume(model, hidden, sequences, layer + 1), batch))
        table.append(row)
    return _loss(model, last, batch), torch.tensor(table, dtype=torch.float64)


@torch.no_grad()
def loss_with(
    model: BertForMaskedLM, batches: Iterable[MaskedBatch], edits: Mapping[str, Edit]
) -> float:
    """Measure the masked-word loss under any edits, in nats a masked token.

    Edits that change nothing give the loss of the model as it is, to the bit.
    """
    total, masked = 0.0, 0
    with edit(model, edits):
        for batch in batches:
            hidden = model.bert.encode(batch.packed).last_hidden_state
            total += _loss(model, hidden, batch)
            masked += len(batch.labels)
    return total / masked


def _loss(model: BertForMaskedLM, hidden: Tensor, batch: MaskedBatch) -> float:
    return float(model.mlm_loss(hidden, batch.positions, batch.labels))
