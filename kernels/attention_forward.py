"""Attention's forward kernel; see `attention.py`.

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

import triton
import triton.language as tl

from kernels.attention_tiles import load_rows, locate, store_rows
from kernels.random_bits import dropout_scale, keep_attention


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
        scores2, highest = scores, tl.max(scores, 1)
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
