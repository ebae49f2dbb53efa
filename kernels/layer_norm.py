"""LayerNorm (Ba et al. 2016), written as a first lesson in Triton.

A GPU runs thousands of threads, and CUDA makes you write what one of them does. In Triton you
write what a *program* does: a group of threads that computes one tile of the output. A program
knows which one it is (`tl.program_id`), loads tiles from memory into registers, does arithmetic on
whole tiles as in PyTorch, and stores tiles. How the tile is spread over threads is the compiler's
work. Programs run at the same time, in any order, and can't ask each other anything.

    warp           32 threads that take each instruction together; `num_warps` make a program
    registers      where a thread has its part of a tile: some 250 numbers, at hand at once
    shared memory  where threads of one program exchange numbers, and wait for each other to (a
                   barrier)
    memory         where tensors are: far, so that most kernels take as long as their bytes take

No GPU is needed to look inside. Triton's interpreter runs the programs one by one in numpy, and
there a `print(x)` in the middle of a kernel prints the tile:

    TRITON_INTERPRET=1 python -c "
    import torch; from kernels.layer_norm import layer_norm
    print(layer_norm(torch.randn(5, 8), torch.ones(8), torch.zeros(8), 1e-12))"

Mathematics. For each row x of `hidden` numbers:

    mean = Σ x / hidden          variance = Σ (x − mean)² / hidden
    rstd = 1 / √(variance + eps) x̂ = (x − mean) · rstd        y = x̂ · weight + bias

Backward, with dŷ = dy · weight:

    dx      = rstd · (dŷ − mean(dŷ) − x̂ · mean(dŷ · x̂))       along the row
    dweight = Σ dy · x̂            dbias = Σ dy                 over all rows

What it costs. A row is read once and written once: at 768 numbers of bfloat16, 3,072 bytes. So a
program holds whole rows in registers; reading them twice would add half to the time. The compiled
kernel issues 12 instructions an element (`python -m kernels.aot`), a third of what an H100 could
issue while its memory moves the element. Memory is the limit, as it should be.

How the tiles lie (forward; 2 rows a program, one warp of 32 threads):

                 hidden = 768              BLOCK_HIDDEN = 1024, a power of two
             ┌───────────────────────────────┬─ ─ ─ ─ ─┐
    row 2p   │ 0…7 │ 8…15 │ …              │ masked   │   a thread holds 8 neighbours: one
    row 2p+1 │     │      │                │          │   16-byte load in bfloat16
             └───────────────────────────────┴─ ─ ─ ─ ─┘
    The masked quarter costs nothing: with one warp, thread t holds columns 8t, 8t + 256, 8t + 512
    and 8t + 768, so the compiler sees that the last group always lies outside, and drops it.

One warp a program has a second use: a sum along a row stays within the warp, 5 exchanges between
threads' registers, and needs neither shared memory nor a barrier.

Backward, dweight and dbias run across the rows, and so across programs. Each program therefore
takes many rows, and leaves one row of sums for a second kernel to add (`column_sums.py`):

    program p   ┌───────────────────────────────┐
      its first │ dy, x → dx                    │   dweight += dy · x̂, dbias += dy: in registers
          ↓     │                               │
      its last  └───────────────────────────────┘ → partials[p]: dweight, dbias of these rows

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
from kernels.device import on_its_gpu, require, require_gpu, row_programs, tiles_for
from kernels.row_norm import (
    backward_tile,
    forward_tile,
    normalise,
    normalise_backward,
    statistics,
)


# @triton.jit: this is compiled for the GPU when it is first launched, once for each set of dtypes
# and constants. An integer that is 1, or that 16 divides, would be one more: no gain here.
@triton.jit(do_not_specialize=["tokens"])
def layer_norm_forward_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr, tokens,
    EPS: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """Normalise BLOCK_ROWS rows.

    Arguments that end in _ptr are tensors in Python and addresses here: of the first element, from
    which others are counted. A `tl.constexpr` is known when the kernel is compiled: each value
    makes a kernel of its own.
    """
    # Statistics are in float32 whatever the input is: bfloat16 counts only 8 bits.
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32

    # Which elements are this program's? An address is base + offset. The offset is in 64 bits: a
    # batch may have more than 2³¹ elements, and 32 bits would wrap round.
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_HIDDEN)
    offsets = row.to(tl.int64)[:, None] * HIDDEN + column[None, :]  # [BLOCK_ROWS, BLOCK_HIDDEN]

    # Tiles have power-of-two sides, tensors don't. The mask keeps loads and stores inside.
    row_inside, column_inside = row < tokens, column < HIDDEN
    inside = row_inside[:, None] & column_inside[None, :]

    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(dtype)
    weight = tl.load(weight_ptr + column, mask=column_inside, other=0.0).to(dtype)
    bias = tl.load(bias_ptr + column, mask=column_inside, other=0.0).to(dtype)

    # A @triton.jit function that a kernel calls becomes part of it. This one's four lines, and the
    # backward kernel's, lie in `row_norm.py`, because other kernels normalise rows as well.
    normal, mean, rstd = normalise(x, column_inside, EPS, HIDDEN)  # x̂
    y = normal * weight[None, :] + bias[None, :]

    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)
    # Two numbers a row spare the backward pass from computing them again.
    tl.store(mean_ptr + row, mean, mask=row_inside)
    tl.store(rstd_ptr + row, rstd, mask=row_inside)


@triton.jit(do_not_specialize=["tokens", "rows_per_program"])
def layer_norm_backward_kernel(
    dy_ptr, x_ptr, weight_ptr, mean_ptr, rstd_ptr, dx_ptr, partials_ptr, tokens, rows_per_program,
    HIDDEN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """Differentiate the rows that this program owns, and sum their dweight and dbias.

    A program owns a run of rows and walks through them, with the two sums in registers all the
    while. It writes them once, to its own row of `partials`; `column_sums` adds those rows.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK_HIDDEN)
    column_inside = column < HIDDEN
    weight = tl.load(weight_ptr + column, mask=column_inside, other=0.0).to(dtype)
    dweight = tl.zeros([BLOCK_ROWS, BLOCK_HIDDEN], dtype)
    dbias = tl.zeros([BLOCK_ROWS, BLOCK_HIDDEN], dtype)

    begin = program * rows_per_program
    end = tl.minimum(begin + rows_per_program, tokens)
    for first in range(begin, end, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        row_inside = row < end
        inside = row_inside[:, None] & column_inside[None, :]
        offsets = row.to(tl.int64)[:, None] * HIDDEN + column[None, :]
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(dtype)
        dy = tl.load(dy_ptr + offsets, mask=inside, other=0.0).to(dtype)
        mean = tl.load(mean_ptr + row, mask=row_inside, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row_inside, other=0.0)

        normal = tl.where(inside, (x - mean[:, None]) * rstd[:, None], 0.0)
        dnormal = dy * weight[None, :]  # dŷ; zero outside, as dy is
        dx = normalise_backward(dnormal, normal, rstd, HIDDEN)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dweight += dy * normal
        dbias += dy

    partial = partials_ptr + program.to(tl.int64) * 2 * HIDDEN + column
    tl.store(partial, tl.sum(dweight, 0), mask=column_inside)
    tl.store(partial + HIDDEN, tl.sum(dbias, 0), mask=column_inside)


# An operator that PyTorch knows by name. torch.compile doesn't look inside: it asks the `fake`
# below which shapes come out. No tensor may be changed in place, and outputs are new tensors.
@torch.library.custom_op("plainbert::layer_norm", mutates_args=())
@on_its_gpu
def layer_norm_op(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the forward kernel; returns y and each row's mean and 1 / deviation."""
    x = x.contiguous()
    tokens, hidden = x.shape
    y = x.new_empty(x.shape)
    mean, rstd = statistics(x)
    if tokens > 0:  # a grid of no programs is an error
        tile = forward_tile(hidden)  # BLOCK_ROWS, BLOCK_HIDDEN, and the option num_warps
        # The grid says how many programs run; each learns its number from tl.program_id.
        grid = (tiles_for(tokens, tile["BLOCK_ROWS"]),)
        layer_norm_forward_kernel[grid](
            x, weight.contiguous(), bias.contiguous(), y, mean, rstd, tokens,
            EPS=eps, HIDDEN=hidden, **tile,
        )  # fmt: skip
    return y, mean, rstd


@layer_norm_op.register_fake
def _(x, weight, bias, eps):
    return x.new_empty(x.shape), *statistics(x)


@torch.library.custom_op("plainbert::layer_norm_backward", mutates_args=())
@on_its_gpu
def layer_norm_backward_op(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward kernel, then add its programs' sums; returns dx, dweight, dbias."""
    x = x.contiguous()
    tokens, hidden = x.shape
    dx = x.new_empty(x.shape)
    if tokens == 0:
        return dx, torch.zeros_like(weight), torch.zeros_like(weight)
    tile = backward_tile(hidden)
    programs, rows_per_program = row_programs(x.device, tokens, tile["BLOCK_ROWS"])
    partials = mean.new_empty(programs, 2 * hidden)
    layer_norm_backward_kernel[(programs,)](
        dy.contiguous(), x, weight.contiguous(), mean, rstd, dx, partials, tokens,
        rows_per_program, HIDDEN=hidden, **tile,
    )  # fmt: skip
    dweight, dbias = column_sums(partials).to(weight.dtype).view(2, hidden).unbind()
    return dx, dweight.clone(), dbias.clone()


@layer_norm_backward_op.register_fake
def _(dy, x, weight, mean, rstd):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


# What autograd calls: forward keeps what backward needs, and backward gives a gradient for each of
# forward's arguments, in their order. A second derivative is an error, not a wrong number.
class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        y, mean, rstd = layer_norm_op(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.bias_dtype = bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # pyright: ignore[reportIncompatibleMethodOverride]
        dx, dweight, dbias = layer_norm_backward_op(dy, *ctx.saved_tensors)
        return dx, dweight, dbias.to(ctx.bias_dtype), None


def layer_norm(
    x: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, " hidden"],
    bias: Float[Tensor, " hidden"],
    eps: float,
) -> Float[Tensor, "tokens hidden"]:
    """See `kernel_set.LayerNorm`.

    Returns: x's dtype; statistics and sums in float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype or device isn't what the signature says.
    """
    if x.dim() != 2:
        raise ValueError(f"x: expected two axes (tokens, hidden), got shape {tuple(x.shape)}")
    require_gpu("x", x)
    require("x", x, x.shape, x.device)
    require("weight", weight, x.shape[1:], x.device)
    require("bias", bias, x.shape[1:], x.device)
    return _LayerNorm.apply(x, weight, bias, eps)
