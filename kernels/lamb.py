"""LAMB (You et al. 2020): Adam whose step is as long as each tensor's own norm asks.

Mathematics, for a tensor x with gradient g, at step t (algorithm 2):

    mean   ← mean + (1 − β₁)·(g − mean)        square ← square + (1 − β₂)·(g² − square)
    u = (mean / (1 − β₁ᵗ)) / (√(square / (1 − β₂ᵗ)) + eps) + decay·x
    x ← x − rate · ‖x‖/‖u‖ · u

Two norms over a whole tensor stand in the middle, so there are two kernels, each launched once for
all tensors of a group, not once a tensor:

    tensors     ┌──────────── 0 ────────────┐ ┌ 1 ┐ ┌────────── 2 ──────────┐
    chunks      │ 0      │ 1      │ 2       │ │ 3 │ │ 4      │ 5            │   of 16,384 elements
                └────┬───┴────┬───┴────┬────┘ └─┬─┘ └───┬────┴───┬──────────┘
    moments          ▼        ▼        ▼        ▼       ▼        ▼      a program a chunk: moves
    partials      Σx² Σu²  Σx² Σu²  …                                   mean, square; sums x², u²
    apply         a program a chunk: adds all partials of its tensor, in order; moves x

Every program of a tensor adds the same partials in the same order, so all agree on the ratio to
the bit, and no step depends on which program came first: no atomics. `apply` computes u again
from mean and square: that reads as much as a stored u would, and needs no memory for it. Both
together move 40 bytes an element (AdamW: 28).

A kernel can't take a list of tensors, so it takes a table of their addresses, which is made again
only where one has moved. What changes from step to step lies on the device: the rate, and beside
each tensor its t. So a step neither copies nor waits, and a CUDA graph can replay it:

    take a step outside    →  the table is there; keep the gradients where they are
    capture the next one   →  two launches, which a replay runs with the rate and t of then

The kernels were compiled for A100, H100, B200 and MI300X, and run by Triton's interpreter; they
were not yet run on a GPU.
"""

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.device import on_its_gpu, require, require_gpu, tiles_for
from kernels.kernel_set import LambSettings

CHUNK = 16384
BLOCK = 2048
Rows = tuple[tuple[int, ...], ...]


@triton.jit
def _chunk(table_ptr, places_ptr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr):
    """Look up this program's chunk: its tensor's row in the table, its first element, its size."""
    place_ptr = places_ptr + 2 * tl.program_id(0)
    row_ptr, first = table_ptr + tl.load(place_ptr) * 7, tl.load(place_ptr + 1) * CHUNK
    size = tl.minimum(tl.load(row_ptr + 5) - first, CHUNK).to(tl.int32)
    return row_ptr, first, tl.multiple_of(size, 4) if ALIGNED else size


@triton.jit
def _address(row_ptr, first, column: tl.constexpr, ALIGNED: tl.constexpr):
    """Look up where the chunk lies in memory: columns 0 to 3 are x, g, mean, square."""
    address = tl.load(row_ptr + column).to(tl.pointer_type(tl.float32)) + first
    return tl.multiple_of(address, 16) if ALIGNED else address


@triton.jit
def _correction(row_ptr, LOG2_BETA: tl.constexpr):
    """Compute 1 / (1 − βᵗ); column 4 says where t lies.

    In float64: in float32, 1 − 0.999 has four right digits.
    """
    t = tl.load(tl.load(row_ptr + 4).to(tl.pointer_type(tl.float32))).to(tl.float64)
    return (1.0 / (1.0 - tl.exp2(t * LOG2_BETA))).to(tl.float32)


@triton.jit
def _update(x, mean, square, correction1, correction2, eps, decay):
    """Compute u."""
    return mean * correction1 / (tl.sqrt(square * correction2) + eps) + decay * x


