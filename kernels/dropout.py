"""Dropout (Srivastava et al. 2014) of a matrix, with a mask that the backward pass draws again.

    y = m · x        dx = m · dy        m = 0, or 1 / probability of keeping

The gradient is the same function of dy, so one kernel and one operator serve both. An element is
read and written once; `random_bits.py` tells how its mask is drawn.

This kernel was compiled for A100, H100, B200 and MI300X, and run by Triton's interpreter; it was
not yet run on a GPU.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.device import mask_arguments, on_its_gpu, require, require_gpu, tiles_for
from kernels.kernel_set import Dropout
from kernels.random_bits import dropout_scale, keep_rows
from kernels.row_norm import forward_tile


@triton.jit(do_not_specialize=["stream", "threshold", "rows"])
def dropout_kernel(
    x_ptr, y_ptr, seed_ptr, stream, threshold, rows,
    HIDDEN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """Drop from BLOCK_ROWS whole rows, which lie as in `layer_norm.py`."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_HIDDEN)
    inside = (row < rows)[:, None] & (column < HIDDEN)[None, :]
    offsets = row.to(tl.int64)[:, None] * HIDDEN + column[None, :]
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(dtype)
    keep = keep_rows(seed_ptr, stream, threshold, row, BLOCK_HIDDEN)
    y = tl.where(keep, x, 0.0) * dropout_scale(threshold, dtype)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@torch.library.custom_op("plainbert::dropout", mutates_args=())
@on_its_gpu
def dropout_op(x: Tensor, seed: Tensor, stream: int, threshold: int) -> Tensor:
    """Launch the kernel, on x or on a gradient."""
    x = x.contiguous()
    y = x.new_empty(x.shape)
    rows, hidden = x.shape
    if x.numel() > 0:
        tile = forward_tile(hidden)
        dropout_kernel[(tiles_for(rows, tile["BLOCK_ROWS"]),)](
            x, y, seed, stream, threshold, rows, HIDDEN=hidden, **tile
        )
    return y


@dropout_op.register_fake
def _(x, seed, stream, threshold):
    return x.new_empty(x.shape)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seed, stream, threshold):
        ctx.save_for_backward(seed)
        ctx.stream, ctx.threshold = stream, threshold
        return dropout_op(x, seed, stream, threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # pyright: ignore[reportIncompatibleMethodOverride]
        (seed,) = ctx.saved_tensors
        return dropout_op(dy, seed, ctx.stream, ctx.threshold), None, None, None


def dropout(
    x: Float[Tensor, "rows features"], dropout: Dropout | None
) -> Float[Tensor, "rows features"]:
    """See `kernel_set.DropoutOp`; the mask is `philox.keep_rows`.

    Returns: x itself where nothing is dropped, otherwise x's dtype.

    Raises:
        ValueError: a shape, dtype or device isn't what the signature says.
    """
    if x.dim() != 2:
        raise ValueError(f"x: expected two axes (rows, features), got shape {tuple(x.shape)}")
    require_gpu("x", x)
    require("x", x, x.shape, x.device)
    seed, stream, threshold = mask_arguments(dropout, x.device)
    return x if seed is None else _Dropout.apply(x, seed, stream, threshold)
