"""What a step achieves of what the device can do, and the memory that it takes.

    operations of a step = 3 · Σ over its micro-batches of
        L · (T · (8h² + 4hf) + 4h · Σ n²)   layers: four h×h maps, two h×f; Q·Kᵀ and P·V
        + S · (2h² + 2hc)                   pooler and classifier, a row a sequence; or
        + T · 2hc                           classifier of tokens, without a pooler
        + D · (2h² + 2hV)                   masked-word head, its D rows alone

with L layers of width h and feed-forward width f, T tokens in S sequences of lengths n, c classes
and a vocabulary of V. A multiplication and an addition are two operations, and the backward pass
does twice the forward's: a product for the gradient of the map, and one for that of its input.
Frozen layers do neither, and what stands on them not the second. Counted are the matrix products
that the mathematics needs: real tokens, attention at real lengths; no padding, nothing computed
twice, no embedding, no optimiser.
"""

import resource
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from bert.config import BertConfig
from bert.training.hardware import Hardware

PROBE_SECONDS = 0.2
"""Wall clock that measuring a speed takes."""
PEAK_SIZE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the square matrices whose product measures the peak."""


def training_operations(
    model: BertConfig,
    lengths: Sequence[int],
    *,
    classes: int = 0,
    token_classes: int = 0,
    decoded: int = 0,
    frozen_layers: int | None = None,
) -> int:
    """Count the operations of a forward and a backward pass; see the file's head.

    Args:
        model: its shape.
        lengths: tokens of each sequence.
        classes: of a classifier on the pooler; without one 0, and the pooler is counted too.
        token_classes: of a classifier of tokens, whose model has no pooler; else 0.
        decoded: tokens that get logits over the vocabulary; 0 where layers are frozen.
        frozen_layers: the lowest ones, which aren't trained, nor are the embeddings; None: all is.
    """
    h, f = model.hidden_size, model.intermediate_size
    tokens, squares = sum(lengths), sum(length**2 for length in lengths)
    layer = tokens * (8 * h**2 + 4 * h * f) + 4 * h * squares
    pooled = len(lengths) * (2 * h**2 + 2 * h * classes)
    if token_classes:
        pooled = tokens * 2 * h * token_classes
    forward = model.num_hidden_layers * layer + pooled
    forward += decoded * (2 * h**2 + 2 * h * model.vocab_size)
    if frozen_layers is None:
        return 3 * forward
    if frozen_layers < model.num_hidden_layers:
        lowest_map = tokens * 6 * h**2
    else:
        lowest_map = pooled if token_classes else len(lengths) * 2 * h**2
    return 3 * forward - 2 * frozen_layers * layer - lowest_map


def peak_speed(hardware: Hardware) -> float:
    """Measure the device's operations a second in a large matrix product, in some 0.2 s.

    In the precision of the training, with the threads and settings that it has.
    """
    size = PEAK_SIZE[hardware.device.type]
    # The fastest: another process may have had the core in the others' time.
    return 2 * size**3 / min(_product_seconds(hardware, size, size, size))


def utilization(operations: int, seconds: float, peak: float) -> dict[str, float]:
    """Return the share of its peak that this process reached in a step, where it is known."""
    if not operations or not peak or seconds <= 0:
        return {}
    return {"utilization": round(operations / seconds / peak, 4)}


def matmul_speed(hardware: Hardware, rows: int, columns: int, inner: int) -> float:
    """Measure operations a second of [rows, columns] · [columns, inner], usually."""
    times = _product_seconds(hardware, rows, columns, inner)
    return 2 * rows * columns * inner / statistics.median(times)


def _product_seconds(hardware: Hardware, rows: int, columns: int, inner: int) -> list[float]:
    dtype = getattr(torch, hardware.precision)
    left = torch.randn(rows, columns, device=hardware.device).to(dtype)
    right = torch.randn(columns, inner, device=hardware.device).to(dtype)
    times: list[float] = []
    while len(times) < 3 or sum(times) < PROBE_SECONDS:
        started = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for a GPU
        times.append(time.perf_counter() - started)
    return times


def peak_memory(device: torch.device) -> int:
    """Return the most bytes so far: of tensors on a GPU, else of this process in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else 1024 * resident