@triton.jit(do_not_specialize=["chunks"])
def lamb_moments_kernel(
    table_ptr, places_ptr, partials_ptr, chunks, rest1, rest2, eps, decay,
    LOG2_BETA1: tl.constexpr, LOG2_BETA2: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move mean and square of one chunk, and sum its x² and u². `rest` is 1 − β."""
    row_ptr, first, size = _chunk(table_ptr, places_ptr, ALIGNED, CHUNK)
    x_ptr = _address(row_ptr, first, 0, ALIGNED)
    g_ptr = _address(row_ptr, first, 1, ALIGNED)
    mean_ptr = _address(row_ptr, first, 2, ALIGNED)
    square_ptr = _address(row_ptr, first, 3, ALIGNED)
    correction1, correction2 = _correction(row_ptr, LOG2_BETA1), _correction(row_ptr, LOG2_BETA2)
    x_squares = tl.zeros([BLOCK], tl.float32)
    u_squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < size
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0)
        g = tl.load(g_ptr + offsets, mask=inside, other=0.0)
        mean = tl.load(mean_ptr + offsets, mask=inside, other=0.0)
        square = tl.load(square_ptr + offsets, mask=inside, other=0.0)
        mean += rest1 * (g - mean)
        square += rest2 * (g * g - square)
        u = _update(x, mean, square, correction1, correction2, eps, decay)
        tl.store(mean_ptr + offsets, mean, mask=inside)
        tl.store(square_ptr + offsets, square, mask=inside)
        x_squares += x * x
        u_squares += u * u
    chunk = tl.program_id(0)
    tl.store(partials_ptr + chunk, tl.sum(x_squares, 0))
    tl.store(partials_ptr + chunks + chunk, tl.sum(u_squares, 0))


@triton.jit(do_not_specialize=["chunks"])
def lamb_apply_kernel(
    table_ptr, places_ptr, partials_ptr, chunks, rate_ptr, eps, decay,
    LOG2_BETA1: tl.constexpr, LOG2_BETA2: tl.constexpr, ADAPTED: tl.constexpr,
    ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move one chunk of x."""
    row_ptr, first, size = _chunk(table_ptr, places_ptr, ALIGNED, CHUNK)
    x_ptr = _address(row_ptr, first, 0, ALIGNED)
    mean_ptr = _address(row_ptr, first, 2, ALIGNED)
    square_ptr = _address(row_ptr, first, 3, ALIGNED)
    correction1, correction2 = _correction(row_ptr, LOG2_BETA1), _correction(row_ptr, LOG2_BETA2)
    rate = tl.load(rate_ptr).to(tl.float32)
    if ADAPTED:
        partials_ptr += tl.load(row_ptr + 6)  # where the tensor's chunks begin
        x_squares = tl.zeros([256], tl.float32)
        u_squares = tl.zeros([256], tl.float32)
        own = tl.cdiv(tl.load(row_ptr + 5), CHUNK).to(tl.int32)
        for start in range(0, own, 256):
            offsets = start + tl.arange(0, 256)
            inside = offsets < own
            x_squares += tl.load(partials_ptr + offsets, mask=inside, other=0.0)
            u_squares += tl.load(partials_ptr + chunks + offsets, mask=inside, other=0.0)
        length, norm = tl.sqrt(tl.sum(x_squares, 0)), tl.sqrt(tl.sum(u_squares, 0))
        rate *= tl.where((length > 0) & (norm > 0), length / norm, 1.0)
    for start in range(0, size, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        inside = offsets < size
        x = tl.load(x_ptr + offsets, mask=inside, other=0.0)
        mean = tl.load(mean_ptr + offsets, mask=inside, other=0.0)
        square = tl.load(square_ptr + offsets, mask=inside, other=0.0)
        u = _update(x, mean, square, correction1, correction2, eps, decay)
        tl.store(x_ptr + offsets, x - rate * u, mask=inside)


@lru_cache(maxsize=16)
def chunk_places(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, list[int]]:
    """List the tensor and the place within it of each chunk; and each tensor's first chunk."""
    places, firsts = [], []
    for tensor, size in enumerate(sizes):
        firsts.append(len(places))
        places += [(tensor, chunk) for chunk in range(tiles_for(size, CHUNK))]
    return _on(device, tuple(places)).view(-1, 2), firsts


@lru_cache(maxsize=16)
def address_table(rows: Rows, device: torch.device) -> Tensor:
    """Write down where each tensor's x, g, mean, square and t lie, its size, its first chunk."""
    return _on(device, rows)


def _on(device: torch.device, rows: Rows) -> Tensor:
    """Copy a table to the device without waiting for it."""
    if is_capturing(device):
        raise ValueError(
            "gradients: expected to lie where they lay in a step before the capture, got others "
            "(zero_grad(set_to_none=False) keeps them)"
        )
    table = torch.tensor(rows, dtype=torch.int64)
    return table if device.type == "cpu" else table.pin_memory().to(device, non_blocking=True)


def is_capturing(device: torch.device) -> bool:
    """Say whether a CUDA graph is being captured, which can't copy from the host."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


# A graph reads its tables whenever it is replayed, so they are never freed.
_captured: list[tuple[Tensor, Tensor]] = []


@torch.library.custom_op("plainbert::lamb_step", mutates_args=("parameters", "means", "squares"))
@on_its_gpu
def lamb_step_op(
    parameters: list[Tensor], gradients: list[Tensor], means: list[Tensor], squares: list[Tensor],
    steps: list[Tensor], learning_rate: Tensor, beta1: float, beta2: float, eps: float,
    weight_decay: float, is_adapted: bool,
) -> None:  # fmt: skip
    """Launch both kernels."""
    device = parameters[0].device
    places, firsts = chunk_places(tuple(p.numel() for p in parameters), device)
    if len(places) == 0:
        return
    members = zip(parameters, gradients, means, squares, steps, firsts, strict=True)
    rows = tuple(
        (*(t.data_ptr() for t in five), five[0].numel(), first) for *five, first in members
    )
    table = address_table(rows, device)
    if is_capturing(device):
        _captured.append((table, places))
    # Only then can a thread load four elements at once.
    aligned = all(byte % 16 == 0 for row in rows for byte in (*row[:4], 4 * row[5]))
    partials = torch.empty(2 * len(places), dtype=torch.float32, device=device)
    constants = {
        "LOG2_BETA1": math.log2(beta1) if beta1 > 0 else -math.inf,
        "LOG2_BETA2": math.log2(beta2) if beta2 > 0 else -math.inf,
        "ALIGNED": aligned,
        "CHUNK": CHUNK,
        "BLOCK": BLOCK,
        "num_warps": 4,
    }
    lamb_moments_kernel[(len(places),)](
        table, places, partials, len(places), 1 - beta1, 1 - beta2, eps, weight_decay, **constants
    )
    lamb_apply_kernel[(len(places),)](
        table, places, partials, len(places), learning_rate, eps, weight_decay,
        ADAPTED=is_adapted, **constants,
    )  # fmt: skip


@lamb_step_op.register_fake
def _(*arguments):
    return None


def lamb_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    settings: LambSettings,
) -> None:
    """See `kernel_set.LambStep`. Parameters and state are in float32: it takes nothing else.

    A CUDA graph can capture it after a step with the same tensors.

    Raises:
        ValueError: the lists don't match, or a tensor isn't contiguous float32 on one GPU.
    """
    if not parameters:
        return
    device = parameters[0].device
    require_gpu("parameters", parameters[0])
    lists = {
        "parameters": parameters, "gradients": gradients, "means": means, "squares": squares,
        "steps": steps,
    }  # fmt: skip
    for name, tensors in lists.items():
        if len(tensors) != len(parameters):
            raise ValueError(f"{name}: expected {len(parameters)} tensors, got {len(tensors)}")
        for index, (tensor, parameter) in enumerate(zip(tensors, parameters, strict=True)):
            shape = () if tensors is steps else parameter.shape
            require(f"{name}[{index}]", tensor, shape, device)
            if tensor.dtype != torch.float32 or not tensor.is_contiguous():
                raise ValueError(
                    f"{name}[{index}]: expected contiguous float32, got {tensor.dtype} with "
                    f"strides {tensor.stride()}"
                )
    rate, betas, eps, decay, is_adapted = settings
    require("learning_rate", rate, (), device)
    lamb_step_op(*lists.values(), rate, *betas, eps, decay, is_adapted)
