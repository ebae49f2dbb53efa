"""REFERENCE: each operation as its formula reads, in any float dtype, differentiated by autograd.

The oracle of every test. One sequence and one step at a time, nothing fused, nothing clever; run
it in float64 and hold the others against it.
"""

import math

import torch
from jaxtyping import Float
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
from kernels.philox import keep_attention, keep_rows


def _widen(x: Tensor) -> Tensor:
    """Compute in float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def dropout(
    x: Float[Tensor, "rows features"], dropout: Dropout | None
) -> Float[Tensor, "rows features"]:
    """See `kernel_set.DropoutOp`; the mask is `philox.keep_rows`."""
    if dropout is None or dropout.p == 0:
        return x
    return x * keep_rows(dropout, *x.shape) * dropout.scale


def attention_scores(
    query: Float[Tensor, "tokens heads head_dim"], key: Float[Tensor, "tokens heads head_dim"]
) -> Float[Tensor, "heads tokens tokens"]:
    """Scale and multiply one sequence's queries and keys; in float32 at least."""
    return torch.einsum("ihd,jhd->hij", _widen(query), _widen(key)) / math.sqrt(query.shape[-1])


def weigh(
    probabilities: Float[Tensor, "heads tokens tokens"],
    value: Float[Tensor, "tokens heads head_dim"],
) -> Float[Tensor, "tokens heads head_dim"]:
    """Add up one sequence's values, weighed by each token's probabilities; value's dtype."""
    context = torch.einsum("hij,jhd->ihd", _widen(probabilities), _widen(value))
    return context.to(value.dtype)


def attention(
    query: Float[Tensor, "tokens heads head_dim"],
    key: Float[Tensor, "tokens heads head_dim"],
    value: Float[Tensor, "tokens heads head_dim"],
    sequences: PackedSequences,
    dropout: Dropout | None = None,
) -> Float[Tensor, "tokens heads head_dim"]:
    """See `kernel_set.Attention`; the mask is `philox.keep_attention`."""
    sequences.check(query.shape[0])
    contexts = [query[:0]]
    for index, length in enumerate(sequences.lengths):
        rows = slice(sequences.offsets[index], sequences.offsets[index + 1])
        probabilities = attention_scores(query[rows], key[rows]).softmax(-1)
        if dropout is not None and dropout.p > 0:
            keep = keep_attention(dropout, index, query.shape[1], length)
            probabilities = probabilities * keep * dropout.scale
        contexts.append(weigh(probabilities, value[rows]))
    return torch.cat(contexts)


def attention_probabilities(
    query: Float[Tensor, "tokens heads head_dim"],
    key: Float[Tensor, "tokens heads head_dim"],
    sequences: PackedSequences,
) -> Float[Tensor, "seqs heads max_seqlen max_seqlen"]:
    """See `kernel_set.AttentionProbabilities`."""
    sequences.check(query.shape[0])
    longest = sequences.max_seqlen
    padded = []
    for index, length in enumerate(sequences.lengths):
        rows = slice(sequences.offsets[index], sequences.offsets[index + 1])
        probabilities = attention_scores(query[rows], key[rows]).softmax(-1).to(query.dtype)
        margin = longest - length
        padded.append(torch.nn.functional.pad(probabilities, (0, margin, 0, margin)))
    if not padded:
        return query.new_zeros(0, query.shape[1], longest, longest)
    return torch.stack(padded)


def layer_norm(
    x: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, " hidden"],
    bias: Float[Tensor, " hidden"],
    eps: float,
) -> Float[Tensor, "tokens hidden"]:
    """See `kernel_set.LayerNorm`."""
    wide = _widen(x)
    centred = wide - wide.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    normalised = centred / torch.sqrt(variance + eps)
    return (normalised * weight + bias).to(x.dtype)


def add_layer_norm(
    x: Float[Tensor, "tokens hidden"],
    x_bias: Float[Tensor, " hidden"],
    residual: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, " hidden"],
    bias: Float[Tensor, " hidden"],
    eps: float,
    dropout: Dropout | None = None,
) -> tuple[Float[Tensor, "tokens hidden"], Float[Tensor, "tokens hidden"]]:
    """See `kernel_set.AddLayerNorm`; the mask is `philox.keep_rows`."""
    update = _widen(x) + x_bias
    if dropout is not None and dropout.p > 0:
        update = update * keep_rows(dropout, *x.shape) * dropout.scale
    total = _widen(residual) + update
    return layer_norm(total, weight, bias, eps).to(residual.dtype), total.to(residual.dtype)


def bias_gelu(
    x: Float[Tensor, "tokens features"],
    bias: Float[Tensor, " features"],
    form: GeluForm = "erf",
) -> Float[Tensor, "tokens features"]:
    """See `kernel_set.BiasGelu`."""
    wide = _widen(x) + bias
    if form == "erf":
        cumulative = 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
    else:
        inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
        cumulative = 0.5 * (1 + torch.tanh(inner))
    return (wide * cumulative).to(x.dtype)


def embedding_layer_norm(
    indices: EmbeddingIndices,
    tables: EmbeddingTables,
    weight: Float[Tensor, " hidden"],
    bias: Float[Tensor, " hidden"],
    eps: float,
    padding_idx: int = -1,
    dropout: Dropout | None = None,
) -> Float[Tensor, "tokens hidden"]:
    """See `kernel_set.EmbeddingLayerNorm`; the mask is `philox.keep_rows`."""
    word = tables.word[indices.word]
    is_padding = (indices.word == padding_idx)[:, None]
    word = torch.where(is_padding, word.detach(), word)
    total = word + tables.position[indices.position] + tables.token_type[indices.token_type]
    normalised = layer_norm(total, weight, bias, eps)
    if dropout is not None and dropout.p > 0:
        normalised = normalised * keep_rows(dropout, *normalised.shape) * dropout.scale
    return normalised


def linear_cross_entropy(
    hidden: Float[Tensor, "masked hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"],
    labels: Tensor,
) -> Float[Tensor, ""]:
    """See `kernel_set.LinearCrossEntropy`."""
    logits = _widen(hidden) @ _widen(weight).T + bias
    counted = labels != -100
    rows = torch.arange(len(labels), device=labels.device)[counted]
    return -logits.log_softmax(-1)[rows, labels[counted]].sum()


@torch.no_grad()
def lamb_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    settings: LambSettings,
) -> None:
    """See `kernel_set.LambStep`."""
    rate, (beta1, beta2), eps, decay, is_adapted = settings
    members = zip(parameters, gradients, means, squares, steps, strict=True)
    for x, g, mean, square, step in members:
        t = step.double()  # 1 − 0.999 has four right digits in float32
        mean.copy_(beta1 * mean + (1 - beta1) * g)
        square.copy_(beta2 * square + (1 - beta2) * g**2)
        denominator = torch.sqrt(square / (1 - beta2**t)) + eps
        update = mean / (1 - beta1**t) / denominator + decay * x
        length, norm = torch.linalg.vector_norm(x), torch.linalg.vector_norm(update)
        ratio = length / norm if is_adapted and length > 0 and norm > 0 else 1.0
        x.copy_(x - rate * ratio * update)


REFERENCE = KernelSet(
    name="REFERENCE",
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
