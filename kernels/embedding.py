"""dropout(LayerNorm(word + position + token type)) (Devlin et al. 2018, section 3): the input.

Start with `layer_norm.py`, which explains how a kernel normalises rows. This one gathers each row
from three tables first, and the sum is never in memory: the backward pass gathers it again, which
costs no more than reading it would, as the small tables stay in the cache.

      word[…]       ─┐                           dsum: LayerNorm's gradient of m · dy
      position[…]   ─┼─ sum ─ LayerNorm ─ m →      ├─► segment_sum by word index
      token_type[…] ─┘                             ├─► segment_sum by position
                                                   └─► segment_sum by token type

with m the dropout mask: 0, or 1 / probability of keeping. A table's gradient is a sum over the
tokens that took its row, in a fixed order: see `segment_sum.py`.

A row is gathered and written once. Backward, it is gathered again, dy is read, dsum written once
and read three times.

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
from kernels.kernel_set import Dropout, EmbeddingIndices, EmbeddingTables
from kernels.random_bits import dropout_scale, keep_rows
from kernels.row_norm import (
    backward_tile,
    forward_tile,
    normalise,
    normalise_backward,
    statistics,
)
from kernels.segment_sum import segment_sum


@triton.jit
def gather(table_ptr, index_ptr, row, column, row_inside, column_inside, HIDDEN: tl.constexpr):
    """Load the row of a table that each token takes."""
    index = tl.load(index_ptr + row, mask=row_inside, other=0)  # 64 bits
    mask = row_inside[:, None] & column_inside[None, :]
    return tl.load(table_ptr + index[:, None] * HIDDEN + column[None, :], mask=mask, other=0.0)


@triton.jit
def gather_sum(
    word_ptr, position_ptr, token_type_ptr, indices_ptr, row, column, tokens,
    HIDDEN: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Add the three tables' rows of each token."""
    row_inside, column_inside = row < tokens, column < HIDDEN
    at = (row, column, row_inside, column_inside)
    total = gather(word_ptr, indices_ptr, *at, HIDDEN).to(dtype)
    total += gather(position_ptr, indices_ptr + tokens, *at, HIDDEN).to(dtype)
    return total + gather(token_type_ptr, indices_ptr + 2 * tokens, *at, HIDDEN).to(dtype)


@triton.jit(do_not_specialize=["tokens", "stream", "threshold"])
def embedding_forward_kernel(
    word_ptr, position_ptr, token_type_ptr, indices_ptr, weight_ptr, bias_ptr,
    y_ptr, mean_ptr, rstd_ptr, seed_ptr, stream, threshold, tokens,
    EPS: tl.constexpr, HAS_DROPOUT: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """Gather, normalise and drop BLOCK_ROWS rows; `indices` is [3, tokens]."""
    dtype: tl.constexpr = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_HIDDEN)
    row_inside, column_inside = row < tokens, column < HIDDEN
    weight = tl.load(weight_ptr + column, mask=column_inside, other=0.0).to(dtype)
    bias = tl.load(bias_ptr + column, mask=column_inside, other=0.0).to(dtype)

    total = gather_sum(
        word_ptr, position_ptr, token_type_ptr, indices_ptr, row, column, tokens, HIDDEN, dtype
    )
    normal, mean, rstd = normalise(total, column_inside, EPS, HIDDEN)
    y = normal * weight[None, :] + bias[None, :]
    if HAS_DROPOUT:
        keep = keep_rows(seed_ptr, stream, threshold, row, BLOCK_HIDDEN)
        y = tl.where(keep, y, 0.0) * dropout_scale(threshold, dtype)

    inside = row_inside[:, None] & column_inside[None, :]
    offsets = row.to(tl.int64)[:, None] * HIDDEN + column[None, :]
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(mean_ptr + row, mean, mask=row_inside)
    tl.store(rstd_ptr + row, rstd, mask=row_inside)


@triton.jit(do_not_specialize=["tokens", "rows_per_program", "stream", "threshold"])
def embedding_backward_kernel(
    dy_ptr, word_ptr, position_ptr, token_type_ptr, indices_ptr, weight_ptr, mean_ptr, rstd_ptr,
    dsum_ptr, partials_ptr, seed_ptr, stream, threshold, tokens, rows_per_program,
    HAS_DROPOUT: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_HIDDEN: tl.constexpr,
):  # fmt: skip
    """Differentiate the rows that this program owns, and sum their dweight and dbias."""
    dtype: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
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
        dy = tl.load(dy_ptr + offsets, mask=inside, other=0.0).to(dtype)
        if HAS_DROPOUT:
            keep = keep_rows(seed_ptr, stream, threshold, row, BLOCK_HIDDEN)
            dy = tl.where(keep, dy, 0.0) * dropout_scale(threshold, dtype)
        total = gather_sum(
            word_ptr, position_ptr, token_type_ptr, indices_ptr, row, column, tokens, HIDDEN, dtype
        )
        mean = tl.load(mean_ptr + row, mask=row_inside, other=0.0)
        rstd = tl.load(rstd_ptr + row, mask=row_inside, other=0.0)
        normal = tl.where(inside, (total - mean[:, None]) * rstd[:, None], 0.0)
        dsum = normalise_backward(dy * weight[None, :], normal, rstd, HIDDEN)
        tl.store(dsum_ptr + offsets, dsum.to(dsum_ptr.dtype.element_ty), mask=inside)
        dweight += dy * normal
        dbias += dy

    partial = partials_ptr + program.to(tl.int64) * 2 * HIDDEN + column
    tl.store(partial, tl.sum(dweight, 0), mask=column_inside)
    tl.store(partial + HIDDEN, tl.sum(dbias, 0), mask=column_inside)


