"""gelu(x + bias) (Hendrycks & Gimpel 2016) in its erf and tanh forms, forward and backward.

Start with `layer_norm.py`, which explains how such a kernel works.

Mathematics, with z = x + bias. GELU is z · Φ(z), Φ the normal distribution and φ its density:

    y = z · Φ(z)               dx = dy · (Φ(z) + z · φ(z))               dbias = Σ dx over tokens

An element is read and written once: 4 bytes in bfloat16, 6 in the backward pass. While an H100's
memory moves them, it can issue 37 instructions (55), and the library's erf alone is over 20. So Φ
comes from a formula whose one exponential is also the density's:

    e = exp(−z²/2)     t = 1 / (1 + p·|z|)     tail = t · polynomial(t) · e = Φ(−|z|) ± 7.5e-8

(Abramowitz & Stegun 1964, formula 7.1.26, halved.) Since Φ(z) is 1 − tail where z ≥ 0 and tail
elsewhere, y = max(z, 0) − |z| · tail, without a choice. In float32 the value errs by less than
4.2e-7 · max(1, |z|), and the derivative by less than 4.2e-7.

The tanh form puts σ(v) in the place of Φ, with v = 2·√(2/π)·(z + 0.044715·z³), because
(1 + tanh(v/2)) / 2 = σ(v). Its tail is σ(−|v|), and its density σ(v)·(1 − σ(v))·v′.

    programs are numbered along the columns          the backward program walks down its columns
    ┌──────────┬──────────┬─────                     ┌───┐ ┌───┐
    │ 0: 16×256│ 1        │ …                        │ ↓ │ │ ↓ │   with the sum of dx in registers,
    ├──────────┼──────────┼─────                     │ ↓ │ │ ↓ │   which `column_sums` adds up
    │ 12       │ 13       │ …                        └───┘ └───┘   (3,072 features: 12 columns)

These kernels were compiled for A100, H100, B200 and MI300X, and run by Triton's interpreter; they
were not yet run on a GPU.
"""

import math
from typing import get_args

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.column_sums import column_sums
from kernels.device import (
    on_its_gpu,
    power_of_two,
    require,
    require_gpu,
    row_programs,
    tiles_for,
)
from kernels.kernel_set import GeluForm

LOG2_E = tl.constexpr(1 / math.log(2))
SQRT_HALF = tl.constexpr(math.sqrt(0.5))
NORMAL_DENSITY = tl.constexpr(1 / math.sqrt(2 * math.pi))
ERFC_P = tl.constexpr(0.3275911 * math.sqrt(0.5))
TANH_LINEAR = tl.constexpr(2 * math.sqrt(2 / math.pi))
TANH_CUBIC = tl.constexpr(0.044715 * 2 * math.sqrt(2 / math.pi))


@triton.jit
def reciprocal(x):
    """1 / x for x > 0: in float32 as 1/√(x²), two instructions where a division takes eight."""
    return 1.0 / x if x.dtype == tl.float64 else tl.rsqrt(x * x)


@triton.jit
def tail_and_density(z, TANH: tl.constexpr):
    """Φ(−|z|) and φ(z), or what the tanh form has in their places."""
    if TANH:
        v = z * (z * z * TANH_CUBIC + TANH_LINEAR)
        e = tl.exp2(tl.abs(v) * -LOG2_E)
        larger = reciprocal(1.0 + e)  # σ(|v|)
        tail = e * larger
        density = tail * larger * (z * z * (3 * TANH_CUBIC) + TANH_LINEAR)
    else:
        e = tl.exp2(z * z * (-0.5 * LOG2_E))
        density = e * NORMAL_DENSITY
        if z.dtype == tl.float64:  # for proofs
            tail = 0.5 - 0.5 * tl.erf(tl.abs(z) * SQRT_HALF)
        else:
            t = reciprocal(1.0 + tl.abs(z) * ERFC_P)
            polynomial = 0.7107068705 + t * (-0.7265760135 + t * 0.5307027145)
            polynomial = 0.127414796 + t * (-0.142248368 + t * polynomial)
            tail = t * polynomial * e
    return tail, density


