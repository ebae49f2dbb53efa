"""TORCH: the best stock PyTorch operation for each, what a CPU runs, and the benchmarks' baseline.

Attention works on groups of sequences of similar length: each group is a batch of dense matrix
products, which on a CPU is faster than scaled_dot_product_attention with dropout or than one
ragged call, and computes next to no padding.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from kernels.kernel_set import (
    Dropout,
    EmbeddingIndices,
    EmbeddingTables,
    GeluForm,
    KernelSet,
    LambSettings,
    PackedSequences,
)

# Sequences share a group while the shortest has at least this part of the longest's length.
GROUP_RATIO = 0.85


def keep_mask(dropout: Dropout, shape: tuple[int, ...], part: int = 0) -> Bool[Tensor, "..."]:
    """Draw a mask, True where an element is kept, with the fastest generator of the device.

    A mask that is needed in several tensors is drawn in that many parts.

    On a CPU that is numpy's SFC64 (3 to 4 times as fast as torch's Mersenne Twister). On another
    device the seed is read on the host, which waits for the device.
    """
    count = math.prod(shape)
    words = -(-count // 4)  # each 64-bit draw serves 4 elements
    seed = int(dropout.seed)
    if dropout.seed.device.type == "cpu":
        entropy = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, dropout.stream, part)
        raw = np.random.SFC64(entropy).random_raw(words).view(np.uint16)
        return torch.from_numpy(raw[:count] >= dropout.threshold).view(shape)
    generator = torch.Generator(dropout.seed.device)
    place = dropout.stream * 65536 + part
    generator.manual_seed((seed ^ place * 0x9E3779B97F4A7C15) & (2**63 - 1))
    raw = torch.randint(
        65536, (count,), dtype=torch.int32, device=dropout.seed.device, generator=generator
    )
    return (raw >= dropout.threshold).view(shape)


def dropout(
    x: Float[Tensor, "rows features"], dropout: Dropout | None
) -> Float[Tensor, "rows features"]:
    """See `kernel_set.DropoutOp`; the mask is `keep_mask`."""
    if dropout is None or dropout.p == 0:
        return x
    return torch.where(keep_mask(dropout, tuple(x.shape)), x, 0.0) * dropout.scale


@dataclass(frozen=True)
class _Group:
    """Sequences of similar length as rows of one dense batch."""

    rows: Int64[Tensor, "seqs length"]
    """The packed row of each place; a place past a sequence's end repeats its first row."""
    valid: Bool[Tensor, "seqs length"] | None
    """Which places are tokens; None where all are."""


