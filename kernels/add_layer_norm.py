"""LayerNorm(residual + dropout(x + x_bias)) in one kernel: what ends both halves of a BERT layer.

Start with `layer_norm.py`, which explains how such a kernel works; this one adds three things.

1. *Fusion.* Stock operations would write x + x_bias, its dropout and the sum to memory and read
   them back: 9 passes over a [tokens, hidden] matrix. Here x and residual are read, the sum and
   the normalised rows are written: 4 passes, 6,144 bytes a row of 768 bfloat16 numbers.
2. *Dropout without a mask in memory.* The mask is a pure function of a seed and the position
   (`random_bits.keep_rows`), so the backward pass computes it again.
3. *Two outputs.* The sum is an output of its own, the residual stream, and may have a gradient.

Mathematics, with m the mask (0, or 1 / probability of keeping):

    sum = residual + m · (x + x_bias)                  y = LayerNorm(sum)

    dsum      = LayerNorm backward of dy, plus the gradient that came in for the sum
    dresidual = dsum      dx = m · dsum      dx_bias = Σ dx over tokens

dweight, dbias and dx_bias are sums over all tokens; how they stay deterministic is told in
`column_sums.py`. Where nothing is dropped, dx is dresidual, and is not written twice.

    program p, forward           hidden                program p, backward      hidden
               ┌─────────────────────────┐                        ┌─────────────────────────┐
      row 2p   │ x, residual → sum → y   │             rows of p  │ one at a time, in order │
      row 2p+1 │                         │                 ↓      │                         │
               └─────────────────────────┘                        └─────────────────────────┘
                                              in registers, then partials[p]:  Σ dy·x̂, Σ dy, Σ dx

These kernels were compiled for A100, H100, B200 and MI300X, and run by Triton's interpreter; they
were not yet run on a GPU.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.column_sums import column_sums
from kernels.device import (
    mask_arguments,
    on_its_gpu,
    require,
    require_gpu,
    row_programs,
    tiles_for,
)
from kernels.kernel_set import Dropout
from kernels.random_bits import dropout_scale, keep_rows
from kernels.row_norm import (
    backward_tile,
    forward_tile,
    normalise,
    normalise_backward,
    statistics,
)


# Values that change from call to call must not each make a kernel of their own.
@triton.jit(do_not_specialize=["tokens", "stream", "threshold"])
def add_layer_norm_forward_kernel(
    x_ptr, x_bias_ptr, residual_ptr, weight_ptr, bias_ptr, y_ptr, sum_ptr, mean_ptr, rstd_ptr,
    seed_ptr, stream, threshold, tokens,
    EPS: tl.constexpr, HAS_DROPOUT: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """Add, drop and normalise BLOCK_ROWS rows."""
    dtype: tl.constexpr = tl.float64 if residual_ptr.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_HIDDEN)
    row_inside, column_inside = row < tokens, column < HIDDEN
    inside = row_inside[:, None] & column_inside[None, :]
    offsets = row.to(tl.int64)[:, None] * HIDDEN + column[None, :]

    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(dtype)
    residual = tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(dtype)
    x_bias = tl.load(x_bias_ptr + column, mask=column_inside, other=0.0).to(dtype)
    weight = tl.load(weight_ptr + column, mask=column_inside, other=0.0).to(dtype)
    bias = tl.load(bias_ptr + column, mask=column_inside, other=0.0).to(dtype)

    total = x + x_bias[None, :]
    if HAS_DROPOUT:
        keep = keep_rows(seed_ptr, stream, threshold, row, BLOCK_HIDDEN)
        total = tl.where(keep, total, 0.0) * dropout_scale(threshold, dtype)
    total += residual
    normal, mean, rstd = normalise(total, column_inside, EPS, HIDDEN)
    y = normal * weight[None, :] + bias[None, :]

    tl.store(sum_ptr + offsets, total.to(sum_ptr.dtype.element_ty), mask=inside)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(mean_ptr + row, mean, mask=row_inside)
    tl.store(rstd_ptr + row, rstd, mask=row_inside)


@triton.jit(do_not_specialize=["tokens", "rows_per_program", "stream", "threshold"])
def add_layer_norm_backward_kernel(
    dy_ptr, dsum_ptr, sum_ptr, weight_ptr, mean_ptr, rstd_ptr, dx_ptr, dresidual_ptr, partials_ptr,
    seed_ptr, stream, threshold, tokens, rows_per_program,
    HAS_DROPOUT: tl.constexpr, HAS_DSUM: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """Differentiate the rows that this program owns; sum their dweight, dbias and dx_bias."""
    dtype: tl.constexpr = tl.float64 if sum_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK_HIDDEN)
    column_inside = column < HIDDEN
    weight = tl.load(weight_ptr + column, mask=column_inside, other=0.0).to(dtype)
    dweight = tl.zeros([BLOCK_ROWS, BLOCK_HIDDEN], dtype)
    dbias = tl.zeros([BLOCK_ROWS, BLOCK_HIDDEN], dtype)
    dx_bias = tl.zeros([BLOCK_ROWS, BLOCK_HIDDEN], dtype)

    begin = program * rows_per_program
    end = tl.minimum(begin + rows_per_program, tokens)
    for first in range(begin, end, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        row_inside = row < end
        inside = row_inside[:, None] & column_inside[None, :]
        offsets = row.to(tl.int64)[:, None] * HIDDEN + column[None, :]
        total = tl.load(sum_ptr + offsets, mask=inside, other=0.0).to(dtype)
        dy = tl.load(dy_ptr + offsets, mask=inside, other=0.0).to(dtype)
        mean = tl.load(mean_ptr + row, mask=row_inside, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row_inside, other=0.0)

        normal = tl.where(inside, (total - mean[:, None]) * rstd[:, None], 0.0)
        dtotal = normalise_backward(dy * weight[None, :], normal, rstd, HIDDEN)
        if HAS_DSUM:
            dtotal += tl.load(dsum_ptr + offsets, mask=inside, other=0.0).to(dtype)
        tl.store(dresidual_ptr + offsets, dtotal.to(dresidual_ptr.dtype.element_ty), mask=inside)
        if HAS_DROPOUT:
            keep = keep_rows(seed_ptr, stream, threshold, row, BLOCK_HIDDEN)
            dtotal = tl.where(keep, dtotal, 0.0) * dropout_scale(threshold, dtype)
            tl.store(dx_ptr + offsets, dtotal.to(dx_ptr.dtype.element_ty), mask=inside)
        dweight += dy * normal
        dbias += dy
        dx_bias += dtotal  # zero outside, as dy, dsum and x̂ are

    partial = partials_ptr + program.to(tl.int64) * 3 * HIDDEN + column
    tl.store(partial, tl.sum(dweight, 0), mask=column_inside)
    tl.store(partial + HIDDEN, tl.sum(dbias, 0), mask=column_inside)
    tl.store(partial + 2 * HIDDEN, tl.sum(dx_bias, 0), mask=column_inside)


def _forward_outputs(residual: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate what the forward kernel fills: y, the sum, and each row's mean and 1/deviation."""
    y, total = (residual.new_empty(residual.shape) for _ in range(2))
    return y, total, *statistics(residual)


