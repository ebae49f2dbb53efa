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

            keys of the sequence →                    a program:  Q tile stays, K and V tiles pass
          ┌────────┬────────┬──┬──┬ ─ ─               S, P: numbers in registers
     Q    │  step  │  step  │  │  │ masked            dropout: drawn for the tile, where it lies
    tile →│ no mask│ no mask│  │  │
          └────────┴────────┴──┴──┴ ─ ─               the tail has narrow tiles, the loop no mask

Work: 4·head_dim operations of the tensor cores for each of the length² scores, and one
exponential. At head_dim 64 an H100's tensor cores and its exponential unit are busy equally long,
so what is left to save is instructions around them. Hence a step over 256 keys where registers
allow: A is corrected once for all of them. And l is kept as 8 sums a row, one for each place in
a group of 8 columns, which the tensor cores' layout gives to 4 threads: no thread has to ask
another before the end.

Dropout acts on P: l sums what was there before, and kept elements are scaled at the end. The mask
is `kernels.philox.keep_attention`, drawn again in the backward pass.

These kernels were compiled for A100, H100, B200 and MI300X, and run by Triton's interpreter; they
were not yet run on a GPU.
"""

# pyright: reportArgumentType=false, reportAssignmentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportIncompatibleMethodOverride=false
# (Inside @triton.jit, integers and tensors are values of Triton's language, not of Python's. And
# once_differentiable hides that `backward` takes what autograd.Function says.)

import math
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.attention_backward import attention_backward_op
from kernels.attention_tiles import can_describe, check, describe, load_rows, locate, store_rows
from kernels.device import architecture, dot_precision, require_seed, tiles_for
from kernels.kernel_set import Dropout, PackedSequences
from kernels.random_bits import dropout_scale, keep_attention

LOG2_E = math.log2(math.e)


@triton.jit
def score(
    query, keys, first, start, length, head, stride, head_stride,
    HEAD_DIM: tl.constexpr, KEYS: tl.constexpr, DESCRIPTORS: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Multiply the queries with KEYS keys; where masked, keys past the end get −∞."""
    key = load_rows(
        keys, start + first, start + length, head, stride, head_stride,
        KEYS, HEAD_DIM, DESCRIPTORS, MASKED,
    )  # fmt: skip
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=DTYPE)
    if MASKED:
        inside = first + tl.arange(0, KEYS) < length
        scores = tl.where(inside[None, :], scores, float("-inf"))
    return scores


