"""The masked-LM loss: a linear map to the vocabulary and cross-entropy, never with all the logits.

Mathematics, for a row h with label y, weight W and bias b:

    t = W·h + b        loss = log Σ exp(t) − t[y]
    dt = softmax(t) − 1 at y        dh = Wᵀ·dt        dW = Σ dt·hᵀ        db = Σ dt

The logits of 5,120 masked tokens over 30,522 words are 312 MB in bfloat16, and would cross the
GPU's memory five times. So the rows are taken in chunks whose logits stay in half of the second
level cache (384 rows on an H100), where one kernel turns them into their own gradient:

    rows      ┌─ chunk ─┐       ┌────────── vocab ──────────┐ ┌ zeros
    of hidden │ 384     │ ─(1)─►│ logits ─(2)─► dlogits     │ │ up to a multiple of 64
              ├─ chunk ─┤       └───────────────────────────┘ ┘
              │ …       │        (1) matrix product   (2) the kernel: loss, and dlogits in place
                                 (3) dh of the chunk = dlogits·W     (4) dW += dlogitsᵀ·chunk, in
                                                                         float32, as db is

The products are the library's. The padding gives each row an address that 16 divides, for 16-byte
loads; its bias is −∞, so that its probability and its gradient are zero without a mask.

Two roundings that users of other implementations met are not made here: dlogits is softmax − 1 in
float32 and then rounded (a rounded softmax near 1 would leave the label no gradient), and dW is
added up over the chunks in float32. The logits are rounded to hidden's dtype, as in `F.linear`.

The kernel reads a row twice, one program a row. The first time each thread keeps a maximum and a
sum of exponentials of its own (the online softmax of Milakov and Gimelshein 2018), and the sums
meet once, at the end. Powers are of two: exp(t) = 2^(t · log₂e), which is what the hardware has.

The gradients are made in the forward pass, while the logits are there, for an upstream gradient of
one; the backward pass scales them. All sums have a fixed order: no atomics.

The kernel was compiled for A100, H100, B200 and MI300X, and run by Triton's interpreter; it was
not yet run on a GPU.
"""

import math

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.device import on_its_gpu, power_of_two, require, require_gpu, tiles_for

IGNORED = -100
LOG2E = math.log2(math.e)


@triton.jit
def cross_entropy_kernel(
    logits_ptr, bias_ptr, labels_ptr, losses_ptr,
    LOG2E: tl.constexpr, IGNORED: tl.constexpr, HAS_GRADIENT: tl.constexpr, VOCAB: tl.constexpr,
    PADDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute one row's loss, and put dlogits where the logits were.

    The bias is −∞ from VOCAB to PADDED. A label outside the vocabulary makes the loss NaN.
    """
    dtype: tl.constexpr = bias_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * PADDED
    label = tl.load(labels_ptr + row)
    is_word = (label >= 0) & (label < VOCAB)
    place = tl.where(is_word, label, -1).to(tl.int32)
    at_label = tl.load(logits_ptr + place, mask=is_word, other=0.0).to(dtype)
    at_label += tl.load(bias_ptr + place, mask=is_word, other=float("nan"))

    # A thread's 8 neighbours, one 16-byte load in bfloat16, share a maximum and a sum. It begins
    # at a finite number: −∞ − −∞ would be no number.
    column = tl.arange(0, BLOCK // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    peaks = tl.full([BLOCK // 8], -1e38, dtype)
    sums = tl.zeros([BLOCK // 8], dtype)
    for first in range(0, PADDED, BLOCK):
        inside = first + column < PADDED
        logits = tl.load(logits_ptr + first + column, mask=inside, other=0.0).to(dtype)
        bias = tl.load(bias_ptr + first + column, mask=inside, other=float("-inf"))
        logits += bias
        higher = tl.maximum(peaks, tl.max(logits, 1) * LOG2E)
        powers = tl.exp2(logits * LOG2E - higher[:, None])
        sums = sums * tl.exp2(peaks - higher) + tl.sum(powers, 1)
        peaks = higher
    peak = tl.max(peaks, 0)
    lse = peak + tl.log2(tl.sum(sums * tl.exp2(peaks - peak), 0))
    counts = label != IGNORED
    tl.store(losses_ptr + row, tl.where(counts, lse / LOG2E - at_label, 0.0))

    if HAS_GRADIENT:
        tl.debug_barrier()  # no thread may overwrite a logit that another has still to read
        # 2^−∞: nothing of a row that doesn't count
        lse = tl.where(counts, lse, float("inf"))
        for first in range(0, PADDED, BLOCK):
            inside = first + column < PADDED
            logits = tl.load(logits_ptr + first + column, mask=inside, other=0.0).to(dtype)
            bias = tl.load(bias_ptr + first + column, mask=inside, other=float("-inf"))
            dlogits = tl.exp2((logits + bias) * LOG2E - lse)
            dlogits = tl.where(first + column == place, dlogits - 1.0, dlogits)
            dlogits = dlogits.to(logits_ptr.dtype.element_ty)
            tl.store(logits_ptr + first + column, dlogits, mask=inside)


def padded_vocab(vocab: int) -> int:
    """Lengthen a row of logits so that each begins at a whole number of cache lines."""
    return tiles_for(vocab, 64) * 64


def tile(padded: int) -> dict[str, int]:
    """Choose what a program reads at once: 64 bytes of bfloat16 a thread, to hide the latency.

    A chunk has only some three rows for each multiprocessor, so each row needs much in flight.
    """
    block = min(power_of_two(padded), 8192)
    return {"BLOCK": block, "num_warps": max(block // 1024, 1)}


def chunk_rows(device: torch.device, row_bytes: int) -> int:
    """Choose how many rows' logits fill half of the second level cache: 256 or more.

    Fewer rows would have the accumulation of dW, which passes through the GPU's memory once a
    chunk, take longer than the products. The interpreter's chunks are small, so that tests have
    several.
    """
    if device.type == "cpu":
        return 16
    half = torch.cuda.get_device_properties(device).L2_cache_size // 2
    return max(half // row_bytes // 128 * 128, 256)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a·b to a total of a wider dtype, without rounding the product first."""
    if total.is_cuda and total.dtype != a.dtype:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))