@torch.library.custom_op("plainbert::add_layer_norm", mutates_args=())
@on_its_gpu
def add_layer_norm_op(
    x: Tensor, x_bias: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float,
    seed: Tensor | None, stream: int, threshold: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the forward kernel; returns y, the sum, and each row's mean and 1 / deviation."""
    tokens, hidden = x.shape
    y, total, mean, rstd = _forward_outputs(residual)
    if tokens > 0:
        tile = forward_tile(hidden)
        add_layer_norm_forward_kernel[(tiles_for(tokens, tile["BLOCK_ROWS"]),)](
            x.contiguous(), x_bias.contiguous(), residual.contiguous(), weight.contiguous(),
            bias.contiguous(), y, total, mean, rstd, seed, stream, threshold, tokens,
            EPS=eps, HAS_DROPOUT=seed is not None, HIDDEN=hidden, **tile,
        )  # fmt: skip
    return y, total, mean, rstd


@add_layer_norm_op.register_fake
def _(x, x_bias, residual, weight, bias, eps, seed, stream, threshold):
    return _forward_outputs(residual)


@torch.library.custom_op("plainbert::add_layer_norm_backward", mutates_args=())
@on_its_gpu
def add_layer_norm_backward_op(
    dy: Tensor, dsum: Tensor | None, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor,
    seed: Tensor | None, stream: int, threshold: int, x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the backward kernel, then add its programs' sums.

    Returns dresidual; dx, which is empty where nothing is dropped; and in float32 the gradients
    of weight, bias and x_bias as three rows.
    """
    tokens, hidden = total.shape
    dresidual, dx, sums = _backward_outputs(total, mean, seed, x_dtype)
    if tokens == 0:
        return dresidual, dx, sums.zero_()
    tile = backward_tile(hidden)
    programs, rows_per_program = row_programs(total.device, tokens, tile["BLOCK_ROWS"])
    partials = mean.new_empty(programs, 3 * hidden)
    add_layer_norm_backward_kernel[(programs,)](
        dy.contiguous(), None if dsum is None else dsum.contiguous(), total, weight.contiguous(),
        mean, rstd, dx, dresidual, partials, seed, stream, threshold, tokens, rows_per_program,
        HAS_DROPOUT=seed is not None, HAS_DSUM=dsum is not None, HIDDEN=hidden, **tile,
    )  # fmt: skip
    return dresidual, dx, column_sums(partials).view(3, hidden)


def _backward_outputs(
    total: Tensor, mean: Tensor, seed: Tensor | None, x_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate dresidual, dx and the three sums."""
    tokens, hidden = total.shape
    dx = total.new_empty((0 if seed is None else tokens, hidden), dtype=x_dtype)
    return torch.empty_like(total), dx, mean.new_empty(3, hidden)


@add_layer_norm_backward_op.register_fake
def _(dy, dsum, total, weight, mean, rstd, seed, stream, threshold, x_dtype):
    return _backward_outputs(total, mean, seed, x_dtype)


class _AddLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, x_bias, residual, weight, bias, eps, seed, stream, threshold):
        y, total, mean, rstd = add_layer_norm_op(
            x, x_bias, residual, weight, bias, eps, seed, stream, threshold
        )
        # Where the sum's gradient is not asked for, don't make a matrix of zeros to add.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, weight, mean, rstd, seed)
        ctx.stream, ctx.threshold = stream, threshold
        ctx.dtypes = x.dtype, x_bias.dtype, bias.dtype
        return y, total

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dsum):  # pyright: ignore[reportIncompatibleMethodOverride]
        total, weight, mean, rstd, seed = ctx.saved_tensors
        x_dtype, x_bias_dtype, bias_dtype = ctx.dtypes
        if dy is None:
            dy = torch.zeros_like(total)
        dresidual, dx, sums = add_layer_norm_backward_op(
            dy, dsum, total, weight, mean, rstd, seed, ctx.stream, ctx.threshold, x_dtype
        )
        dweight, dbias, dx_bias = sums.unbind()
        return (
            dresidual.to(x_dtype) if seed is None else dx,
            dx_bias.to(x_bias_dtype),
            dresidual,
            dweight.to(weight.dtype),
            dbias.to(bias_dtype),
            *(None,) * 4,
        )


def add_layer_norm(
    x: Float[Tensor, "tokens hidden"],
    x_bias: Float[Tensor, " hidden"],
    residual: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, " hidden"],
    bias: Float[Tensor, " hidden"],
    eps: float,
    dropout: Dropout | None = None,
) -> tuple[Float[Tensor, "tokens hidden"], Float[Tensor, "tokens hidden"]]:
    """See `kernel_set.AddLayerNorm`; the mask is `philox.keep_rows`.

    Returns: residual's dtype; statistics and sums in float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype or device isn't what the signature says.
    """
    if x.dim() != 2:
        raise ValueError(f"x: expected two axes (tokens, hidden), got shape {tuple(x.shape)}")
    require_gpu("x", x)
    require("x", x, x.shape, x.device)
    require("residual", residual, x.shape, x.device)
    for name, vector in (("x_bias", x_bias), ("weight", weight), ("bias", bias)):
        require(name, vector, x.shape[1:], x.device)
    mask = mask_arguments(dropout, x.device)
    return _AddLayerNorm.apply(x, x_bias, residual, weight, bias, eps, *mask)
