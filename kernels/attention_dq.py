"""The gradient of attention's queries, and δ of every row; see `attention_backward.py`.

These kernels were compiled for A100, H100, B200 and MI300X, and run by Triton's interpreter; they
were not yet run on a GPU.
"""

import triton
import triton.language as tl

from kernels.attention_tiles import load_rows, load_tile, locate, rows_at, store_rows
from kernels.random_bits import dropout_scale, keep_attention


@triton.jit
def dq_step(
    dquery, query, doutput, lse, delta, key_source, value_source, first, start, length, head,
    key_stride, value_stride, seed, stream, threshold, sequence, first_query,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Add one tile of keys' part to dquery, which is scaled at the end."""
    dtype: tl.constexpr = dquery.dtype
    row, end = start + first, start + length
    key = load_tile(key_source, row, end, head, key_stride, KEYS, HEAD_DIM, DESCRIPTORS, MASKED)
    value = load_tile(
        value_source, row, end, head, value_stride, KEYS, HEAD_DIM, DESCRIPTORS, MASKED
    )
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=dtype)
    weights = tl.exp2(scores * SCALE - lse[:, None])
    if HAS_DROPOUT:
        dweights = tl.dot(doutput, tl.trans(value), input_precision=PRECISION, out_dtype=dtype)
        keep = keep_attention(
            seed, stream, threshold, sequence, head, first_query, first, QUERIES, KEYS
        )
        # P·(m·dP − δ), in the form that is one multiplication and one addition that may not happen
        dropped = weights * -delta[:, None]
        dscores = tl.where(keep, weights * dweights + dropped, dropped)
    else:
        # The product's sums start from −δ: A100's tensor cores then subtract it for nothing.
        less = tl.broadcast_to(-delta[:, None], [QUERIES, KEYS])
        dweights = tl.dot(
            doutput, tl.trans(value), less, input_precision=PRECISION, out_dtype=dtype
        )
        dscores = weights * dweights
    # Keys past the end are zero, so whatever dscores has there adds nothing.
    return tl.dot(dscores.to(key.dtype), key, dquery, input_precision=PRECISION, out_dtype=dtype)


@triton.jit(do_not_specialize=["tokens", "heads", "tiles", "stream", "threshold"])
def attention_dq_kernel(
    query_ptr, key_source, value_source, output_ptr, doutput_ptr, dquery_ptr, lse_ptr, delta_ptr,
    cu_seqlens_ptr, query_stride, query_head_stride, key_stride, key_head_stride,
    value_stride, value_head_stride, tokens, heads, tiles, seed_ptr, stream, threshold,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, DESCRIPTORS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute dquery for one tile of queries, and their δ.

    Dropout's scale is left out of the loop: δ is made smaller instead, and dquery scaled once.
    """
    dtype: tl.constexpr = tl.float64 if output_ptr.dtype.element_ty == tl.float64 else tl.float32
    sequence, head, tile, start, length = locate(cu_seqlens_ptr, heads, tiles)
    first_query = tile * QUERIES
    if first_query < length:
        row, end = start + first_query, start + length
        packed = heads * HEAD_DIM
        query = load_rows(
            query_ptr, row, end, head, query_stride, query_head_stride,
            QUERIES, HEAD_DIM, False, True,
        )  # fmt: skip
        doutput = load_rows(
            doutput_ptr, row, end, head, packed, HEAD_DIM, QUERIES, HEAD_DIM, False, True
        )
        output = load_rows(
            output_ptr, row, end, head, packed, HEAD_DIM, QUERIES, HEAD_DIM, False, True
        )
        delta = tl.sum(output.to(dtype) * doutput.to(dtype), 1)
        scale = SCALE * 0.6931471805599453  # SCALE has log₂e in it
        seed = 0
        if HAS_DROPOUT:
            seed = tl.load(seed_ptr)
            kept = dropout_scale(threshold, dtype)
            delta = delta / kept
            scale = kept * scale
        line = tl.arange(0, QUERIES)
        place = head.to(tl.int64) * tokens + row + line
        inside = row + line < end
        tl.store(delta_ptr + place, delta, mask=inside)
        # Rows past the end have probability 2^(0 − ∞) = 0.
        lse = tl.load(lse_ptr + place, mask=inside, other=float("inf"))
        dquery = tl.zeros([QUERIES, HEAD_DIM], dtype)
        if not DESCRIPTORS:
            key_source = rows_at(key_source, start, head, key_stride, key_head_stride)
            value_source = rows_at(value_source, start, head, value_stride, value_head_stride)
        whole = length // KEYS * KEYS
        for first in range(0, whole, KEYS):
            dquery = dq_step(
                dquery, query, doutput, lse, delta, key_source, value_source, first, start, length,
                head, key_stride, value_stride, seed, stream, threshold, sequence, first_query,
                SCALE, HEAD_DIM, QUERIES, KEYS, HAS_DROPOUT, DESCRIPTORS, PRECISION, False,
            )  # fmt: skip
            if not DESCRIPTORS:
                key_source += KEYS * key_stride
                value_source += KEYS * value_stride
        if whole < length:
            dquery = dq_step(
                dquery, query, doutput, lse, delta, key_source, value_source, whole, start, length,
                head, key_stride, value_stride, seed, stream, threshold, sequence, first_query,
                SCALE, HEAD_DIM, QUERIES, KEYS, HAS_DROPOUT, DESCRIPTORS, PRECISION, True,
            )  # fmt: skip
        store_rows(dquery_ptr, dquery * scale, row, end, head, heads, QUERIES, HEAD_DIM)
