"""The gradients of attention's keys and values; see `attention_backward.py`.

These kernels were compiled for A100, H100, B200 and MI300X, and run by Triton's interpreter; they
were not yet run on a GPU.
"""

import triton
import triton.language as tl

from kernels.attention_tiles import load_rows, load_tile, locate, rows_at, store_rows
from kernels.random_bits import dropout_scale, keep_attention


@triton.jit
def dkdv_step(
    dkey, dvalue, key, value, query_source, doutput_source, lse_ptr, delta_ptr,
    first, start, length, head, query_stride, packed,
    seed, stream, threshold, sequence, first_key,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, DESCRIPTORS: tl.constexpr, TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add one tile of queries' part to dkey and dvalue, which are scaled at the end."""
    dtype: tl.constexpr = dkey.dtype
    row, end = start + first, start + length
    query = load_tile(
        query_source, row, end, head, query_stride, QUERIES, HEAD_DIM, DESCRIPTORS, MASKED
    )
    doutput = load_tile(
        doutput_source, row, end, head, packed, QUERIES, HEAD_DIM, DESCRIPTORS, MASKED
    )
    line = row + tl.arange(0, QUERIES)
    if MASKED:  # a query past the end has probability 2^(0 − ∞) = 0
        lse = tl.load(lse_ptr + line, mask=line < end, other=float("inf"))
        delta = tl.load(delta_ptr + line, mask=line < end, other=0.0)
    else:
        lse, delta = tl.load(lse_ptr + line), tl.load(delta_ptr + line)
    if TRANSPOSED:
        scores = tl.dot(key, tl.trans(query), input_precision=PRECISION, out_dtype=dtype)
        dweights = tl.dot(value, tl.trans(doutput), input_precision=PRECISION, out_dtype=dtype)
        lse, delta = lse[None, :], delta[None, :]
    else:
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=dtype)
        dweights = tl.dot(doutput, tl.trans(value), input_precision=PRECISION, out_dtype=dtype)
        lse, delta = lse[:, None], delta[:, None]
    weights = tl.exp2(scores * SCALE - lse)
    if HAS_DROPOUT:
        tl.static_assert(not TRANSPOSED)  # a mask lies in registers as [queries, keys]
        keep = keep_attention(
            seed, stream, threshold, sequence, head, first, first_key, QUERIES, KEYS
        )
        # A zero that the compiler can't know to be one: if it could, it would round first and
        # then choose, one 16-bit half of a register at a time.
        zero = (threshold >> 16).to(dtype)
        kept = tl.where(keep, weights, zero)
        dscores = kept * dweights - weights * delta
    else:
        kept = weights
        dscores = weights * (dweights - delta)
    kept, dscores = kept.to(query.dtype), dscores.to(query.dtype)
    if not TRANSPOSED:
        kept, dscores = tl.trans(kept), tl.trans(dscores)
    dvalue = tl.dot(kept, doutput, dvalue, input_precision=PRECISION, out_dtype=dtype)
    dkey = tl.dot(dscores, query, dkey, input_precision=PRECISION, out_dtype=dtype)
    return dkey, dvalue


@triton.jit(do_not_specialize=["tokens", "heads", "tiles", "stream", "threshold"])
def attention_dkdv_kernel(
    query_source, doutput_source, key_ptr, value_ptr, dkey_ptr, dvalue_ptr, lse_ptr, delta_ptr,
    cu_seqlens_ptr, query_stride, query_head_stride, key_stride, key_head_stride,
    value_stride, value_head_stride, tokens, heads, tiles, seed_ptr, stream, threshold,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, DESCRIPTORS: tl.constexpr, TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute dkey and dvalue for one tile of keys; `attention_dq_kernel` left δ for it.

    P and dS are operands of dV and dK with keys along the rows. Transposed, they are computed so,
    and never leave their registers; else Hopper's matrix stores turn them round in shared memory,
    and lse, δ and the mask are cheaper by more than that.
    """
    dtype: tl.constexpr = tl.float64 if lse_ptr.dtype.element_ty == tl.float64 else tl.float32
    sequence, head, tile, start, length = locate(cu_seqlens_ptr, heads, tiles)
    first_key = tile * KEYS
    if first_key < length:
        row, end = start + first_key, start + length
        packed = heads * HEAD_DIM
        key = load_rows(
            key_ptr, row, end, head, key_stride, key_head_stride, KEYS, HEAD_DIM, False, True
        )
        value = load_rows(
            value_ptr, row, end, head, value_stride, value_head_stride, KEYS, HEAD_DIM, False, True
        )
        lse_ptr += head.to(tl.int64) * tokens
        delta_ptr += head.to(tl.int64) * tokens
        seed = 0
        if HAS_DROPOUT:
            seed = tl.load(seed_ptr)
        dkey = tl.zeros([KEYS, HEAD_DIM], dtype)
        dvalue = tl.zeros([KEYS, HEAD_DIM], dtype)
        if not DESCRIPTORS:
            query_source = rows_at(query_source, start, head, query_stride, query_head_stride)
            doutput_source = rows_at(doutput_source, start, head, packed, HEAD_DIM)
        whole = length // QUERIES * QUERIES
        for first in range(0, whole, QUERIES):
            dkey, dvalue = dkdv_step(
                dkey, dvalue, key, value, query_source, doutput_source, lse_ptr, delta_ptr,
                first, start, length, head, query_stride, packed,
                seed, stream, threshold, sequence, first_key, SCALE, HEAD_DIM, QUERIES, KEYS,
                HAS_DROPOUT, DESCRIPTORS, TRANSPOSED, PRECISION, False,
            )  # fmt: skip
            if not DESCRIPTORS:
                query_source += QUERIES * query_stride
                doutput_source += QUERIES * packed
        if whole < length:
            dkey, dvalue = dkdv_step(
                dkey, dvalue, key, value, query_source, doutput_source, lse_ptr, delta_ptr,
                whole, start, length, head, query_stride, packed,
                seed, stream, threshold, sequence, first_key, SCALE, HEAD_DIM, QUERIES, KEYS,
                HAS_DROPOUT, DESCRIPTORS, TRANSPOSED, PRECISION, True,
            )  # fmt: skip
        scale = SCALE * 0.6931471805599453  # SCALE has log₂e in it
        if HAS_DROPOUT:
            kept = dropout_scale(threshold, dtype)
            dvalue = dvalue * kept
            scale = kept * scale
        store_rows(dkey_ptr, dkey * scale, row, end, head, heads, KEYS, HEAD_DIM)
        store_rows(dvalue_ptr, dvalue, row, end, head, heads, KEYS, HEAD_DIM)