@torch.library.custom_op("plainbert::linear_cross_entropy", mutates_args=())
@on_its_gpu
def linear_cross_entropy_op(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, has_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the chunks; returns the sum of the losses, dhidden, dweight and dbias.

    The gradients are in float32 (float64 for float64), and empty where they are not wanted.
    """
    hidden, labels = hidden.contiguous(), labels.contiguous()
    (rows, width), vocab = hidden.shape, weight.shape[0]
    padded = padded_vocab(vocab)
    words = hidden.new_zeros(padded, width)
    words[:vocab] = weight
    losses, dhidden, dwords, dbias = _outputs(hidden, rows, padded, has_gradient)
    wide_bias = losses.new_full((padded,), -math.inf)
    wide_bias[:vocab] = bias
    size = chunk_rows(hidden.device, padded * hidden.element_size())
    buffer = hidden.new_empty(min(size, rows), padded)
    for first in range(0, rows, size):
        chunk = slice(first, first + size)
        logits = buffer[: rows - first]
        torch.mm(hidden[chunk], words.T, out=logits)
        cross_entropy_kernel[(len(logits),)](
            logits, wide_bias, labels[chunk], losses[chunk],
            LOG2E=LOG2E, IGNORED=IGNORED, HAS_GRADIENT=has_gradient, VOCAB=vocab, PADDED=padded,
            **tile(padded),
        )  # fmt: skip
        if has_gradient:
            dlogits = logits
            add_product(dhidden[chunk], dlogits, words)
            add_product(dwords, dlogits.T, hidden[chunk])
            dbias += dlogits.sum(0, dtype=dbias.dtype)
    return losses.sum(), dhidden, dwords[:vocab], dbias[:vocab]


def _outputs(
    hidden: Tensor, rows: int, vocab: int, has_gradient: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate the losses and the gradients, at zero, in float32 at least."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    losses, width = hidden.new_empty(rows, dtype=dtype), hidden.shape[1]
    if not has_gradient:
        rows, vocab = 0, 0
    return (
        losses,
        losses.new_zeros(rows, width),
        losses.new_zeros(vocab, width),
        losses.new_zeros(vocab),
    )


@linear_cross_entropy_op.register_fake
def _(hidden, weight, bias, labels, has_gradient):
    losses, *gradients = _outputs(hidden, len(hidden), len(weight), has_gradient)
    return losses.sum(), *gradients


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, has_gradient):
        loss, *gradients = linear_cross_entropy_op(hidden, weight, bias, labels, has_gradient)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = hidden.dtype, weight.dtype, bias.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradients = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *((dloss * gradient).to(dtype) for gradient, dtype in gradients), None, None


def linear_cross_entropy(
    hidden: Float[Tensor, "masked hidden"],
    weight: Float[Tensor, "vocab hidden"],
    bias: Float[Tensor, " vocab"],
    labels: Int64[Tensor, " masked"],
) -> Float[Tensor, ""]:
    """See `kernel_set.LinearCrossEntropy`. A label outside the vocabulary makes the loss NaN.

    Returns: float32 (float64 for float64); products in hidden's dtype, sums in float32.

    Raises:
        ValueError: a shape, dtype or device isn't what the signature says.
    """
    if hidden.dim() != 2:
        raise ValueError(
            f"hidden: expected two axes (masked, hidden), got shape {tuple(hidden.shape)}"
        )
    require_gpu("hidden", hidden)
    require("hidden", hidden, hidden.shape, hidden.device)
    require("weight", weight, (*weight.shape[:1], hidden.shape[1]), hidden.device)
    require("bias", bias, weight.shape[:1], hidden.device)
    expected, got = (hidden.shape[0], hidden.device), (labels.numel(), labels.device)
    if labels.dim() != 1 or labels.dtype != torch.int64 or got != expected:
        raise ValueError(
            f"labels: expected {expected[0]} of int64 on {expected[1]}, "
            f"got {tuple(labels.shape)} {labels.dtype} on {labels.device}"
        )
    wants = (tensor.requires_grad for tensor in (hidden, weight, bias))
    has_gradient = torch.is_grad_enabled() and any(wants)
    return _LinearCrossEntropy.apply(hidden, weight, bias, labels, has_gradient)
