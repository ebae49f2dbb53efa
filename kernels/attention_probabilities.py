"""The probabilities that attention weighs with, written out for study.

`attention.py` never has them in memory. Here a program owns a tile of queries of one head, walks
over the keys once for the logarithm of each row's sum, and a second time to write
P = exp(S − lse), padded with zeros to the longest sequence:

         keys →               max_seqlen
       ┌──────┬──────┬──────┬──────┐       pass 1: greatest score and sum
    Q  │  P   │  P   │ P, 0 │  0   │       pass 2: write, zeros past the sequence's end
       └──────┴──────┴──────┴──────┘

It is bound by the memory that it writes, seqs · heads · max_seqlen² numbers.

This kernel was compiled for A100, H100, B200 and MI300X, and run by Triton's interpreter; it was
not yet run on a GPU.
"""

import math

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from kernels.attention_tiles import check, load_rows, locate
from kernels.device import dot_precision, on_its_gpu, tiles_for
from kernels.kernel_set import PackedSequences


@triton.jit
def scores_in_base_2(
    query, key_ptr, first, start, length, head, key_stride, key_head_stride,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Score one tile of keys, times log₂e; −∞ past the end."""
    key = load_rows(
        key_ptr, start + first, start + length, head, key_stride, key_head_stride,
        KEYS, HEAD_DIM, False, True,
    )  # fmt: skip
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=DTYPE) * SCALE
    return tl.where((first + tl.arange(0, KEYS) < length)[None, :], scores, float("-inf"))


@triton.jit(do_not_specialize=["heads", "tiles", "longest"])
def attention_probabilities_kernel(
    query_ptr, key_ptr, probabilities_ptr, cu_seqlens_ptr,
    query_stride, query_head_stride, key_stride, key_head_stride, heads, tiles, longest,
    SCALE: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the probabilities of one tile of queries of one head."""
    element = probabilities_ptr.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if element == tl.float64 else tl.float32
    sequence, head, tile, start, length = locate(cu_seqlens_ptr, heads, tiles)
    line = tile * QUERIES + tl.arange(0, QUERIES)
    query = load_rows(
        query_ptr, start + tile * QUERIES, start + length, head, query_stride, query_head_stride,
        QUERIES, HEAD_DIM, False, True,
    )  # fmt: skip
    peak = tl.full([QUERIES], float("-inf"), dtype)
    total = tl.zeros([QUERIES], dtype)
    for first in range(0, length, KEYS):
        scores = scores_in_base_2(
            query, key_ptr, first, start, length, head, key_stride, key_head_stride,
            SCALE, HEAD_DIM, KEYS, PRECISION, dtype,
        )  # fmt: skip
        new_peak = tl.maximum(peak, tl.max(scores, 1))
        total = total * tl.exp2(peak - new_peak) + tl.sum(tl.exp2(scores - new_peak[:, None]), 1)
        peak = new_peak
    lse = peak + tl.log2(total)
    matrix = (sequence.to(tl.int64) * heads + head) * longest * longest
    for first in range(0, longest, KEYS):
        scores = scores_in_base_2(
            query, key_ptr, first, start, length, head, key_stride, key_head_stride,
            SCALE, HEAD_DIM, KEYS, PRECISION, dtype,
        )  # fmt: skip
        column = first + tl.arange(0, KEYS)
        inside = (line < length)[:, None] & (column < length)[None, :]
        weights = tl.where(inside, tl.exp2(scores - lse[:, None]), 0.0)
        offsets = line.to(tl.int64)[:, None] * longest + column[None, :]
        tl.store(
            probabilities_ptr + matrix + offsets, weights.to(element),
            mask=(line < longest)[:, None] & (column < longest)[None, :],
        )  # fmt: skip


def probabilities_tile(dtype: torch.dtype) -> dict[str, int]:
    """Choose the tile, smaller where there may be no tensor cores for the dtype."""
    side = 64 if dtype in (torch.float16, torch.bfloat16) else 32
    return {"QUERIES": side, "KEYS": side, "num_warps": 4}


@torch.library.custom_op("plainbert::attention_probabilities", mutates_args=())
@on_its_gpu
def attention_probabilities_op(
    query: Tensor, key: Tensor, cu_seqlens: Tensor, max_seqlen: int
) -> Tensor:
    """Launch the kernel."""
    sequences = len(cu_seqlens) - 1
    _, heads, head_dim = query.shape
    probabilities = query.new_empty((sequences, heads, max_seqlen, max_seqlen))
    if probabilities.numel() > 0:
        query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
        tile = probabilities_tile(query.dtype)
        tiles = tiles_for(max_seqlen, tile["QUERIES"])
        attention_probabilities_kernel[(sequences * heads * tiles,)](
            query, key, probabilities, cu_seqlens, *query.stride()[:2], *key.stride()[:2],
            heads, tiles, max_seqlen, SCALE=math.log2(math.e) / math.sqrt(head_dim),
            HEAD_DIM=head_dim, PRECISION=dot_precision(), **tile,
        )  # fmt: skip
    return probabilities


@attention_probabilities_op.register_fake
def _(query, key, cu_seqlens, max_seqlen):
    return query.new_empty((len(cu_seqlens) - 1, query.shape[1], max_seqlen, max_seqlen))


def attention_probabilities(
    query: Float[Tensor, "tokens heads head_dim"],
    key: Float[Tensor, "tokens heads head_dim"],
    sequences: PackedSequences,
) -> Float[Tensor, "seqs heads max_seqlen max_seqlen"]:
    """See `kernel_set.AttentionProbabilities`. It has no gradient: to ask for one is an error.

    Returns: query's dtype; scores and sums in float32 (float64 for float64).

    Raises:
        ValueError: as `attention.attention`.
    """
    check(query, key, key, sequences)
    return attention_probabilities_op(query, key, sequences.cu_seqlens, sequences.max_seqlen)
