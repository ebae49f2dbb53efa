"""The gradients of attention, without atomic additions, so that every run gives the same bits.

Mathematics, with D the upstream gradient of O, and S, P as in `attention.py` (dropout's mask m,
0 or 1 / probability of keeping, stands on P):

    dV = (m·P)ᵀ·D         dP = m · (D·Vᵀ)         δ = Σ O·D along a row (= Σ P·dP)
    dS = P · (dP − δ)     dQ = dS·K / √head_dim   dK = dSᵀ·Q / √head_dim

P is computed again from the scores and the logarithm of their sum: 2^(S − lse). dQ sums over keys,
dK and dV over queries; one kernel that did both would have to add to memory that other programs
add to. So there are two, and each program owns what it writes:

     dq: Q, D tiles stay,                   dk, dv: K, V tiles stay,
         K, V tiles pass →                          Q, D tiles pass ↓
        ┌────┬────┬────┐                            ┌────┐
    Q,D │    │    │    │ → dQ tile                  │    │ Q, D
        └────┴────┴────┘                            ├────┤
         K, V                                       │    │
        writes δ for the second                     └────┘ K, V
                                                      ↓ dK, dV tiles

That costs 7 matrix products where 5 would do. Where all sequences have at most 128 tokens, one
tile holds a whole sequence, and `attention_short_backward_kernel` does all with 5.

These kernels were compiled for A100, H100, B200 and MI300X, and run by Triton's interpreter; they
were not yet run on a GPU.
"""

import math
from typing import Any

import torch
from torch import Tensor

from kernels.attention_dkdv import attention_dkdv_kernel
from kernels.attention_dq import attention_dq_kernel
from kernels.attention_short_backward import attention_short_backward_kernel
from kernels.attention_tiles import can_describe, describe
from kernels.device import architecture, dot_precision, on_its_gpu, power_of_two, tiles_for

SHORT = 128
"""The longest sequence that one tile holds whole, where there is shared memory for it."""
DATA_CENTRE = ("sm90", "sm100", "sm103", "")
"""What has over 200 KB of shared memory and a copy engine; "" is the interpreter."""


