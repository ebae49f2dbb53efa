"""All of attention's gradients for sequences that one tile holds; see `attention_backward.py`.

P and dS are computed once, where the two kernels for any length each compute them:

                   keys
               ┌────────────┐    S = Q·Kᵀ and D·Vᵀ once each, one exponential a score;
       queries │ the whole  │    dV = Pᵀ·D, dK = dSᵀ·Q, dQ = dS·K: 5 products for the others' 7,
               │ sequence   │    and δ never leaves the registers
               └────────────┘

These kernels were compiled for A100, H100, B200 and MI300X, and run by Triton's interpreter; they
were not yet run on a GPU.
"""

import triton
import triton.language as tl

from kernels.attention_tiles import load_rows, locate, store_rows
from kernels.random_bits import dropout_scale, keep_attention


@triton.jit(do_not_specialize=["tokens", "heads", "stream", "threshold"])
def attention_short_backward_kernel(
    query_ptr, key_ptr, value_ptr, output_ptr, doutput_ptr, dquery_ptr, dkey_ptr, dvalue_ptr,
    lse_ptr, cu_seqlens_ptr, query_stride, query_head_stride, key_stride, key_head_stride,
    value_stride, value_head_stride, tokens, heads, seed_ptr, stream, threshold,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute dquery, dkey and dvalue of one head of one sequence of at most BLOCK tokens."""
    dtype: tl.constexpr = tl.float64 if output_ptr.dtype.element_ty == tl.float64 else tl.float32
    sequence, head, _, start, length = locate(cu_seqlens_ptr, heads, 1)
    if length > 0:
        end, packed = start + length, heads * HEAD_DIM
        query = load_rows(
            query_ptr, start, end, head, query_stride, query_head_stride,
            BLOCK, HEAD_DIM, False, True,
        )  # fmt: skip
        key = load_rows(
            key_ptr, start, end, head, key_stride, key_head_stride, BLOCK, HEAD_DIM, False, True
        )
        value = load_rows(
            value_ptr, start, end, head, value_stride, value_head_stride,
            BLOCK, HEAD_DIM, False, True,
        )  # fmt: skip
        doutput = load_rows(
            doutput_ptr, start, end, head, packed, HEAD_DIM, BLOCK, HEAD_DIM, False, True
        )
        output = load_rows(
            output_ptr, start, end, head, packed, HEAD_DIM, BLOCK, HEAD_DIM, False, True
        )
        delta = tl.sum(output.to(dtype) * doutput.to(dtype), 1)
        line = tl.arange(0, BLOCK)
        # Queries past the end have probability 2^(0 − ∞) = 0.
        lse = tl.load(
            lse_ptr + head.to(tl.int64) * tokens + start + line,
            mask=line < length, other=float("inf"),
        )  # fmt: skip
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=dtype)
        dweights = tl.dot(doutput, tl.trans(value), input_precision=PRECISION, out_dtype=dtype)
        weights = tl.exp2(scores * SCALE - lse[:, None])
        scale = SCALE * 0.6931471805599453  # SCALE has log₂e in it
        kept_scale = 1.0
        if HAS_DROPOUT:
            seed = tl.load(seed_ptr)
            keep = keep_attention(seed, stream, threshold, sequence, head, 0, 0, BLOCK, BLOCK)
            kept_scale = dropout_scale(threshold, dtype)
            scale = kept_scale * scale
            kept = tl.where(keep, weights, 0.0)
            dscores = kept * dweights - weights * (delta / kept_scale)[:, None]
        else:
            kept = weights
            dscores = weights * (dweights - delta[:, None])
        kept, dscores = kept.to(query.dtype), dscores.to(query.dtype)
        dvalue = tl.dot(tl.trans(kept), doutput, input_precision=PRECISION, out_dtype=dtype)
        if HAS_DROPOUT:
            dvalue = dvalue * kept_scale
        store_rows(dvalue_ptr, dvalue, start, end, head, heads, BLOCK, HEAD_DIM)
        dkey = tl.dot(tl.trans(dscores), query, input_precision=PRECISION, out_dtype=dtype)
        store_rows(dkey_ptr, dkey * scale, start, end, head, heads, BLOCK, HEAD_DIM)
        # Keys past the end are zero, so whatever dscores has there adds nothing.
        dquery = tl.dot(dscores, key, input_precision=PRECISION, out_dtype=dtype)
        store_rows(dquery_ptr, dquery * scale, start, end, head, heads, BLOCK, HEAD_DIM)
