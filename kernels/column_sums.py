"""The second half of a gradient that sums over all tokens, such as that of a LayerNorm's weight.

A backward kernel's programs each sum the rows they own, in order, and write one row of partial
sums. This kernel adds those rows, again in a fixed order. An atomic addition would save the
second kernel and make the result depend on which program came first: two runs would differ in
the last bits, and a training run could not be repeated.

      program 0 ──► partial row 0 ─┐
      program 1 ──► partial row 1 ─┼─ added top to bottom, 32 rows at a time ──► one row
      …                            │
      program P ──► partial row P ─┘
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from kernels.device import tiles_for

BLOCK_COLUMNS = 32


@triton.jit
def column_sums_kernel(
    partials_ptr, sums_ptr, rows, columns,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Add the rows of a [rows, columns] matrix, for one block of columns."""
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    sums = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], partials_ptr.dtype.element_ty)
    for first in range(0, rows, BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        offsets = row.to(tl.int64)[:, None] * columns + column[None, :]
        sums += tl.load(partials_ptr + offsets, mask=mask, other=0.0)
    tl.store(sums_ptr + column, tl.sum(sums, 0), mask=column < columns)


def column_sums(partials: Float[Tensor, "programs columns"]) -> Float[Tensor, " columns"]:
    """Add the programs' partial sums, always in the same order."""
    rows, columns = partials.shape
    sums = torch.empty(columns, dtype=partials.dtype, device=partials.device)
    grid = (tiles_for(columns, BLOCK_COLUMNS),)
    column_sums_kernel[grid](
        partials, sums, rows, columns,
        BLOCK_ROWS=32, BLOCK_COLUMNS=BLOCK_COLUMNS, num_warps=4,
    )  # fmt: skip
    return sums