def dq_tile(target: str, head_dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Choose the tile of the kernel for dquery, for an architecture."""
    plain = {"DESCRIPTORS": False, "num_stages": 1}
    if dtype in (torch.float32, torch.float64):  # few tensor cores multiply these
        if target.startswith("gfx"):  # as below
            rows = 64 if head_dim * dtype.itemsize <= 256 else 32
            return {"QUERIES": rows, "KEYS": 32, "num_warps": rows // 32, **plain}
        return {"QUERIES": 32, "KEYS": 32, "num_warps": 8, **plain}
    if target.startswith("gfx"):  # a warp has 32 rows, and 64 KB hold no more at a head_dim of 128
        if head_dim > 64:
            return {"QUERIES": 64, "KEYS": 32, "num_warps": 2, **plain}
        return {"QUERIES": 128, "KEYS": 64, "num_warps": 4, **plain}
    newest = target in DATA_CENTRE
    tile = {"DESCRIPTORS": newest, "num_warps": 4 if newest else 8, "num_stages": 2}
    if head_dim > 64:
        return {"QUERIES": 64, "KEYS": 64, **tile}
    return {"QUERIES": 64, "KEYS": 128, **tile} if newest else {"QUERIES": 128, "KEYS": 64, **tile}


def dkdv_tile(target: str, head_dim: int, dtype: torch.dtype, has_dropout: bool) -> dict[str, Any]:
    """Choose the tile of the kernel for dkey and dvalue: a mask takes registers from the tile."""
    tile = {**dq_tile(target, head_dim, dtype), "TRANSPOSED": False}
    if dtype in (torch.float32, torch.float64):
        small = {"QUERIES": 32, "KEYS": 32}
        return {**tile, **small, "num_warps": 1 if target.startswith("gfx") else 4}
    if target.startswith("gfx"):
        if head_dim < 64:  # 4 warps would do half of the products for dkey and dvalue twice
            return {**tile, "QUERIES": 64, "KEYS": 64, "num_warps": 2}
        return {**tile, "QUERIES": 128, "KEYS": 32 if head_dim > 64 else 64, "num_warps": 4}
    if head_dim > 64:
        hopper = target in ("", "sm90")
        return {**tile, "QUERIES": 128, "num_warps": 8} if hopper and has_dropout else tile
    if has_dropout:
        return {**tile, "QUERIES": 64, "KEYS": 64, "num_warps": 4}
    if target in DATA_CENTRE:
        return {**tile, "QUERIES": 128, "KEYS": 128, "num_warps": 8}
    return {**tile, "QUERIES": 64, "KEYS": 128, "TRANSPOSED": True}


def longest_short(target: str) -> int:
    """Say how long the sequences may be of which one tile holds each whole.

    128 tokens take 112 KB of an A100's shared memory. NVIDIA's cards for desks and racks (of
    capability 8.6, 8.9 and 12) have 99 KB, on which everything else fits that an A100 runs.
    """
    return SHORT // 2 if target.startswith(("sm86", "sm89", "sm12")) else SHORT


def short_tile(target: str, longest: int) -> dict[str, int]:
    """Choose the tile of the kernel for short sequences; a mask comes in blocks of 32."""
    block = max(power_of_two(longest), 32)
    warps = block // 32 if target.startswith("gfx") else max(block // 16, 4)
    return {"BLOCK": block, "num_warps": warps, "num_stages": 1}


@torch.library.custom_op("plainbert::attention_backward", mutates_args=())
@on_its_gpu
def attention_backward_op(
    doutput: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, lse: Tensor,
    cu_seqlens: Tensor, max_seqlen: int, seed: Tensor | None, stream: int, threshold: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the kernel for short sequences or the two for any; returns dquery, dkey, dvalue."""
    tokens, heads, head_dim = query.shape
    dquery, dkey, dvalue = gradients = _gradients(query)
    if tokens == 0:
        return gradients
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    doutput = doutput.contiguous()
    strides = (*query.stride()[:2], *key.stride()[:2], *value.stride()[:2])
    programs, target = (len(cu_seqlens) - 1) * heads, architecture(query.device)
    constants = {
        "SCALE": math.log2(math.e) / math.sqrt(head_dim),
        "HEAD_DIM": head_dim,
        "HAS_DROPOUT": seed is not None,
        "PRECISION": dot_precision(),
    }
    if max_seqlen <= longest_short(target) and head_dim <= 64 and query.dtype.itemsize == 2:
        attention_short_backward_kernel[(programs,)](
            query, key, value, output, doutput, dquery, dkey, dvalue, lse, cu_seqlens,
            *strides, tokens, heads, seed, stream, threshold, **constants,
            **short_tile(target, max_seqlen),
        )  # fmt: skip
        return gradients

    delta = torch.empty_like(lse)
    tile = dq_tile(target, head_dim, query.dtype)
    sources, tile = _describe(key, value, tile, tile["KEYS"])
    tiles = tiles_for(max_seqlen, tile["QUERIES"])
    attention_dq_kernel[(programs * tiles,)](
        query, *sources, output, doutput, dquery, lse, delta, cu_seqlens,
        *strides, tokens, heads, tiles, seed, stream, threshold, **constants, **tile,
    )  # fmt: skip
    tile = dkdv_tile(target, head_dim, query.dtype, seed is not None)
    sources, tile = _describe(query, doutput, tile, tile["QUERIES"])
    tiles = tiles_for(max_seqlen, tile["KEYS"])
    attention_dkdv_kernel[(programs * tiles,)](
        *sources, key, value, dkey, dvalue, lse, delta, cu_seqlens,
        *strides, tokens, heads, tiles, seed, stream, threshold, **constants, **tile,
    )  # fmt: skip
    return gradients


def _gradients(query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate what the kernels fill."""
    return query.new_empty(query.shape), query.new_empty(query.shape), query.new_empty(query.shape)


def _describe(
    first: Tensor, second: Tensor, tile: dict[str, Any], rows: int
) -> tuple[tuple[Any, Any], dict[str, Any]]:
    """Describe what passes by tile by tile, where the tile wants it and the tensors allow it."""
    if tile["DESCRIPTORS"] and can_describe(first) and can_describe(second):
        return (describe(first, rows), describe(second, rows)), tile
    return (first, second), {**tile, "DESCRIPTORS": False}


@attention_backward_op.register_fake
def _(doutput, query, key, value, output, lse, cu_seqlens, max_seqlen, seed, stream, threshold):
    return _gradients(query)