@triton.jit(do_not_specialize=["tokens"])
def bias_gelu_forward_kernel(
    x_ptr, bias_ptr, y_ptr, tokens,
    TANH: tl.constexpr, FEATURES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute one tile."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    column_blocks: tl.constexpr = tl.cdiv(FEATURES, BLOCK_COLUMNS)
    row = tl.program_id(0) // column_blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.program_id(0) % column_blocks * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = (row < tokens)[:, None] & (column < FEATURES)[None, :]
    offsets = row.to(tl.int64)[:, None] * FEATURES + column[None, :]
    bias = tl.load(bias_ptr + column, mask=column < FEATURES, other=0.0).to(dtype)
    z = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(dtype) + bias[None, :]
    tail, _ = tail_and_density(z, TANH)
    y = tl.maximum(z, 0.0) - tl.abs(z) * tail
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens", "rows_per_program"])
def bias_gelu_backward_kernel(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, partials_ptr, tokens, rows_per_program,
    TANH: tl.constexpr, FEATURES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Differentiate this program's rows in one block of columns, and sum their dx."""
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    column_blocks: tl.constexpr = tl.cdiv(FEATURES, BLOCK_COLUMNS)
    run = tl.program_id(0) // column_blocks
    column = tl.program_id(0) % column_blocks * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    column_inside = column < FEATURES
    bias = tl.load(bias_ptr + column, mask=column_inside, other=0.0).to(dtype)
    dbias = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], dtype)

    begin = run * rows_per_program
    end = tl.minimum(begin + rows_per_program, tokens)
    for first in range(begin, end, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        inside = (row < end)[:, None] & column_inside[None, :]
        offsets = row.to(tl.int64)[:, None] * FEATURES + column[None, :]
        z = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(dtype) + bias[None, :]
        dy = tl.load(dy_ptr + offsets, mask=inside, other=0.0).to(dtype)
        tail, density = tail_and_density(z, TANH)
        dx = dy * (tl.where(z < 0, tail, 1.0 - tail) + z * density)  # zero outside, as dy is
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dbias += dx

    partial = partials_ptr + run.to(tl.int64) * FEATURES + column
    tl.store(partial, tl.sum(dbias, 0), mask=column_inside)


def tile(features: int) -> dict[str, int]:
    """Choose the tile: 256 columns are a warp's 32 threads with 8 each; 4 rows a warp."""
    columns = min(max(power_of_two(features), 8), 256)
    return {"BLOCK_ROWS": 16, "BLOCK_COLUMNS": columns, "num_warps": 4}


@torch.library.custom_op("plainbert::bias_gelu", mutates_args=())
@on_its_gpu
def bias_gelu_op(x: Tensor, bias: Tensor, tanh: bool) -> Tensor:
    """Launch the forward kernel."""
    x = x.contiguous()
    tokens, features = x.shape
    y = x.new_empty(x.shape)
    if x.numel() > 0:
        sizes = tile(features)
        row_blocks = tiles_for(tokens, sizes["BLOCK_ROWS"])
        column_blocks = tiles_for(features, sizes["BLOCK_COLUMNS"])
        bias_gelu_forward_kernel[(row_blocks * column_blocks,)](
            x, bias.contiguous(), y, tokens, TANH=tanh, FEATURES=features, **sizes
        )
    return y


@bias_gelu_op.register_fake
def _(x, bias, tanh):
    return x.new_empty(x.shape)


@torch.library.custom_op("plainbert::bias_gelu_backward", mutates_args=())
@on_its_gpu
def bias_gelu_backward_op(
    dy: Tensor, x: Tensor, bias: Tensor, tanh: bool
) -> tuple[Tensor, Tensor]:
    """Launch the backward kernel, then add its programs' sums; returns dx and dbias."""
    x = x.contiguous()
    tokens, features = x.shape
    dx = x.new_empty(x.shape)
    if x.numel() == 0:
        return dx, torch.zeros_like(bias)
    sizes = tile(features)
    column_blocks = tiles_for(features, sizes["BLOCK_COLUMNS"])
    runs, rows_per_program = row_programs(x.device, tokens, sizes["BLOCK_ROWS"], column_blocks)
    partials = x.new_empty(runs, features, dtype=torch.promote_types(x.dtype, torch.float32))
    bias_gelu_backward_kernel[(runs * column_blocks,)](
        dy.contiguous(), x, bias.contiguous(), dx, partials, tokens, rows_per_program,
        TANH=tanh, FEATURES=features, **sizes,
    )  # fmt: skip
    return dx, column_sums(partials).to(bias.dtype)


@bias_gelu_backward_op.register_fake
def _(dy, x, bias, tanh):
    return x.new_empty(x.shape), bias.new_empty(bias.shape)


class _BiasGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, tanh):
        ctx.save_for_backward(x, bias)
        ctx.tanh = tanh
        return bias_gelu_op(x, bias, tanh)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # pyright: ignore[reportIncompatibleMethodOverride]
        return *bias_gelu_backward_op(dy, *ctx.saved_tensors, ctx.tanh), None


def bias_gelu(
    x: Float[Tensor, "tokens features"],
    bias: Float[Tensor, " features"],
    form: GeluForm = "erf",
) -> Float[Tensor, "tokens features"]:
    """See `kernel_set.BiasGelu`.

    Returns: x's dtype; computed and summed in float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype or device isn't what the signature says, or the form isn't one.
    """
    if x.dim() != 2:
        raise ValueError(f"x: expected two axes (tokens, features), got shape {tuple(x.shape)}")
    require_gpu("x", x)
    require("x", x, x.shape, x.device)
    require("bias", bias, x.shape[1:], x.device)
    if form not in get_args(GeluForm):
        raise ValueError(f"form: expected one of {', '.join(get_args(GeluForm))}, got {form!r}")
    return _BiasGelu.apply(x, bias, form == "tanh")
