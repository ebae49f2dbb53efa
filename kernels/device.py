"""What the launchers ask of a device, and what they refuse.

The kernels take float16, bfloat16, float32, and float64, which is there for proofs: a numeric
derivative is only sharp in it. Everything is decided from metadata, so nothing waits for a GPU.
"""

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from triton import knobs

from kernels.kernel_set import Dropout

P = ParamSpec("P")
R = TypeVar("R")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Whether Triton's interpreter runs the kernels, on a CPU. Triton decides when a kernel is defined.
INTERPRETED: bool = knobs.runtime.interpret
# Few, so that small tests have programs that loop over several tiles.
INTERPRETED_MULTIPROCESSORS = 1


def require(name: str, tensor: Tensor, shape: Sequence[int], device: torch.device) -> None:
    """Refuse a tensor of another shape, on another device, or of a dtype that no kernel takes."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, got one on {tensor.device}")
    if tensor.dtype not in DTYPES:
        raise ValueError(
            f"{name}: expected float16, bfloat16, float32 or float64, got {tensor.dtype}"
        )


def require_gpu(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that isn't on a GPU, unless Triton's interpreter runs the kernels."""
    if tensor.device.type == "cpu" and not INTERPRETED:
        raise ValueError(
            f"{name}: expected a tensor on a GPU, got one on {tensor.device} "
            "(set TRITON_INTERPRET=1 before the first import to run the kernels interpreted)"
        )


def require_seed(name: str, seed: Tensor, device: torch.device) -> None:
    """Refuse a dropout seed that the kernels can't read from memory."""
    if seed.numel() != 1 or seed.dtype != torch.int64 or seed.device != device:
        raise ValueError(
            f"{name}: expected one int64 on {device}, got {tuple(seed.shape)} {seed.dtype} "
            f"on {seed.device}"
        )


def mask_arguments(
    dropout: Dropout | None, device: torch.device
) -> tuple[Tensor | None, int, int]:
    """Take a mask apart into seed, stream and threshold; no seed means that nothing is dropped."""
    if dropout is None or dropout.threshold == 0:
        return None, 0, 0
    require_seed("dropout", dropout.seed, device)
    return dropout.seed, dropout.stream, dropout.threshold


def on_its_gpu(operator: Callable[P, R]) -> Callable[P, R]:
    """Launch an operator's kernels on the GPU of its first tensor.

    Triton launches on the current GPU, whichever the tensors are on.
    """

    @wraps(operator)
    def launch(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0][0] if isinstance(args[0], list) else args[0]
        with torch.cuda.device_of(first):  # nothing happens for a tensor that is on none
            return operator(*args, **kwargs)

    return launch


def tiles_for(count: int, size: int) -> int:
    """How many tiles of this size cover so many elements."""
    return -(-count // size)


def power_of_two(count: int) -> int:
    """Round up to what a tile's side may be: a power of two."""
    return 1 << max(count - 1, 0).bit_length()


def row_programs(
    device: torch.device, tokens: int, block_rows: int, side_by_side: int = 1
) -> tuple[int, int]:
    """Share rows among programs that each walk through a run of them, in tiles of block_rows.

    Returns the number of runs and the rows of each. With so many programs side by side on a run,
    there are about 8 programs a multiprocessor at most (their loads hide each other's latency).
    The split depends on the sizes and the GPU's model alone, so sums over a program's rows come
    out the same every time.
    """
    most = tiles_for(multiprocessors(device) * 8, side_by_side)
    rows_per_program = tiles_for(tiles_for(tokens, most), block_rows) * block_rows
    return tiles_for(tokens, rows_per_program), rows_per_program


@cache
def architecture(device: torch.device) -> str:
    """Name what a GPU's kernels are compiled for, as sm90 or gfx942; "" is the interpreter."""
    if device.type == "cpu":
        return ""
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"


def dot_precision() -> str:
    """Say how float32 is multiplied: exactly, unless PyTorch was told that tf32 is good enough."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@cache
def multiprocessors(device: torch.device) -> int:
    """Count the multiprocessors (AMD: compute units) that programs can run on at once."""
    if device.type == "cpu":
        return INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
