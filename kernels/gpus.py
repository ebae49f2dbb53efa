"""What the GPUs can do that kernels are compiled for: what the gate and the roofline divide by.

Sources. NVIDIA's limits: CUDA C++ Programming Guide, "Technical Specifications per Compute
Capability"; special functions there too, "Arithmetic Instructions". Matrix operations: A100 by
"NVIDIA Ampere Architecture In-Depth" (1,024 multiplications with additions); H100 and B200 by
Zadouri et al. 2026, FlashAttention-4, which has it too that B200's special functions and shared
memory are H100's. MI300X: ROCm's tables of GPU specifications (512 KB of vector registers, 64 KB
shared by a compute unit) and "Pipeline descriptions" of ROCm Compute Profiler: four units of 16
lanes with room for 8 warps each, so 64 lanes start an instruction each cycle. Special functions
have a quarter of that rate (LLVM, SISchedule.td). Bandwidth: `benchmarks/roofline.py`.
"""

from typing import NamedTuple


class Architecture(NamedTuple):
    """What one multiprocessor (AMD: compute unit) has, and can do in a clock cycle."""

    card: str
    shared_limit: int
    """Bytes that one program may have."""
    shared: int
    registers: int
    """Of 32 bits."""
    warps: int
    lanes: int
    matrix_flops: int
    """A cycle, dense bfloat16."""
    special: int
    """Lanes a cycle of the unit for exponentials."""
    issue: int
    """Warp instructions a cycle."""
    memory_bytes: float
    """A cycle, its share of the card's bandwidth: public peak figures."""


ARCHITECTURES = {
    "sm80": Architecture("A100", 166912, 167936, 65536, 64, 32, 2048, 16, 4, 13.4),
    "sm90": Architecture("H100", 232448, 233472, 65536, 64, 32, 4096, 16, 4, 13.9),
    "sm100": Architecture("B200", 232448, 233472, 65536, 64, 32, 8192, 16, 4, 28.1),
    "gfx942": Architecture("MI300X", 65536, 65536, 131072, 32, 64, 2048, 16, 1, 8.3),
}
SHARED_BYTES = 128
"""What a multiprocessor's shared memory moves in a cycle: 32 banks of 4 bytes, in all of them."""