def _groups(sequences: PackedSequences, device: torch.device) -> tuple[list[_Group], Tensor]:
    """Sort the sequences by length and cut the order into groups.

    Returns the groups, and where each packed row stands in the groups' concatenation.
    """
    lengths = np.asarray(sequences.lengths, dtype=np.int64)
    starts = np.asarray(sequences.offsets[:-1], dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    groups, taken, begin = [], [], 0
    while begin < len(order):
        longest = int(lengths[order[begin]])
        similar = int((lengths[order[begin:]] >= GROUP_RATIO * longest).sum())
        members = order[begin : begin + similar]
        place = np.arange(longest)
        valid = place < lengths[members, None]
        rows = np.where(valid, starts[members, None] + place, starts[members, None])
        taken.append(rows[valid])
        all_valid = bool(valid.all())
        groups.append(
            _Group(
                torch.from_numpy(rows).to(device),
                None if all_valid else torch.from_numpy(valid).to(device),
            )
        )
        begin += similar
    inverse = np.empty(sequences.tokens, dtype=np.int64)
    if taken:
        inverse[np.concatenate(taken)] = np.arange(sequences.tokens)
    return groups, torch.from_numpy(inverse).to(device)


def _grouped(sequences: PackedSequences, device: torch.device) -> tuple[list[_Group], Tensor]:
    """Make the groups once per batch, not once per layer: they stay with the sequences."""
    cache = sequences.__dict__.setdefault("_torch_groups", {})
    if device not in cache:
        cache[device] = _groups(sequences, device)
    return cache[device]


def _heads_first(x: Tensor, rows: Tensor) -> Tensor:
    """Take a group's rows: [tokens, heads, head_dim] → [seqs, heads, length, head_dim]."""
    taken = x.index_select(0, rows.flatten())
    return taken.view(*rows.shape, *x.shape[1:]).transpose(1, 2)


def _probabilities(query: Tensor, key: Tensor, valid: Tensor | None) -> Tensor:
    """Scale, multiply, hide the keys past a sequence's end, normalise."""
    if query.dtype in (torch.float16, torch.bfloat16):
        query, key = query.float(), key.float()  # the exponential magnifies rounding
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if valid is not None:
        scores = scores.masked_fill(~valid[:, None, None, :], float("-inf"))
    return scores.softmax(-1)


def attention(
    query: Float[Tensor, "tokens heads head_dim"],
    key: Float[Tensor, "tokens heads head_dim"],
    value: Float[Tensor, "tokens heads head_dim"],
    sequences: PackedSequences,
    dropout: Dropout | None = None,
) -> Float[Tensor, "tokens heads head_dim"]:
    """See `kernel_set.Attention`; the mask is `keep_mask`, a part for each group."""
    sequences.check(query.shape[0])
    groups, inverse = _grouped(sequences, query.device)
    contexts = [query[:0]]
    for index, group in enumerate(groups):
        q, k, v = (_heads_first(x, group.rows) for x in (query, key, value))
        if dropout is None or dropout.p == 0:
            if query.device.type == "cpu":
                context = _probabilities(q, k, group.valid).to(v.dtype) @ v
            else:
                mask = None if group.valid is None else group.valid[:, None, None, :]
                context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            probabilities = _probabilities(q, k, group.valid)
            keep = keep_mask(dropout, tuple(probabilities.shape), part=index)
            kept = torch.where(keep, probabilities, 0.0).to(v.dtype)
            context = kept @ v * dropout.scale
        context = context.transpose(1, 2)
        context = context.flatten(0, 1) if group.valid is None else context[group.valid]
        contexts.append(context)
    return torch.cat(contexts).index_select(0, inverse)


def attention_probabilities(
    query: Float[Tensor, "tokens heads head_dim"],
    key: Float[Tensor, "tokens heads head_dim"],
    sequences: PackedSequences,
) -> Float[Tensor, "seqs heads max_seqlen max_seqlen"]:
    """See `kernel_set.AttentionProbabilities`."""
    sequences.check(query.shape[0])
    count, longest = len(sequences.lengths), sequences.max_seqlen
    lengths = torch.as_tensor(sequences.lengths, device=query.device)
    starts = torch.as_tensor(sequences.offsets[:-1], device=query.device)
    place = torch.arange(longest, device=query.device)
    valid = place < lengths[:, None]
    if sequences.tokens == 0:
        return query.new_zeros(count, query.shape[1], longest, longest)
    rows = torch.where(valid, starts[:, None] + place, 0)
    q, k = _heads_first(query, rows), _heads_first(key, rows)
    probabilities = _probabilities(q, k, valid).to(query.dtype)
    inside = valid[:, None, :, None] & valid[:, None, None, :]
    return torch.where(inside, probabilities, 0.0)


def layer_norm(
    x: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, " hidden"],
    bias: Float[Tensor, " hidden"],
    eps: float,
) -> Float[Tensor, "tokens hidden"]:
    """See `kernel_set.LayerNorm`."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def add_layer_norm(
    x: Float[Tensor, "tokens hidden"],
    x_bias: Float[Tensor, " hidden"],
    residual: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, " hidden"],
    bias: Float[Tensor, " hidden"],
    eps: float,
    dropout: Dropout | None = None,
) -> tuple[Float[Tensor, "tokens hidden"], Float[Tensor, "tokens hidden"]]:
    """See `kernel_set.AddLayerNorm`; the mask is `keep_mask`."""
    update = x + x_bias
    if dropout is None or dropout.p == 0:
        total = residual + update
    else:
        kept = torch.where(keep_mask(dropout, tuple(x.shape)), update, 0.0)
        total = torch.add(residual, kept, alpha=dropout.scale)
    return F.layer_norm(total, weight.shape, weight, bias, eps), total


def bias_gelu(
    x: Float[Tensor, "tokens features"],
    bias: Float[Tensor, " features"],
    form: GeluForm = "erf",
) -> Float[Tensor, "tokens features"]:
    """See `kernel_set.BiasGelu`."""
    return F.gelu(x + bias, approximate="none" if form == "erf" else "tanh")


def embedding_layer_norm(
    indices: EmbeddingIndices,
    tables: EmbeddingTables,
    weight: Float[Tensor, " hidden"],
    bias: Float[Tensor, " hidden"],
    eps: float,
    padding_idx: int = -1,
    dropout: Dropout | None = None,
) -> Float[Tensor, "tokens hidden"]:
    """See `kernel_set.EmbeddingLayerNorm`; the mask is `keep_mask`."""
    total = F.embedding(indices.word, tables.word, None if padding_idx < 0 else padding_idx)
    total = total + F.embedding(indices.position, tables.position)
    total = total + F.embedding(indices.token_type, tables.token_type)
    normalised = F.layer_norm(total, weight.shape, weight, bias, eps)
    if dropout is None or dropout.p == 0:
        return normalised
    return torch.where(keep_mask(dropout, tuple(total.shape)), normalised, 0.0) * dropout.scale


def linear_cross_entropy(
    hidden: Float[Tensor, "masked hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"],
    labels: Int64[Tensor, " masked"],
) -> Float[Tensor, ""]:
    """See `kernel_set.LinearCrossEntropy`. The logits of the masked rows are held in memory."""
    logits = F.linear(hidden, weight, bias)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return F.cross_entropy(logits, labels, reduction="sum")


@torch.no_grad()
def lamb_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    settings: LambSettings,
) -> None:
    """See `kernel_set.LambStep`; each line is one call for all tensors.

    What changes from step to step is read on the device, as by torch's capturable optimisers.
    """
    rate, (beta1, beta2), eps, decay, is_adapted = settings
    if not parameters:
        return
    t = torch.stack(steps).double()  # 1 − 0.999 has four right digits in float32
    torch._foreach_lerp_(means, gradients, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
    denominators = torch._foreach_sqrt(squares)
    torch._foreach_div_(denominators, (1 - beta2**t).sqrt().unbind())
    torch._foreach_add_(denominators, eps)
    updates = torch._foreach_div(means, denominators)
    torch._foreach_div_(updates, (1 - beta1**t).unbind())
    torch._foreach_add_(updates, parameters, alpha=decay)
    if is_adapted:
        lengths = torch.stack(torch._foreach_norm(parameters))
        norms = torch.stack(torch._foreach_norm(updates))
        ratios = torch.where((lengths > 0) & (norms > 0), lengths / norms, 1.0)
        torch._foreach_mul_(updates, (rate * ratios).unbind())
    else:
        torch._foreach_mul_(updates, rate)
    torch._foreach_sub_(parameters, updates)


TORCH = KernelSet(
    name="TORCH",
    attention=attention,
    attention_probabilities=attention_probabilities,
    layer_norm=layer_norm,
    add_layer_norm=add_layer_norm,
    bias_gelu=bias_gelu,
    embedding_layer_norm=embedding_layer_norm,
    linear_cross_entropy=linear_cross_entropy,
    dropout=dropout,
    lamb_step=lamb_step,
)
