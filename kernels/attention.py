"""Attention over packed sequences in one kernel, forward; `attention_backward.py` has the rest.

Mathematics (Vaswani et al. 2017, section 3.2.1), for a head's queries Q, keys K and values V:

    S = Q·Kᵀ / √head_dim        P = softmax of S's rows        O = dropout(P)·V

S and P have length² elements and are never in memory. A program owns a tile of queries and walks
over the keys, tile by tile; the softmax's sum is corrected as a greater maximum comes (Milakov &
Gimelshein 2018; Dao et al. 2022, algorithm 1). With m a row's greatest score so far, l the sum of
exp(S − m) and A the sum of exp(S − m)·V:

    m' = max(m, max S)    l' = l·exp(m − m') + Σ exp(S − m')    A' = A·exp(m − m') + exp(S − m')·V

and at the end O = A / l. The backward pass needs one number a row, the logarithm of the sum of
exp(S). All exponentials are powers of two, which is what the hardware has: exp(x) = 2^(x·log₂e).
The kernel is in `attention_forward.py`.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.attention_backward import attention_backward_op
from kernels.attention_forward import attention_forward_kernel
from kernels.attention_tiles import can_describe, check, describe
from kernels.device import architecture, dot_precision, on_its_gpu, require_seed, tiles_for
from kernels.kernel_set import Dropout, PackedSequences

LOG2_E = math.log2(math.e)


def forward_tile(
    target: str, head_dim: int, dtype: torch.dtype, drops: bool, longest: int
) -> dict[str, Any]:
    """Choose the forward tile for an architecture ("" is the interpreter, which runs Hopper's).

    On Hopper a step has 256 keys: in one tile, or in two where the mask's random bits leave no
    registers for one. Sequences too short for that, and other GPUs, have 128.
    """
    tile = {"QUERIES": 128, "KEYS": 128, "TILES": 1, "TAIL": 64, "num_warps": 8, "num_stages": 2}
    hopper, blackwell = target in ("", "sm90"), target.startswith("sm10")
    tile["DESCRIPTORS"] = hopper or blackwell
    if dtype in (torch.float32, torch.float64):  # no tensor cores unless tf32 is allowed
        tile |= {"KEYS": 32, "TAIL": 32, "DESCRIPTORS": False, "num_stages": 1}
        if target.startswith("gfx"):  # which has: a warp multiplies 32 rows
            return {**tile, "QUERIES": 64, "num_warps": 2}
        if head_dim > 64:
            return {**tile, "QUERIES": 16, "num_warps": 4}
        return {**tile, "QUERIES": 32, "num_warps": 8 if blackwell else 4}
    if target.startswith("gfx"):
        return {**tile, "KEYS": 64, "TAIL": 32, "num_warps": 4, "num_stages": 1}
    if head_dim > 64:
        return tile if hopper or blackwell else {**tile, "KEYS": 64, "TAIL": 32, "num_stages": 3}
    if hopper and longest >= 256:
        return {**tile, "TILES": 2} if drops else {**tile, "KEYS": 256}
    return tile


@torch.library.custom_op("plainbert::attention", mutates_args=())
@on_its_gpu
def attention_op(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_seqlen: int,
    seed: Tensor | None, stream: int, threshold: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the forward kernel; returns the output and log₂ Σ 2^score, [heads, tokens]."""
    output, lse = _forward_outputs(query)
    tokens, heads, head_dim = query.shape
    if tokens == 0:
        return output, lse
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    tile = forward_tile(
        architecture(query.device), head_dim, query.dtype, seed is not None, max_seqlen
    )
    tile["DESCRIPTORS"] = tile["DESCRIPTORS"] and can_describe(key) and can_describe(value)
    described = (None, None)
    if tile["DESCRIPTORS"]:
        described = (describe(key, tile["KEYS"]), describe(value, tile["KEYS"]))
    tiles = tiles_for(max_seqlen, tile["QUERIES"])
    attention_forward_kernel[((len(cu_seqlens) - 1) * heads * tiles,)](
        query, key, value, *described, output, lse, cu_seqlens,
        *query.stride()[:2], *key.stride()[:2], *value.stride()[:2],
        tokens, heads, tiles, seed, stream, threshold,
        SCALE=LOG2_E / math.sqrt(head_dim), HEAD_DIM=head_dim,
        HAS_DROPOUT=seed is not None, PRECISION=dot_precision(), **tile,
    )  # fmt: skip
    return output, lse


def _forward_outputs(query: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate what the forward kernel fills."""
    tokens, heads, _ = query.shape
    statistics = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty(query.shape), query.new_empty((heads, tokens), dtype=statistics)


@attention_op.register_fake
def _(query, key, value, cu_seqlens, max_seqlen, seed, stream, threshold):
    return _forward_outputs(query)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, cu_seqlens, max_seqlen, seed, stream, threshold):
        output, lse = attention_op(
            query, key, value, cu_seqlens, max_seqlen, seed, stream, threshold
        )
        ctx.save_for_backward(query, key, value, output, lse, cu_seqlens, seed)
        ctx.constants = max_seqlen, stream, threshold
        ctx.mark_non_differentiable(lse)
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, doutput, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, output, lse, cu_seqlens, seed = ctx.saved_tensors
        max_seqlen, stream, threshold = ctx.constants
        gradients = attention_backward_op(
            doutput, query, key, value, output, lse, cu_seqlens, max_seqlen, seed, stream,
            threshold,
        )  # fmt: skip
        return *gradients, *(None,) * 5


def attention_with_lse(
    query: Float[Tensor, "tokens heads head_dim"],
    key: Float[Tensor, "tokens heads head_dim"],
    value: Float[Tensor, "tokens heads head_dim"],
    sequences: PackedSequences,
    dropout: Dropout | None = None,
) -> tuple[Float[Tensor, "tokens heads head_dim"], Float[Tensor, "heads tokens"]]:
    """Attend, and say the logarithm of each row's sum of exponentials of scores too.

    Returns: the output in query's dtype; the logarithm in float32 (float64 for float64), which is
        a constant to autograd.

    Raises:
        ValueError: a shape, stride, dtype or device isn't what the signature says; a head_dim
            other than 16, 32, 64, 128; lengths that don't add up.
    """
    check(query, key, value, sequences)
    seed, stream, threshold = None, 0, 0
    if dropout is not None and dropout.threshold > 0:
        require_seed("dropout", dropout.seed, query.device)
        seed, stream, threshold = dropout.seed, dropout.stream, dropout.threshold
    output, lse = _Attention.apply(
        query, key, value, sequences.cu_seqlens, sequences.max_seqlen, seed, stream, threshold
    )
    return output, lse * math.log(2)


def attention(
    query: Float[Tensor, "tokens heads head_dim"],
    key: Float[Tensor, "tokens heads head_dim"],
    value: Float[Tensor, "tokens heads head_dim"],
    sequences: PackedSequences,
    dropout: Dropout | None = None,
) -> Float[Tensor, "tokens heads head_dim"]:
    """See `kernel_set.Attention`; the mask is `philox.keep_attention`.

    Query, key and value may be strided, such as slices of one packed [tokens, 3, heads, head_dim].

    Returns: query's dtype; scores, sums and exponentials in float32 (float64 for float64).

    Raises:
        ValueError: as `attention_with_lse`.
    """
    return attention_with_lse(query, key, value, sequences, dropout)[0]
