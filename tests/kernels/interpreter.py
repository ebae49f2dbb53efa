"""What Triton's interpreter needs to be a fair judge of a kernel: three repairs, and an order.

Triton 3.7's interpreter computes with numpy, which knows no bfloat16 and holds it as raw 16 bits.
So `tl.dot` multiplies the bits as integers, a conversion from float32 cuts digits off where a GPU
rounds, and other arithmetic on bfloat16 is silently wrong. Here a product is widened first, a
conversion rounds to nearest even, and other arithmetic on bfloat16 is an error: a kernel widens
before it computes.

A GPU runs a grid's programs in any order. `programs_in` runs them in a chosen one, which shows a
program that leans on another's result. `addresses` runs no memory access at all and notes where
each would have gone: that is how offsets past 2³¹ are tested without the memory.
"""

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

ORDERS: dict[str, Callable[[int, int], int]] = {
    "forward": lambda index, count: index,
    "backward": lambda index, count: count - 1 - index,
    "shuffled": lambda index, count: random.Random(count).sample(range(count), count)[index],
}
_state: dict[str, Any] = {"order": ORDERS["forward"], "program": None}


def _is_bfloat16(handle: TensorHandle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _widen(handle: TensorHandle) -> TensorHandle:
    if not _is_bfloat16(handle):
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round to the nearest of the upper 16 bits, to even where two are as near."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def _repair(builder: type = InterpreterBuilder) -> None:
    dot, cast, binary, grid = (
        builder.create_dot, builder.cast_impl, builder.binary_op, builder.set_grid_idx
    )  # fmt: skip

    def repaired_dot(self, a, b, *rest):
        return dot(self, _widen(a), _widen(b), *rest)

    def repaired_cast(self, source, to):
        if to.scalar == tl.bfloat16 and source.dtype.scalar == tl.float32:
            return TensorHandle(_round_to_bfloat16(source.data), tl.bfloat16)
        if _is_bfloat16(source) and to.scalar != tl.bfloat16:
            source = _widen(source)
            return source if to.scalar == tl.float32 else cast(self, source, to)
        if to.scalar == tl.bfloat16 and not _is_bfloat16(source):
            raise TypeError(f"{source.dtype} to bfloat16: convert to float32 first")
        return cast(self, source, to)

    def repaired_binary(self, left, right, operation):
        if _is_bfloat16(left) or _is_bfloat16(right):
            raise TypeError(f"{operation.__name__} on bfloat16: convert to float32 first")
        return binary(self, left, right, operation)

    def ordered_grid(self, x, y, z):
        nx, ny, nz = self.grid_dim
        if _state["program"] is not None:  # far outside the grid: no bounds
            self.grid_idx = (_state["program"], 0, 0)
            return
        index = _state["order"]((x * ny + y) * nz + z, nx * ny * nz)
        grid(self, index // (ny * nz), index // nz % ny, index % nz)

    builder.create_dot = repaired_dot
    builder.cast_impl = repaired_cast
    builder.create_fp_to_fp = lambda self, source, to, rounding=None: repaired_cast(
        self, source, to
    )
    builder.binary_op = repaired_binary
    builder.set_grid_idx = ordered_grid


def _unwrap() -> None:
    """Interpret the kernel itself where a run-time type checker has wrapped it."""
    rewrite, patch = interpreter.FunctionRewriter.rewrite_ast, interpreter._patch_lang

    def unwrapped_rewrite(self):
        self.fn = inspect.unwrap(self.fn)
        return rewrite(self)

    interpreter.FunctionRewriter.rewrite_ast = unwrapped_rewrite
    interpreter._patch_lang = lambda function: patch(inspect.unwrap(function))


_repair()
_unwrap()


@contextmanager
def programs_in(order: str) -> Iterator[None]:
    """Run the programs of each grid in this order."""
    _state["order"] = ORDERS[order]
    try:
        yield
    finally:
        _state["order"] = ORDERS["forward"]


@contextmanager
def one_program(program: int) -> Iterator[None]:
    """Give the only program of a grid of one this index, as if the grid were larger."""
    _state["program"] = program
    try:
        yield
    finally:
        _state["program"] = None


@contextmanager
def addresses(
    program: int, given: Mapping[int, int] = MappingProxyType({})
) -> Iterator[dict[str, list[int]]]:
    """Run one program, of this index, whose loads give zeros and whose stores go nowhere.

    Gives the lowest and highest byte address that each load and store would have touched. A load
    of one of the addresses in `given` gives the number there instead.
    """
    seen: dict[str, list[int]] = {"load": [], "store": []}
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def note(kind: str, pointers: TensorHandle, mask: TensorHandle | None) -> None:
        reached = pointers.data if mask is None else pointers.data[mask.data]
        if reached.size:
            seen[kind] += [int(reached.min()), int(reached.max())]

    def noted_load(self, pointers, mask, other, *rest):
        note("load", pointers, mask)
        nothing = TensorHandle(np.zeros_like(pointers.data).astype(bool), tl.int1)
        loaded = load(self, pointers, nothing, other, *rest)
        if pointers.data.size == 1:
            loaded.data[...] += given.get(int(pointers.data.item()), 0)
        return loaded

    def noted_store(self, pointers, value, mask, *rest):
        note("store", pointers, mask)

    builder: Any = InterpreterBuilder
    builder.create_masked_load, builder.create_masked_store = noted_load, noted_store
    try:
        with one_program(program):
            yield seen
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
