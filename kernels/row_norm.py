"""The arithmetic of one LayerNorm (Ba et al. 2016), for every kernel that normalises rows.

`layer_norm.py` has the mathematics, and tells how the tiles lie.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device import power_of_two


@triton.jit
def normalise(x, column_inside, EPS: tl.constexpr, HIDDEN: tl.constexpr):
    """Return x̂ of a tile of rows, and each row's mean and 1 / deviation."""
    # Two passes over registers, not E[x²] − E[x]², which loses all digits where |mean| ≫ spread.
    mean = tl.sum(x, 1) / HIDDEN
    centred = tl.where(column_inside[None, :], x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / HIDDEN + EPS)
    return centred * rstd[:, None], mean, rstd


@triton.jit
def normalise_backward(dnormal, normal, rstd, HIDDEN: tl.constexpr):
    """Turn dx̂ into dx; `normal` is x̂, and both are zero outside."""
    mean = tl.sum(dnormal, 1)[:, None] / HIDDEN
    along = tl.sum(dnormal * normal, 1)[:, None] / HIDDEN
    return (dnormal - mean - normal * along) * rstd[:, None]


def forward_tile(hidden: int) -> dict[str, int]:
    """Choose the forward tile: one warp, 2 rows of up to 1,024 (more rows where they are short).

    8 rows of 128 fill the same 64 registers a thread as 2 rows of 1,024 do. A wider row takes
    more warps, up to the 16 that every GPU has room for.
    """
    block = max(power_of_two(hidden), 8)
    rows = min(max(2048 // block, 1), 8)
    warps = min(max(block // 1024, 1), 16)
    return {"BLOCK_ROWS": rows, "BLOCK_HIDDEN": block, "num_warps": warps}


def backward_tile(hidden: int) -> dict[str, int]:
    """Choose the backward tile: half the forward one, since sums stay in registers too."""
    tile = forward_tile(hidden)
    return {**tile, "BLOCK_ROWS": max(tile["BLOCK_ROWS"] // 2, 1)}


def statistics(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate each row's mean and 1 / deviation, which spare the backward pass computing them."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    mean, rstd = (rows.new_empty(rows.shape[0], dtype=dtype) for _ in range(2))
    return mean, rstd