@torch.library.custom_op("plainbert::embedding_layer_norm", mutates_args=())
@on_its_gpu
def embedding_op(
    word: Tensor, position: Tensor, token_type: Tensor, indices: Tensor, weight: Tensor,
    bias: Tensor, eps: float, seed: Tensor | None, stream: int, threshold: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Launch the forward kernel; returns y and each row's mean and 1 / deviation."""
    y, mean, rstd = _forward_outputs(word, indices)
    tokens, hidden = y.shape
    if tokens > 0:
        tile = forward_tile(hidden)
        embedding_forward_kernel[(tiles_for(tokens, tile["BLOCK_ROWS"]),)](
            word.contiguous(), position.contiguous(), token_type.contiguous(), indices,
            weight.contiguous(), bias.contiguous(), y, mean, rstd, seed, stream, threshold, tokens,
            EPS=eps, HAS_DROPOUT=seed is not None, HIDDEN=hidden, **tile,
        )  # fmt: skip
    return y, mean, rstd


def _forward_outputs(word: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate what the forward kernel fills."""
    y = word.new_empty(indices.shape[1], word.shape[1])
    return y, *statistics(y)


@embedding_op.register_fake
def _(word, position, token_type, indices, weight, bias, eps, seed, stream, threshold):
    return _forward_outputs(word, indices)


@torch.library.custom_op("plainbert::embedding_layer_norm_backward", mutates_args=())
@on_its_gpu
def embedding_backward_op(
    dy: Tensor, word: Tensor, position: Tensor, token_type: Tensor, indices: Tensor,
    weight: Tensor, mean: Tensor, rstd: Tensor, seed: Tensor | None, stream: int, threshold: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the backward kernel, then add its programs' sums.

    Returns dsum, and in float32 the gradients of weight and bias as two rows.
    """
    tokens, hidden = dy.shape
    dsum = dy.new_empty(dy.shape)
    if tokens == 0:
        return dsum, mean.new_zeros(2, hidden)
    tile = backward_tile(hidden)
    programs, rows_per_program = row_programs(dy.device, tokens, tile["BLOCK_ROWS"])
    partials = mean.new_empty(programs, 2 * hidden)
    embedding_backward_kernel[(programs,)](
        dy.contiguous(), word.contiguous(), position.contiguous(), token_type.contiguous(),
        indices, weight.contiguous(), mean, rstd, dsum, partials, seed, stream, threshold, tokens,
        rows_per_program, HAS_DROPOUT=seed is not None, HIDDEN=hidden, **tile,
    )  # fmt: skip
    return dsum, column_sums(partials).view(2, hidden)


@embedding_backward_op.register_fake
def _(
    dy, word, position, token_type, indices, weight, mean, rstd, seed, stream, threshold
):  # fmt: skip
    return dy.new_empty(dy.shape), mean.new_empty(2, dy.shape[1])


class _EmbeddingLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, word, position, token_type, indices, weight, bias, eps, padding_idx, seed, stream,
        threshold,
    ):  # fmt: skip
        y, mean, rstd = embedding_op(
            word, position, token_type, indices, weight, bias, eps, seed, stream, threshold
        )
        ctx.save_for_backward(word, position, token_type, indices, weight, mean, rstd, seed)
        ctx.padding_idx, ctx.stream, ctx.threshold = padding_idx, stream, threshold
        ctx.bias_dtype = bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):  # pyright: ignore[reportIncompatibleMethodOverride]
        *tables, indices, weight, _, _, _ = ctx.saved_tensors
        dsum, (dweight, dbias) = embedding_backward_op(
            dy, *ctx.saved_tensors, ctx.stream, ctx.threshold
        )
        dtables = (
            segment_sum(dsum, index, table.shape[0], skipped).to(table.dtype) if needed else None
            for index, table, skipped, needed in zip(
                indices, tables, (ctx.padding_idx, -1, -1), ctx.needs_input_grad[:3], strict=True
            )
        )
        return (
            *dtables, None, dweight.to(weight.dtype), dbias.to(ctx.bias_dtype), *(None,) * 5
        )  # fmt: skip


def embedding_layer_norm(
    indices: EmbeddingIndices,
    tables: EmbeddingTables,
    weight: Float[Tensor, " hidden"],
    bias: Float[Tensor, " hidden"],
    eps: float,
    padding_idx: int = -1,
    dropout: Dropout | None = None,
) -> Float[Tensor, "tokens hidden"]:
    """See `kernel_set.EmbeddingLayerNorm`; the mask is `philox.keep_rows`.

    An index outside its table is not noticed: to look for one would be to wait for the GPU.

    Returns: the word table's dtype; statistics and sums in float32 (float64 for float64).

    Raises:
        ValueError: a shape, dtype or device isn't what the signature says.
    """
    word = tables.word
    if word.dim() != 2:
        raise ValueError(
            f"tables.word: expected two axes (vocab, hidden), got shape {tuple(word.shape)}"
        )
    require_gpu("tables.word", word)
    for name, table in tables._asdict().items():
        require(f"tables.{name}", table, (*table.shape[:1], word.shape[1]), word.device)
    for name, index in indices._asdict().items():
        shape = (indices.word.numel(),)
        if (index.shape, index.dtype, index.device) != (shape, torch.int64, word.device):
            raise ValueError(
                f"indices.{name}: expected {shape} torch.int64 on {word.device}, "
                f"got {tuple(index.shape)} {index.dtype} on {index.device}"
            )
    require("weight", weight, word.shape[1:], word.device)
    require("bias", bias, word.shape[1:], word.device)
    mask = mask_arguments(dropout, word.device)
    return _EmbeddingLayerNorm.apply(
        *tables, torch.stack(indices), weight, bias, eps, padding_idx, *mask
    )
