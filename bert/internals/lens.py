"""What each layer would predict: its hidden state through the whole masked-word head.

(The logit lens of nostalgebraist 2020, with BERT's head: linear map, GELU, LayerNorm, word table
and bias.) The last layer's prediction is the model's own, to the bit. An early layer's is read
with a head that was trained for the last one's: what it says of that layer is a lower bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bert.internals.capture import capture
from bert.packing import PackedBatch
from bert.pretraining import BertForMaskedLM


@dataclass(frozen=True)
class Lens:
    """What the embeddings and each layer predict at some tokens of a batch."""

    top_ids: Int64[Tensor, "states rows k"]
    """The likeliest tokens, the likeliest first; state 0 is the embeddings'."""
    top_probabilities: Float[Tensor, "states rows k"]
    truth: Int64[Tensor, " rows"]
    """The token whose rank is given."""
    truth_rank: Int64[Tensor, "states rows"]
    """1 where it is the likeliest; tokens of the same logit share the best rank."""
    truth_probability: Float[Tensor, "states rows"]
    kl_to_last: Float[Tensor, "states rows"]
    """Σ p·ln(p / q) in nats, with the last layer's p and this state's q; 0 for the last."""


@torch.no_grad()
def lens(
    model: BertForMaskedLM,
    batch: PackedBatch,
    rows: Sequence[int],
    truth: Sequence[int] | None = None,
    top_k: int = 5,
    vocab_size: int | None = None,
) -> Lens:
    """Read every layer of a model at some tokens.

    Args:
        model: in evaluation mode.
        batch: on its device.
        rows: places of tokens in the packed batch.
        truth: the token that stands at each; None: the last layer's likeliest.
        top_k: tokens to keep of each prediction.
        vocab_size: the tokenizer's, where the model's table has rows beyond it, which nobody
            predicts; None: the model's.

    Raises:
        ValueError: a row or a token that isn't there, or not as many tokens as rows.
    """
    size = vocab_size or model.config.vocab_size
    if top_k < 1:
        raise ValueError(f"top_k: expected 1 or more, got {top_k}")
    _check("rows", rows, len(batch.input_ids))
    _check("truth", truth or [], size)
    if truth is not None and len(truth) != len(rows):
        raise ValueError(f"truth: expected {len(rows)} tokens, as many as rows, got {len(truth)}")
    states = hidden_states(model, batch)
    final = state_logits(model, states[-1], rows)[:, :size].double().log_softmax(-1)
    right = final.argmax(-1) if truth is None else torch.tensor(truth, device=final.device)
    read = []
    for hidden in states:
        logits = state_logits(model, hidden, rows)[:, :size]
        logs = logits.double().log_softmax(-1)
        best = logs.topk(min(top_k, size))
        of_truth = logs.gather(1, right[:, None])
        rank = 1 + (logs > of_truth).sum(1)
        kl = (final.exp() * (final - logs)).sum(-1)
        read.append((best.indices, best.values.exp(), rank, of_truth.exp().squeeze(1), kl))
    ids, probabilities, rank, of_truth, kl = map(torch.stack, zip(*read, strict=True))
    return Lens(ids, probabilities, right, rank, of_truth, kl)


def hidden_states(
    model: BertForMaskedLM, batch: PackedBatch
) -> list[Float[Tensor, "tokens hidden"]]:
    """Run the encoder; give the embeddings' output, then each layer's, edits of them included."""
    with capture(model, ["embeddings.output", "layers.*.output"]) as cache:
        model.bert.encode(batch)
    return list(cache.values())


def state_logits(
    model: BertForMaskedLM, hidden: Float[Tensor, "tokens hidden"], rows: Sequence[int]
) -> Float[Tensor, "rows vocab"]:
    """Put some rows of a hidden state through the whole masked-word head."""
    return model.mlm_head(hidden[list(rows)], model.bert.embeddings.word.weight)


def _check(name: str, values: Sequence[int], limit: int) -> None:
    for place, value in enumerate(values):
        if not 0 <= value < limit:
            raise ValueError(f"{name}[{place}]: expected 0 to {limit - 1}, got {value}")
