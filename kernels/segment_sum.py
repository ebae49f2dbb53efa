"""Sum the rows that share an index: the gradient of an embedding table, without atomics.

The indices are sorted, stably, so that the rows of one index stand together in the order in which
they came. A common word may have thousands, so its run is cut into pieces of 64 rows, and the
kernel below runs twice:

    sorted indices   7 7 7 … 7 7 7 … 7 7  9 9  12 …
                     ├─ 64 ──┤─ 64 ──┤ ┤  ├─┤              first, a program sums a piece
                     └───────┴───────┘                     then, a program sums an index's pieces

Both times there is a program for each place in the sorted order, and those leave at once at whose
place nothing begins: how many runs there are is known on the GPU alone, and nothing waits for it.
Every sum has one order, whatever order the programs run in.

A row is read once, and a piece's sum (float32) written and read once.

This kernel was compiled for A100, H100, B200 and MI300X, and run by Triton's interpreter; it was
not yet run on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device import on_its_gpu, power_of_two, tiles_for

PIECE = 64


@triton.jit(do_not_specialize=["skipped"])
def segment_sum_kernel(
    rows_ptr, order_ptr, index_ptr, begin_ptr, end_ptr, sums_ptr, skipped,
    PIECES: tl.constexpr, PIECE: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sum the piece that begins at this program's place, or (PIECES) the pieces of its index.

    `index`, `begin` and `end` say of each place in the sorted order which index's it is, and where
    that index's run lies. A piece's sum goes to the row of its first place.
    """
    column_blocks: tl.constexpr = tl.cdiv(COLUMNS, BLOCK_COLUMNS)
    place = tl.program_id(0) // column_blocks
    index = tl.load(index_ptr + place)
    begin, end = tl.load(begin_ptr + place), tl.load(end_ptr + place)
    if PIECES:
        step: tl.constexpr = PIECE
        target = index
        begins = place == begin
    else:
        step: tl.constexpr = 1
        target = place.to(tl.int64)
        begins = (place - begin) % PIECE == 0
        end = tl.minimum(end, place + PIECE)
    if begins & (index != skipped):
        dtype: tl.constexpr = tl.float64 if rows_ptr.dtype.element_ty == tl.float64 else tl.float32
        column = tl.program_id(0) % column_blocks * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        column_inside = column < COLUMNS
        sums = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], dtype)
        for first in range(place, end, step * BLOCK_ROWS):
            at = first + tl.arange(0, BLOCK_ROWS) * step
            row = at.to(tl.int64) if PIECES else tl.load(order_ptr + at, mask=at < end, other=0)
            mask = (at < end)[:, None] & column_inside[None, :]
            offsets = row[:, None] * COLUMNS + column[None, :]
            sums += tl.load(rows_ptr + offsets, mask=mask, other=0.0).to(dtype)
        total = tl.sum(sums, 0).to(sums_ptr.dtype.element_ty)
        tl.store(sums_ptr + target * COLUMNS + column, total, mask=column_inside)


def tile(columns: int) -> dict[str, int]:
    """Choose the tile: one warp, 8 rows of at most 256 columns."""
    return {"BLOCK_ROWS": 8, "BLOCK_COLUMNS": min(power_of_two(columns), 256), "num_warps": 1}


@torch.library.custom_op("plainbert::segment_sum", mutates_args=())
@on_its_gpu
def segment_sum(rows: Tensor, indices: Tensor, entries: int, skipped: int = -1) -> Tensor:
    """Sum the rows [tokens, columns] of each index below `entries`; that of `skipped` stays zero.

    Returns: rows' dtype; summed in float32 (float64 for float64).
    """
    tokens, columns = rows.shape
    sums = rows.new_zeros(entries, columns)
    if rows.numel() == 0:
        return sums
    index, order = indices.sort(stable=True)
    begin = torch.searchsorted(index, index, out_int32=True)
    end = torch.searchsorted(index, index, out_int32=True, right=True)
    pieces = rows.new_empty(rows.shape, dtype=torch.promote_types(rows.dtype, torch.float32))
    sizes = tile(columns)
    grid = (tokens * tiles_for(columns, sizes["BLOCK_COLUMNS"]),)
    for source, target, second in ((rows.contiguous(), pieces, False), (pieces, sums, True)):
        segment_sum_kernel[grid](
            source, order, index, begin, end, target, skipped,
            PIECES=second, PIECE=PIECE, COLUMNS=columns, **sizes,
        )  # fmt: skip
    return sums


@segment_sum.register_fake
def _(rows, indices, entries, skipped=-1):
    return rows.new_empty(entries, rows.shape[1])
