"""What the attention kernels share: which tile a program owns, and how tiles come from memory.

A packed batch has its sequences one after another; `cu_seqlens` says where each begins. Programs
are numbered along one axis (a grid's other two end at 65,535): tiles of one sequence and head are
neighbours, so that programs which run at once read the same keys and values from the cache.

    program = (sequence · heads + head) · tiles + tile       tiles = those of the longest sequence
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.device import require, require_gpu
from kernels.kernel_set import PackedSequences


@triton.jit
def locate(cu_seqlens_ptr, heads, tiles):
    """Say which sequence, head and tile this program has, and where the sequence lies."""
    program = tl.program_id(0)
    sequence = program // (heads * tiles)
    head = program // tiles % heads
    start = tl.load(cu_seqlens_ptr + sequence)
    length = tl.load(cu_seqlens_ptr + sequence + 1) - start
    return sequence, head, program % tiles, start, length


@triton.jit
def rows_at(ptr, row, head, stride, head_stride):
    """Point to one head's row of a [tokens, heads, head_dim] tensor."""
    return ptr + (row.to(tl.int64) * stride + head.to(tl.int64) * head_stride)


@triton.jit
def load_tile(
    source, row, limit, head, stride,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, DESCRIPTOR: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Load one head's rows `row` to `row` + ROWS; `source` points to the first, or describes all.

    Masked, rows from `limit` on are zero. A descriptor lets the copy engine of Hopper and later
    fetch the tile, without an address in any thread; it doesn't see the limit, so that rows of
    the next sequence are zeroed after they came.
    """
    line = tl.arange(0, ROWS)
    inside = (row + line < limit)[:, None]
    if DESCRIPTOR:
        rows = source.load([row, head * HEAD_DIM])
        if MASKED:
            rows = tl.where(inside, rows, tl.zeros_like(rows))
    else:
        pointers = source + (line[:, None] * stride + tl.arange(0, HEAD_DIM)[None, :])
        if MASKED:
            rows = tl.load(pointers, mask=inside, other=0.0)
        else:
            rows = tl.load(pointers)
    return rows


@triton.jit
def load_rows(
    source, row, limit, head, stride, head_stride,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, DESCRIPTOR: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Load one head's rows `row` to `row` + ROWS of a whole tensor, or of what describes it."""
    if not DESCRIPTOR:
        source = rows_at(source, row, head, stride, head_stride)
    return load_tile(source, row, limit, head, stride, ROWS, HEAD_DIM, DESCRIPTOR, MASKED)


@triton.jit
def store_rows(
    target_ptr, rows, row, limit, head, heads, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr
):  # fmt: skip
    """Store one head's rows up to `limit` to a contiguous [tokens, heads, head_dim] tensor."""
    line = tl.arange(0, ROWS)
    offsets = line[:, None] * (heads * HEAD_DIM) + tl.arange(0, HEAD_DIM)[None, :]
    base = target_ptr + (row.to(tl.int64) * heads + head) * HEAD_DIM
    element = target_ptr.dtype.element_ty
    tl.store(base + offsets, rows.to(element), mask=(row + line < limit)[:, None])


HEAD_DIMS = (16, 32, 64, 128)


def check(query: Tensor, key: Tensor, value: Tensor, sequences: PackedSequences) -> None:
    """Refuse what the attention kernels don't take."""
    if query.dim() != 3:
        raise ValueError(
            f"query: expected three axes (tokens, heads, head_dim), got {tuple(query.shape)}"
        )
    if query.shape[2] not in HEAD_DIMS:
        raise ValueError(f"query: expected head_dim 16, 32, 64 or 128, got {query.shape[2]}")
    require_gpu("query", query)
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        require(name, tensor, query.shape, query.device)
        if tensor.dtype != query.dtype:
            raise ValueError(f"{name}: expected query's dtype {query.dtype}, got {tensor.dtype}")
    if sequences.cu_seqlens.device != query.device:
        raise ValueError(
            f"sequences: expected cu_seqlens on {query.device}, got {sequences.cu_seqlens.device}"
        )
    sequences.check(query.shape[0])


def describe(tensor: Tensor, rows: int) -> Any:
    """Make the descriptor from which tiles of `rows` rows of one head are fetched."""
    tokens, heads, head_dim = tensor.shape
    width = heads * head_dim
    return TensorDescriptor(tensor, [tokens, width], [tensor.stride(0), 1], [rows, head_dim])


def can_describe(tensor: Tensor) -> bool:
    """Whether a descriptor can be made: heads side by side, addresses at multiples of 16 bytes."""
    aligned = all(n * tensor.element_size() % 16 == 0 for n in tensor.stride()[:2])
    side_by_side = tensor.shape[1] == 1 or tensor.stride(1) == tensor.shape[2]
    return side_by_side and aligned and tensor.data_ptr() % 16 == 0