@triton.jit
def weigh(
    context, total, scores, peak, values, first, start, length, head, stride, head_stride,
    seed, stream, threshold, sequence, first_query,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, DESCRIPTORS: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add KEYS values, weighed by their scores, to the sums A and l."""
    weights = tl.exp2(scores * SCALE - peak[:, None])
    total += tl.sum(weights.reshape(QUERIES, KEYS // 8, 8), 1)
    if HAS_DROPOUT:
        keep = keep_attention(
            seed, stream, threshold, sequence, head, first_query, first, QUERIES, KEYS
        )
        # A zero that the compiler can't know to be one: if it could, it would round first and
        # then choose, one 16-bit half of a register at a time.
        zero = (threshold >> 16).to(weights.dtype)
        weights = tl.where(keep, weights, zero)
    value = load_rows(
        values, start + first, start + length, head, stride, head_stride,
        KEYS, HEAD_DIM, DESCRIPTORS, MASKED,
    )  # fmt: skip
    context = tl.dot(
        weights.to(value.dtype), value, context,
        input_precision=PRECISION, out_dtype=context.dtype,
    )  # fmt: skip
    return context, total


@triton.jit
def forward_step(
    context, total, peak, query, keys, values, first, start, length, head,
    key_stride, key_head_stride, value_stride, value_head_stride,
    seed, stream, threshold, sequence, first_query,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    TILES: tl.constexpr, HAS_DROPOUT: tl.constexpr, DESCRIPTORS: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take one or two more tiles of keys and values into the sums."""
    scores = score(
        query, keys, first, start, length, head, key_stride, key_head_stride,
        HEAD_DIM, KEYS, DESCRIPTORS, MASKED, PRECISION, context.dtype,
    )  # fmt: skip
    if TILES == 2:
        scores2 = score(
            query, keys, first + KEYS, start, length, head, key_stride, key_head_stride,
            HEAD_DIM, KEYS, DESCRIPTORS, MASKED, PRECISION, context.dtype,
        )  # fmt: skip
        highest = tl.max(tl.maximum(scores, scores2), 1)
    else:
        highest = tl.max(scores, 1)
    new_peak = tl.maximum(peak, highest * SCALE)
    correction = tl.exp2(peak - new_peak)[:, None]
    context, total = weigh(
        context * correction, total * correction, scores, new_peak, values, first, start, length,
        head, value_stride, value_head_stride, seed, stream, threshold, sequence, first_query,
        SCALE, HEAD_DIM, QUERIES, KEYS, HAS_DROPOUT, DESCRIPTORS, MASKED, PRECISION,
    )  # fmt: skip
    if TILES == 2:
        context, total = weigh(
            context, total, scores2, new_peak, values, first + KEYS, start, length,
            head, value_stride, value_head_stride, seed, stream, threshold, sequence, first_query,
            SCALE, HEAD_DIM, QUERIES, KEYS, HAS_DROPOUT, DESCRIPTORS, MASKED, PRECISION,
        )  # fmt: skip
    return context, total, new_peak


@triton.jit(do_not_specialize=["tokens", "heads", "tiles", "stream", "threshold"])
def attention_forward_kernel(
    query_ptr, key_ptr, value_ptr, key_tiles, value_tiles, output_ptr, lse_ptr, cu_seqlens_ptr,
    query_stride, query_head_stride, key_stride, key_head_stride, value_stride, value_head_stride,
    tokens, heads, tiles, seed_ptr, stream, threshold,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    TILES: tl.constexpr, TAIL: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute one tile of queries of one head; `lse` gets log₂ Σ 2^score, [heads, tokens].

    `key_tiles` and `value_tiles` are descriptors, from which the loop reads if DESCRIPTORS.
    """
    dtype: tl.constexpr = tl.float64 if output_ptr.dtype.element_ty == tl.float64 else tl.float32
    sequence, head, tile, start, length = locate(cu_seqlens_ptr, heads, tiles)
    first_query = tile * QUERIES
    if first_query < length:
        query = load_rows(
            query_ptr, start + first_query, start + length, head, query_stride,
            query_head_stride, QUERIES, HEAD_DIM, False, True,
        )  # fmt: skip
        seed = tl.load(seed_ptr) if HAS_DROPOUT else 0
        context = tl.zeros([QUERIES, HEAD_DIM], dtype)
        total = tl.zeros([QUERIES, 8], dtype)
        peak = tl.full([QUERIES], float("-inf"), dtype)
        whole = length // (TILES * KEYS) * (TILES * KEYS)
        for first in range(0, whole, TILES * KEYS):
            context, total, peak = forward_step(
                context, total, peak, query, key_tiles if DESCRIPTORS else key_ptr,
                value_tiles if DESCRIPTORS else value_ptr, first, start, length, head,
                key_stride, key_head_stride, value_stride, value_head_stride,
                seed, stream, threshold, sequence, first_query,
                SCALE, HEAD_DIM, QUERIES, KEYS, TILES, HAS_DROPOUT, DESCRIPTORS, False, PRECISION,
            )  # fmt: skip
        for first in range(whole, length, TAIL):
            context, total, peak = forward_step(
                context, total, peak, query, key_ptr, value_ptr, first, start, length, head,
                key_stride, key_head_stride, value_stride, value_head_stride,
                seed, stream, threshold, sequence, first_query,
                SCALE, HEAD_DIM, QUERIES, TAIL, 1, HAS_DROPOUT, False, True, PRECISION,
            )  # fmt: skip
        row_total = tl.sum(total, 1)
        scale = 1.0 / row_total
        if HAS_DROPOUT:
            scale *= dropout_scale(threshold, dtype)
        store_rows(
            output_ptr, context * scale[:, None], start + first_query, start + length, head, heads,
            QUERIES, HEAD_DIM,
        )  # fmt: skip
        line = first_query + tl.arange(0, QUERIES)
        lse = lse_ptr + head.to(tl.int64) * tokens + start + line
        tl.store(lse, peak + tl.log2(row_total), mask=line < length)


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
        small = {"QUERIES": 32 if head_dim <= 64 else 16, "KEYS": 32, "TAIL": 32}
        return {**tile, **small, "DESCRIPTORS": False, "num_warps": 4, "num_stages": 1}
    if target.startswith("gfx"):
        return {**tile, "KEYS": 64, "TAIL": 32, "num_warps": 4, "num_stages": 1}
    if head_dim > 64:
        return tile if hopper or blackwell else {**tile, "KEYS": 64, "TAIL": 32}
    if hopper and longest >= 256:
        return {**tile, "TILES": 2} if drops else {**tile, "KEYS": 256}
    return tile


@torch.library.custom_op("plainbert::attention", mutates_args=())
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
    def backward(ctx, doutput, _):
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
